"""The calls that were measured on this machine when programs first made them: in memory, and in a file of the user's
cache for each identity of the machine. The file is a table of measurements as ``measured.load`` reads it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ...files import write_whole
from .measured import Kind, Point, Table, load_from_cache, to_text
from .this_machine import Identity, Machine

APART = 1.0
"""Powers of two by which T and B may differ from those of the measured call; nothing else may."""

_known: dict[Identity, dict[str, list[Point]]] = {}


def find(here: Identity, kind: str, T: int, B: int, I: int, H: int) -> Point | None:
    """The closest measured call that tells of this one."""

    def apart(point: Point) -> float:
        if point[2:4] != (I, H):
            return math.inf
        return max(_apart(point.T, T), _apart(point.B, B))

    points = _points(here).get(kind, [])
    closest = min(points, key=apart, default=None)
    return closest if closest is not None and apart(closest) <= APART else None


def _apart(a: int, b: int) -> float:
    if a == b:
        return 0.0
    # a single step has no recurrence, and a single row no matrix product
    return math.inf if min(a, b) <= 1 else abs(math.log2(a / b))


def add(here: Identity, kind: str, point: Point) -> str | None:
    """Keeps a measurement. Returns None, or why it could not be written to the file: this process uses it anyway."""
    _points(here).setdefault(kind, []).append(point)
    try:
        path = here.file("calls")
    except RuntimeError as error:
        return str(error)
    kinds = _read(here, path)  # again: other processes write it, too
    kinds.setdefault(kind, []).append(point)
    return write_whole(path, _to_text(here, kinds).encode())


def _points(here: Identity) -> dict[str, list[Point]]:
    if here not in _known:
        try:
            _known[here] = _read(here, here.file("calls"))
        except RuntimeError:  # no home directory
            _known[here] = {}
    return _known[here]


def _read(here: Identity, path: Path) -> dict[str, list[Point]]:
    table = load_from_cache(path)
    kinds = {} if table is None else table.kinds
    return {name: list(found.points) for name, found in kinds.items() if found.made == _made(here)}


def _to_text(here: Identity, kinds: dict[str, list[Point]]) -> str:
    made = _made(here)
    found = {name: Kind(made, points) for name, points in kinds.items()}
    return to_text(Table(Machine(here.isa, here.threads), found))


def _made(here: Identity) -> dict[str, Any]:
    return {"source": "the first calls of programs", **here._asdict()}
