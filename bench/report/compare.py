"""One run against an older one: what became slower beyond the noise."""

from __future__ import annotations

from dataclasses import dataclass

from .record import Ratio, Record, Row

LEAST_CHANGE = 0.05
"""The same code differs by up to this from process to process, and a run has but two of each candidate."""


@dataclass(frozen=True)
class Change:
    """How a row's speed relative to PyTorch, measured in the same run each time, has changed."""

    name: str
    old: Ratio
    new: Ratio

    @property
    def factor(self) -> float:
        """Below 1 it is slower now."""
        return self.new.value / self.old.value

    @property
    def regressed(self) -> bool:
        """The intervals do not meet, and the change is more than ``LEAST_CHANGE``."""
        return self.new.high < self.old.low and self.factor < 1.0 - LEAST_CHANGE

    @property
    def improved(self) -> bool:
        return self.new.low > self.old.high and self.factor > 1.0 + LEAST_CHANGE


def check_same_machine(new: Record, old: Record) -> None:
    """Raises ValueError where the runs come from machines, threads or PyTorch versions that differ."""
    for what, a, b in (
        ("CPU", new.hardware.get("cpu"), old.hardware.get("cpu")),
        ("GPUs", _gpus(new), _gpus(old)),
        ("threads", new.hardware.get("threads"), old.hardware.get("threads")),
        ("PyTorch", new.versions.get("torch"), old.versions.get("torch")),
    ):
        if a != b:
            raise ValueError(
                f"--compare: expected a run of the same {what}, got {b} there and {a} here; measure both again here."
            )


def changes(new: Record, old: Record) -> list[Change]:
    """Of all rows that both have with PyTorch's time beside them: a machine that is slower today slows both.

    Raises:
        ValueError: the runs have no such row in common, or ``check_same_machine`` does.
    """
    check_same_machine(new, old)
    before = {row.name: row for row in old.rows}
    found = [
        Change(row.name, before[row.name].vs_pytorch, row.vs_pytorch)
        for row in new.rows
        if row.name in before and _comparable(row) and _comparable(before[row.name])
    ]
    if not found:
        raise ValueError("--compare: expected rows that this run has too, got none; compare the same suite.")
    return found


def _comparable(row: Row) -> bool:
    return row.vs_pytorch is not None


def _gpus(record: Record) -> list[str]:
    return [gpu["name"] for gpu in record.hardware.get("gpus", [])]
