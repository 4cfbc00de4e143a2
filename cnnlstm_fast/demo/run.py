"""The steps of ``cnnlstm-fast demo``: data, training, optimization, verification, times, table and page.

It imports optional packages only when it runs, so that the command can name the missing ones.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rich.console import Console

    from .report import Result
    from .train import Recipe

GOAL = 0.95  # share of held-out strings to be read without any error
HELD_OUT = 500  # strings
EXTRAS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "jinja2": "jinja2", "rich": "rich"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), help="where to write the page (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split, the strings and the weights (%(default)s)"
    )
    parser.add_argument("--device", help="cpu or cuda; by default cuda where there is one")


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit status. User errors are reported in one sentence."""
    try:
        return demo(args.output, args.seed, args.device)
    except KeyboardInterrupt:
        return _fail("Stopped before the end: no report was written.", 130)


def demo(
    output: Path = Path("report.html"),
    seed: int = 0,
    device: str | None = None,
    recipe: Recipe | None = None,
    seconds: float = 4.0,
) -> int:
    """Runs all steps, prints progress and results, and writes the page.

    Args:
        recipe: of the training; the default reaches the goal.
        seconds: how long to time each job.

    Returns:
        0 if the goal is reached and the optimized model passes all checks; otherwise 1.
    """
    missing = missing_extras()
    if missing:
        return _fail(f"The demo needs {' and '.join(missing)}: pip install cnnlstm-fast[demo]")
    problem = _unwritable(output)
    if problem:
        return _fail(problem)
    if seed < 0:
        return _fail(f"--seed: expected 0 or more, got {seed}.")
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        return _fail(f"--device: {device!r} cannot be used here: {str(error).splitlines()[0]}")

    from rich.console import Console

    from . import report
    from .train import Recipe

    console = Console(highlight=False)
    result = _work(console, seed, where, recipe or Recipe(), seconds)
    _summary(console, result)
    try:
        report.write(result, output)
    except OSError as error:
        return _fail(f"--output: {output} could not be written: {error.strerror}.")
    console.print(f"Report with images and plots: {output}", markup=False, soft_wrap=True)
    for sentence in result.failures:
        _fail(f"Failed: {sentence}")
    return 1 if result.failures else 0


def missing_extras() -> list[str]:
    """The packages, by their names for pip, that the demo needs and that are not installed."""
    return [package for module, package in EXTRAS.items() if importlib.util.find_spec(module) is None]


def _work(console: Console, seed: int, device: torch.device, recipe: Recipe, seconds: float) -> Result:
    import numpy as np

    from .. import explain, optimize
    from .data import LENGTH, compose, load_split
    from .measure import measure
    from .model import NumberReader
    from .proof import prove
    from .report import Result
    from .train import train_on_screen

    scans, unseen = load_split(seed)
    held_out = compose(unseen, HELD_OUT, np.random.default_rng((seed, 1)))
    console.print(
        f"Scanned digits: {len(scans)} to train with, {len(unseen)} held out, written into {HELD_OUT} "
        f"strings of {LENGTH[0]} to {LENGTH[1]}."
    )
    torch.manual_seed(seed)
    eager = NumberReader().to(device)
    console.print(f"Training a plain PyTorch CNN-BiLSTM with CTC loss on {device}, {recipe.steps} steps:")
    curve = train_on_screen(console, eager, scans, held_out, np.random.default_rng((seed, 0)), recipe)

    batch = held_out.part(0, min(32, len(held_out)))
    example = (batch.pictures.to(device), batch.widths)
    console.print("Measuring which engine runs the CNN fastest ...")
    fast = optimize(copy.deepcopy(eager).eval(), example, budget=5.0)  # too short for a compiler
    console.print("Verifying that the optimized model gives the same results ...")
    proof = prove(eager, fast, held_out)
    console.print("Timing both in interleaved rounds ...")
    timings = measure(eager, fast, held_out, seconds)
    return Result(
        held_out=held_out,
        recipe=recipe,
        scans=(len(scans), len(unseen)),
        curve=curve,
        proof=proof,
        timings=timings,
        explanation=explain(fast, example),
        device=device,
        seed=seed,
        goal=GOAL,
        failures=proof.failures(GOAL),
    )


def _summary(console: Console, result: Result) -> None:
    """Prints the final tables: share of strings read right, errors, times."""
    from rich import box
    from rich.table import Table

    from .measure import NOISY

    proof = result.proof
    worst = max(proof.report.errors, key=lambda row: row.fast / row.limit)
    checks = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="Accuracy; errors are relative, against float64",
        title_justify="left",
    )
    checks.add_column("")
    for name in ("PyTorch", "optimized"):
        checks.add_column(name, justify="right")
    checks.add_column("")
    checks.add_row(
        "held-out strings without an error",
        *(f"{100 * share:.1f} %" for share in (proof.share_eager, proof.share_fast)),
        f"goal {100 * result.goal:.0f} %",
    )
    total = len(proof.truth)
    checks.add_row("same text in both", "", f"{total - proof.differing} of {total}", "")
    for row in [r for r in proof.report.errors if r.what.startswith("output")] + [worst]:
        checks.add_row(
            f"error of {row.what}",
            f"{row.eager:.1e}",
            f"{row.fast:.1e}",
            f"limit {row.limit:.1e} " + ("[green]ok[/]" if row.ok else "[red]FAILED[/]"),
        )
    console.print(checks)

    times = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Times, medians", title_justify="left")
    times.add_column("")
    for name in ("PyTorch", "optimized", "speed-up", "95 % interval"):
        times.add_column(name, justify="right")
    times.add_column("")
    colors = {"faster": "green", "slower": "red", "no difference": "dim"}
    for timing in result.timings:
        speedup = timing.speedup
        times.add_row(
            f"[dim]  {timing.what}[/]" if timing.part else timing.what,
            f"{timing.eager_ms:.2f} ms",
            f"{timing.fast_ms:.2f} ms",
            f"[bold]{'~ ' if timing.noisy else ''}{speedup.value:.2f}x[/]",
            f"{speedup.low:.2f} to {speedup.high:.2f}",
            f"[{colors[timing.verdict]}]{timing.verdict}[/]",
        )
    console.print(times)
    if any(timing.noisy for timing in result.timings):
        console.print(f"[yellow]{NOISY}[/]\n")


def _unwritable(output: Path) -> str | None:
    """Why the page cannot be written there, checked before the training instead of after it."""
    if output.is_dir():
        return f"--output: {output} is a folder; name a file."
    folder = output.parent
    if not folder.is_dir():
        return f"--output: there is no folder {folder}."
    if not os.access(folder, os.W_OK):
        return f"--output: the folder {folder} is not writable."
    return None


def _fail(sentence: str, status: int = 1) -> int:
    print(sentence, file=sys.stderr)
    return status
