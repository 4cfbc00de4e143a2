"""Training of the reader in plain PyTorch.

The number of steps is fixed in advance: the accuracy on held-out strings is only monitored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from .data import Scans, Strings, compose
from .model import NumberReader, decode


@dataclass(frozen=True)
class Recipe:
    steps: int = 600
    batch: int = 32
    learning_rate: float = 5e-3  # the peak of one cycle
    weight_decay: float = 0.1
    check_every: int = 40  # steps between two evaluations on the held-out strings


@dataclass(frozen=True)
class Point:
    """A point of the training curve, after ``step`` steps and ``seconds``.

    ``loss`` is the mean since the last point, in nats per digit; ``share`` the part, 0 to 1, of the held-out
    strings that is read without an error.
    """

    step: int
    seconds: float
    loss: float
    share: float


def ctc_loss(log_probs: Tensor, steps: Tensor, strings: Strings) -> Tensor:
    """Mean CTC loss of log_probs (T, B, 11); every digit d is class d + 1."""
    return F.ctc_loss(log_probs, (strings.digits + 1).to(log_probs.device), steps, strings.lengths)


def training_step(model: NumberReader, optimizer: torch.optim.Optimizer, strings: Strings) -> float:
    """Forward, backward and update for one batch; returns the loss."""
    device = next(model.parameters()).device
    log_probs = model(strings.pictures.to(device), strings.widths)
    loss = ctc_loss(log_probs, model.steps(strings.widths), strings)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def read(model: NumberReader, strings: Strings, batch: int = 100) -> list[str]:
    """The text that the model, in eval mode, reads in every string."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    texts = []
    for part in strings.batches(batch):
        texts += decode(model(part.pictures.to(device), part.widths), model.steps(part.widths))
    model.train(was_training)
    return texts


def share_right(texts: list[str], truth: list[str]) -> float:
    """Share, 0 to 1, of the strings that were read without any error."""
    return sum(a == b for a, b in zip(texts, truth, strict=True)) / len(truth)


def train(
    model: NumberReader,
    scans: Scans,
    held_out: Strings,
    rng: np.random.Generator,
    recipe: Recipe | None = None,
    watch: Callable[[int, Point], None] = lambda step, point: None,
) -> list[Point]:
    """Trains the model in place, on strings that are composed during the training.

    Args:
        watch: called after every step with the number of steps done and the latest point.

    Returns:
        The points of the training curve; the last one is that of the trained model.
    """
    recipe = recipe or Recipe()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.25
    )
    truth = held_out.texts
    point = Point(0, 0.0, math.nan, 0.0)
    points: list[Point] = []
    losses: list[float] = []
    start = time.perf_counter()
    model.train()
    for step in range(1, recipe.steps + 1):
        losses.append(training_step(model, optimizer, compose(scans, recipe.batch, rng, distort=True)))
        schedule.step()
        if step % recipe.check_every == 0 or step == recipe.steps:
            share = share_right(read(model, held_out), truth)
            point = Point(step, time.perf_counter() - start, sum(losses) / len(losses), share)
            points.append(point)
            losses.clear()
        watch(step, point)
    model.eval()
    return points


def train_on_screen(
    console: Console,
    model: NumberReader,
    scans: Scans,
    held_out: Strings,
    rng: np.random.Generator,
    recipe: Recipe,
) -> list[Point]:
    """``train`` with a progress bar, or with one line for each point if the output is not a terminal."""
    if not console.is_terminal:

        def say(step: int, point: Point) -> None:
            if step == point.step:
                console.print(f"  step {step:>4} of {recipe.steps}: {_standing(point)}", highlight=False)

        return train(model, scans, held_out, rng, recipe, say)

    columns = (
        TextColumn("  training"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=recipe.steps)

        def show(step: int, point: Point) -> None:
            progress.update(task, completed=step, description=_standing(point) if point.step else "")

        return train(model, scans, held_out, rng, recipe, show)


def _standing(point: Point) -> str:
    return f"loss {point.loss:.3f}, {100 * point.share:.1f} % of held-out right"
