"""Compares a run with an older one: which rows became slower beyond noise."""

from __future__ import annotations

from dataclasses import dataclass

from .record import Ratio, Record, Row

LEAST_CHANGE = 0.05
"""The same code differs by up to this between processes, and a run has only two of each candidate."""


@dataclass(frozen=True)
class Change:
    """The change of a row's speed relative to PyTorch, which is measured in the same run each time."""

    name: str
    old: Ratio
    new: Ratio

    @property
    def factor(self) -> float:
        """New / old speed: below 1 it became slower."""
        return self.new.value / self.old.value

    @property
    def regressed(self) -> bool:
        """The intervals do not overlap, and the change is more than ``LEAST_CHANGE``."""
        return self.new.high < self.old.low and self.factor < 1.0 - LEAST_CHANGE

    @property
    def improved(self) -> bool:
        return self.new.low > self.old.high and self.factor > 1.0 + LEAST_CHANGE


def check_same_machine(new: Record, old: Record) -> None:
    """Raises ValueError where the machine, the number of threads or the PyTorch version differs."""
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
    """The changes of all rows that both runs have with PyTorch's time, to which the speeds are relative: the machine
    may be faster or slower today.

    Raises:
        ValueError: the runs have no such row in common, or ``check_same_machine`` raises.
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
