"""Engines of modules that were captured one by one are compared inside the model."""

from __future__ import annotations

import copy
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clock import Net, clock
from torch import Tensor, nn

from cnnlstm_fast import _native, explain, optimize, timing
from cnnlstm_fast.encoder import inside, turns
from cnnlstm_fast.encoder.engines import ENGINES, Engine, Options, Run
from cnnlstm_fast.encoder.record import Inside
from cnnlstm_fast.encoder.region import Region
from cnnlstm_fast.encoder.runner import Runner
from cnnlstm_fast.encoder.usual import RUNNER

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the compiled guard")


class Team:
    """The idle team: ``cost`` is the milliseconds by which the rest of the model is slower beside it."""

    lives = False
    cost = 0.0

    def end(self) -> None:
        self.lives = False


team = Team()


class Model(nn.Module):
    """(B, 3, T) -> (B, 4, T), with code that cannot be captured around the CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = Net()

    def forward(self, x: Tensor) -> Tensor:
        clock.take(1 + team.cost * team.lives)
        return self.cnn(x) * len(x.sum(0).tolist())


def engine(name: str, milliseconds: float, own_threads: bool = False) -> Engine:
    def build(region: Region, example: tuple[Tensor, ...], options: Options) -> Run:
        def run(x: Tensor) -> tuple[Tensor, ...]:
            team.lives |= own_threads
            clock.take(milliseconds)
            return region.module(x)

        return run

    return Engine(name, name, build, own_threads=own_threads)


@pytest.fixture(autouse=True)
def _engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (timing, turns):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(turns, "end_idle_team", team.end)
    team.end()
    for name in list(ENGINES):
        monkeypatch.delitem(ENGINES, name)
    for made in (engine("eager", 4), engine("shared", 2), engine("own", 1, own_threads=True)):
        monkeypatch.setitem(ENGINES, made.name, made)


def optimized(training: bool = False, **options: Any) -> Model:
    torch.manual_seed(0)
    model = Model().train(training)
    return optimize(model, torch.randn(4, 3, 9), **{"budget": 100.0, **options}).eval()


def engines_of(model: Model) -> list[str]:
    runner = model.cnn.__dict__[RUNNER]
    assert isinstance(runner, Runner)
    return [region.engine for region in runner.record.regions]


@pytest.mark.parametrize(("cost", "expected"), [(0.0, "own"), (0.9, "own"), (1.1, "shared"), (9.0, "shared")])
def test_the_faster_inside_the_model_stays(
    cost: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team, "cost", cost)
    model = optimized()
    assert engines_of(model) == [expected]
    found = model.cnn.__dict__[RUNNER].record.inside
    assert found.engines == ["own"]
    assert (found.own, found.pytorch) == pytest.approx((2e-3 + 1e-3 * cost, 3e-3))
    assert (
        f"inside the model, whose call takes {2 + cost:.3g} ms with own, 3 ms with engines that work by PyTorch's"
        in explain(model)
    )


@pytest.mark.parametrize("copied", ["as it is", "in train mode", "deepcopy", "pickle"])
def test_its_results_are_right(copied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "cost", 9.0)
    model = optimized(training=copied == "in train mode")
    if copied in ("deepcopy", "pickle"):
        model = copy.deepcopy(model) if copied == "deepcopy" else pickle.loads(pickle.dumps(model))
    team.end()
    x = torch.randn(7, 3, 9)
    with torch.no_grad():
        for _ in range(5):
            before = clock.now
            torch.testing.assert_close(model(x), torch.relu(model.cnn.conv(x)) * 3)
    assert clock.now - before == pytest.approx(3e-3), "by the engine"


def test_the_next_process_finds_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "cost", 9.0)
    first = optimized()
    monkeypatch.setattr(inside, "Turns", None)  # to measure fails
    again = optimized()
    assert engines_of(again) == engines_of(first) == ["shared"]
    assert again.cnn.__dict__[RUNNER].record.inside == Inside(
        ["own"], pytest.approx(11e-3), pytest.approx(3e-3)
    )


def test_a_choice_that_was_not_compared_is_compared_by_the_next_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["cnnlstm_fast.optimize"], "measure_inside", lambda *_: None)
        assert engines_of(optimized()) == ["own"]
    monkeypatch.setattr(team, "cost", 9.0)
    assert engines_of(optimized()) == ["shared"]


def test_another_model_around_it_has_a_choice_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Model):
        pass

    assert engines_of(optimized()) == ["own"]
    monkeypatch.setattr(team, "cost", 9.0)
    assert engines_of(optimize(Other().eval(), torch.randn(4, 3, 9), budget=100.0)) == ["shared"]


def test_eager_where_nothing_else_works_by_pytorchs_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ENGINES, "shared")
    monkeypatch.setattr(team, "cost", 9.0)
    model = optimized()
    assert RUNNER not in model.cnn.__dict__
    assert type(model.cnn) is Net
    assert "no engine is faster" in explain(model)
    again = optimized()
    assert RUNNER not in again.cnn.__dict__


def test_an_engine_that_cannot_be_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    shared = ENGINES["shared"]

    def once(*args: Any) -> Run:
        built.append("shared")
        if len(built) > 1:
            raise RuntimeError("no memory left")
        return shared.build(*args)

    monkeypatch.setitem(ENGINES, "shared", replace(shared, build=once))
    model = optimized()
    assert engines_of(model) == ["own"]
    assert "not compared inside the model: no memory left" in explain(model)


def test_no_compiler_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "shared", replace(ENGINES["shared"], setup_seconds=1e-3))
    monkeypatch.setattr(team, "cost", 9.0)
    model = optimized()
    assert RUNNER not in model.cnn.__dict__, "PyTorch is the fastest without one"


def test_a_named_engine_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "cost", 9.0)
    assert engines_of(optimized(encoder="own")) == ["own"]
