"""Checks that the optimized model gives the same results: the same text, and the errors by ``verify``."""

from __future__ import annotations

from dataclasses import dataclass

from ..verify import Report, verify
from .data import Strings
from .model import NumberReader
from .train import read, share_right


@dataclass(frozen=True)
class Proof:
    """The texts that both models read in the held-out strings, and the errors of both against float64 on one batch."""

    truth: list[str]
    eager: list[str]
    fast: list[str]
    report: Report

    @property
    def share_eager(self) -> float:
        return share_right(self.eager, self.truth)

    @property
    def share_fast(self) -> float:
        return share_right(self.fast, self.truth)

    @property
    def differing(self) -> int:
        """Number of strings in which the optimized model reads a different text than the eager one."""
        return sum(a != b for a, b in zip(self.eager, self.fast, strict=True))

    def failures(self, goal: float) -> list[str]:
        """A sentence for each failed check; ``goal`` is the share of strings that must be read without an error."""
        found = []
        if self.share_eager < goal:
            found.append(
                f"The trained model reads {100 * self.share_eager:.1f} % of the held-out strings without an "
                f"error, less than the {100 * goal:.0f} % asked for."
            )
        if self.differing:
            found.append(
                f"The optimized model reads a different text in {self.differing} of {len(self.truth)} strings."
            )
        bad = [row.what for row in self.report.errors if not row.ok]
        if bad:
            found.append(f"The error exceeds its limit for: {', '.join(bad)}.")
        return found


def prove(eager: NumberReader, fast: NumberReader, held_out: Strings, batch: int = 32) -> Proof:
    """Reads all held-out strings with both models, and verifies outputs and gradients on the first batch."""
    part = held_out.part(0, min(batch, len(held_out)))
    device = next(eager.parameters()).device
    report = verify(fast, (part.pictures.to(device), part.widths), seconds=0.0)
    return Proof(held_out.texts, read(eager, held_out), read(fast, held_out), report)
