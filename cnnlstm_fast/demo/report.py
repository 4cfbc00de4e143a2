"""The demo's self-contained page: images of the strings, the texts read in them, errors and times."""

from __future__ import annotations

import base64
import io
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .. import __version__
from ..pages import FAST, INK, STYLE, svg, template, tidy
from .data import Strings
from .measure import NOISY, Timing
from .proof import Proof
from .train import Point, Recipe

EAGER = "#8a8f98"
SHOWN = 18  # the first strings, shown whether they were read right or not


@dataclass(frozen=True)
class Result:
    """The content of the page."""

    held_out: Strings
    recipe: Recipe
    scans: tuple[int, int]  # for training, held out
    curve: list[Point]
    proof: Proof
    timings: list[Timing]
    explanation: str
    device: torch.device
    seed: int
    goal: float
    failures: list[str]


@matplotlib.rc_context(STYLE)
def render(result: Result) -> str:
    """The page as self-contained HTML without scripts."""
    proof = result.proof
    wrong = [
        k
        for k, truth in enumerate(proof.truth)
        if k >= SHOWN and not proof.eager[k] == proof.fast[k] == truth
    ]
    errors = sorted(proof.report.errors, key=lambda row: -row.fast / row.limit)
    return template(Path(__file__).with_name("report.html.j2")).render(
        result=result,
        proof=proof,
        shown=[_reading(result, k) for k in range(min(SHOWN, len(proof.truth)))],
        wrong=[_reading(result, k) for k in wrong],
        outputs=[row for row in errors if row.what.startswith("output")],
        gradients=[row for row in errors if not row.what.startswith("output")],
        times_plots=[(t, _times_plot(t)) for t in result.timings],
        curve_plots=[
            ("Held-out strings read right", _share_plot(result.curve, result.goal)),
            ("Training loss", _loss_plot(result.curve)),
        ],
        facts=facts(result.device),
        noisy=NOISY if any(t.noisy for t in result.timings) else "",
        colors={"eager": EAGER, "fast": FAST},
    )


def write(result: Result, output: Path) -> None:
    """Writes the page atomically: to a temporary file that is then renamed."""
    unfinished = output.with_name(f".{output.name}.unfinished")
    try:
        unfinished.write_text(render(result), encoding="utf-8")
        os.replace(unfinished, output)
    finally:
        unfinished.unlink(missing_ok=True)


def facts(device: torch.device) -> dict[str, str]:
    """The hardware and the versions that the times belong to."""
    found = {"CPU": f"{_processor()}, threads used: {torch.get_num_threads()}"}
    if device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(device)
    found["System"] = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    found["PyTorch"] = torch.__version__
    found["cnnlstm_fast"] = __version__
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _reading(result: Result, k: int) -> dict[str, object]:
    """One string for the template: its image, the truth, and the text that each model read."""
    proof, width = result.proof, int(result.held_out.widths[k])
    return {
        "picture": _png(result.held_out.pictures[k, 0, :, :width]),
        "width": width,
        "truth": proof.truth[k],
        "eager": proof.eager[k],
        "fast": proof.fast[k],
    }


def _png(picture: Tensor) -> str:
    """A picture (H, W), 0 for paper to 1 for ink, as a data URL."""
    grey = (255 - 255 * picture.clamp(0, 1)).round().to(torch.uint8).numpy()
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _times_plot(timing: Timing) -> str:
    """Every round as a dot, the medians as bars, in milliseconds from zero."""
    figure = Figure(figsize=(3.4, 1.75), layout="constrained")
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    rows = (
        (1, "PyTorch", timing.eager, timing.eager_ms, EAGER),
        (0, "optimized", timing.fast, timing.fast_ms, FAST),
    )
    for y, _, seconds, median, color in rows:
        times = np.array(seconds) * 1e3
        axes.barh(y, median, height=0.62, color=color, alpha=0.28, linewidth=0)
        axes.plot([median, median], [y - 0.31, y + 0.31], color=color, linewidth=2)
        spread = y + jitter.uniform(-0.22, 0.22, len(times))
        axes.scatter(times, spread, s=5, color=color, alpha=0.5, linewidths=0)
    # A few disturbed rounds must not compress the scale of all others.
    axes.set_xlim(0, 1.12 * float(np.quantile([*timing.eager, *timing.fast], 0.97)) * 1e3)
    axes.set_yticks([y for y, *_ in rows], [name for _, name, *_ in rows])
    axes.set_ylim(-0.5, 1.5)
    axes.set_xlabel("milliseconds")
    tidy(axes)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return svg(figure)


def _share_plot(curve: list[Point], goal: float) -> str:
    """The share of held-out strings read right over the training steps, and the goal."""
    figure = Figure(figsize=(3.4, 2.2), layout="constrained")
    axes = figure.subplots()
    steps = [point.step for point in curve]
    axes.plot(steps, [100 * point.share for point in curve], color=FAST, marker="o", markersize=3)
    axes.axhline(100 * goal, color=EAGER, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"goal {100 * goal:.0f} %", (steps[0], 100 * goal), (0, -11), textcoords="offset points", color=INK
    )
    axes.set_ylim(0, 103)
    axes.set_xlabel("training steps")
    axes.set_ylabel("strings right, %")
    tidy(axes)
    return svg(figure)


def _loss_plot(curve: list[Point]) -> str:
    """The loss over the training steps."""
    figure = Figure(figsize=(3.4, 2.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([p.step for p in curve], [p.loss for p in curve], color=FAST, marker="o", markersize=3)
    axes.set_yscale("log")
    axes.set_xlabel("training steps")
    axes.set_ylabel("CTC loss, nats per digit")
    tidy(axes)
    return svg(figure)
