"""Engines for calls of another size than the example's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clock import Net, clock
from torch import Tensor, nn

from cnnlstm_fast import _native, explain, optimize, timing
from cnnlstm_fast.encoder import turns
from cnnlstm_fast.encoder.elsewhere import FEW_ROWS, MANY_ROWS
from cnnlstm_fast.encoder.engines import ENGINES, Engine, Options, Run
from cnnlstm_fast.encoder.region import Region
from cnnlstm_fast.encoder.runner import CALLS_BEFORE_REBUILD, Runner
from cnnlstm_fast.encoder.usual import RUNNER

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the compiled guard")

SEEN: list[tuple[str, int]] = []


def engine(name: str, takes: Callable[[int], float]) -> Engine:
    """An engine that takes so many milliseconds for so many rows; ``SEEN`` has its calls."""

    def build(region: Region, example: tuple[Tensor, ...], options: Options) -> Run:
        def run(x: Tensor) -> tuple[Tensor, ...]:
            SEEN.append((name, x.size(0)))
            clock.take(takes(x.size(0)))
            return region.module(x)

        return run

    return Engine(name, name, build)


class Fixed(Net):
    """For one number of rows alone."""

    def forward(self, x: Tensor) -> Tensor:
        if x.size(0) != 16:
            raise ValueError("expected 16 rows")
        return super().forward(x)


@pytest.fixture(autouse=True)
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The engines "few" and "many" are fast for as many rows; the list has the engine and the rows of every call."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (timing, turns):
        monkeypatch.setattr(module, "time", clock)
    SEEN.clear()
    for name in list(ENGINES):
        monkeypatch.delitem(ENGINES, name)
    for name, takes in {
        "eager": lambda rows: 3,
        "few": lambda rows: 2 if rows > FEW_ROWS else 1,
        "many": lambda rows: 2 if rows <= FEW_ROWS else 1,
    }.items():
        monkeypatch.setitem(ENGINES, name, engine(name, takes))
    return SEEN


def engine_of(model: nn.Module, seen: list[tuple[str, int]], rows: int) -> str:
    """The engine that ran a call of so many rows, whose results are compared."""
    x = torch.randn(rows, 3, 9)
    for _ in range(2):  # the first one is run both ways
        seen.clear()
        with torch.no_grad():
            found = model(x)
            torch.testing.assert_close(found, torch.relu(model.conv(x)))
    ((name, given),) = seen
    assert given == rows
    return name


def runner_of(model: nn.Module) -> Runner:
    return model.__dict__[RUNNER]


@pytest.mark.parametrize("rows", [16, 2])
def test_each_size_has_its_engine(rows: int, calls: list[tuple[str, int]]) -> None:
    model = optimize(Net().eval(), torch.randn(rows, 3, 9), budget=100.0)
    own, other = ("many", "few") if rows == 16 else ("few", "many")
    found = runner_of(model).record.other
    assert found is not None and found.engines == [other] and found.smaller == (rows == 16)
    assert found.sizes == [[1 if rows == 16 else MANY_ROWS, 3, 9]]
    assert engine_of(model, calls, rows) == own
    assert [engine_of(model, calls, n) for n in (1, 2, 3)] == [
        "few"
    ] * 3  # nearer to 1 than to 16, to 2 than to 32
    assert [engine_of(model, calls, n) for n in (9, 40)] == ["many"] * 2
    text = explain(model)
    assert f"calls with sizes nearer to ({found.sizes[0][0]}, 3, 9) run by {other}: " in text


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m])
def test_copies_edited_weights_and_the_next_process(way: Any, calls: list[tuple[str, int]]) -> None:
    optimize(Net().eval(), torch.randn(16, 3, 9), budget=100.0)
    calls.clear()
    model = optimize(Net().eval(), torch.randn(16, 3, 9), budget=100.0)
    assert runner_of(model).record.cached and {rows for _, rows in calls} == {16}  # checked, not measured
    model = way(model)
    with torch.no_grad():
        model.conv.weight += 1.0
        for _ in range(CALLS_BEFORE_REBUILD):
            model(torch.randn(16, 3, 9))
    assert [engine_of(model, calls, n) for n in (1, 16)] == ["few", "many"]


def test_not_where_it_gains_nothing(calls: list[tuple[str, int]]) -> None:
    for name, dropped in {"few": 16, "many": 2}.items():
        engine = ENGINES.pop(name)
        model = optimize(Net().eval(), torch.randn(dropped, 3, 9))
        ENGINES[name] = engine
        assert runner_of(model).record.other is None


def test_not_where_the_others_are_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "many", engine("many", lambda rows: 1))
    model = optimize(Net().eval(), torch.randn(16, 3, 9), budget=100.0)
    assert [r.engine for r in runner_of(model).record.regions] == ["many"]
    assert runner_of(model).record.other is None


def test_not_where_the_module_does_not_take_it() -> None:
    model = optimize(Fixed().eval(), torch.randn(16, 3, 9))
    assert runner_of(model).record.other is None
    with pytest.raises(ValueError, match="expected 16 rows"):
        model(torch.randn(1, 3, 9))


def test_not_after_the_budget() -> None:
    model = optimize(Net().eval(), torch.randn(16, 3, 9), budget=0.0)
    assert runner_of(model).record.other is None


def test_another_engine_is_compared_at_its_own_sizes() -> None:
    model = optimize(Net().eval(), torch.randn(16, 3, 9), budget=100.0)
    gate = runner_of(model)._bound.gate
    forward = gate.forward
    gate.forward = lambda x: tuple(t + (x.size(0) < 4) for t in forward(x))  # as if "few" were wrong
    with torch.no_grad():
        for rows in (9, 2):  # of one kind otherwise
            x = torch.randn(rows, 3, 9)
            for _ in range(2):
                torch.testing.assert_close(model(x), torch.relu(model.conv(x)))
    assert any("other results" in note for note in runner_of(model).notes)
