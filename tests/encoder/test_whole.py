"""Modules that run with their LSTMs as one region, by an engine that has an LSTM of its own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnlstm_fast
from cnnlstm_fast import _native, explain, optimize
from cnnlstm_fast.encoder import choose, prepare, turns
from cnnlstm_fast.encoder.capture import capture
from cnnlstm_fast.encoder.engines import ENGINES
from cnnlstm_fast.encoder.reason import CannotCaptureError
from cnnlstm_fast.encoder.runner import CALLS_BEFORE_REBUILD, Runner
from cnnlstm_fast.encoder.usual import RUNNER

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the compiled guard")
OWN_LSTM = [name for name, engine in ENGINES.items() if engine.own_lstm]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delitem(ENGINES, "inductor")  # its compiler takes seconds of each test


class Reader(nn.Module):
    """Series (B, T, 3) -> scores (B, steps, 4): a convolution, LSTMs, a linear layer. ``states``: where the first ones
    come from."""

    def __init__(self, states: str = "none", **lstm: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, stride=2)
        self.lstm = nn.LSTM(8, 6, **({"batch_first": True} | lstm))
        P = self.lstm.proj_size or 6
        D = 1 + self.lstm.bidirectional
        self.head = nn.Linear(D * P, 4)
        self.states = states
        self.first = nn.Parameter(torch.randn(2, self.lstm.num_layers * D, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        found = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        if not self.lstm.batch_first:
            found = found.transpose(0, 1)
        states = None
        if self.states == "learned":
            h, c = self.first.expand(-1, -1, x.size(0), -1).contiguous()
            states = (h, c)
        output, (h_n, c_n) = self.lstm(found, states)
        if not self.lstm.batch_first:
            output = output.transpose(0, 1)
        return self.head(output) + h_n.mean() + c_n[-1].mean(-1)[:, None, None]


MODELS: dict[str, Callable[[], Reader]] = {
    "plain": Reader,
    "two layers, both directions": lambda: Reader(num_layers=2, bidirectional=True),
    "without bias, time first": lambda: Reader(bias=False, batch_first=False),
    "learned states": lambda: Reader("learned", bidirectional=True),
    "dropout": lambda: Reader(num_layers=2, dropout=0.5),
}


@pytest.fixture
def fast_engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bool], None]:
    """Has measurements prefer that engine, for the whole or for the parts."""

    def prefer(engine: str, whole: bool) -> None:
        def medians(self: Any, seconds: float) -> list[float]:
            found = []
            self._took = dict.fromkeys(self._assignments, 0.0)
            for label, assignment in self._assignments.items():
                self._warm_up(label)
                assignment.call()
                engines = assignment.engines.values()
                wanted = set(engines) == {engine} and (len(engines) == 1) == whole
                found.append(1.0 if wanted else 2.0)
            return found

        monkeypatch.setattr(turns.Turns, "medians", medians)

    return prefer


def same(model: nn.Module, fast: nn.Module, *shapes: tuple[int, ...]) -> None:
    with torch.no_grad():
        for shape in shapes:
            for _ in range(2):  # new sizes run both ways first
                x = torch.randn(shape)
                torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def runner_of(model: nn.Module) -> Runner:
    return model.__dict__[RUNNER]


def require(engine: str) -> None:
    missing = ENGINES[engine].missing()
    if missing is not None:
        pytest.skip(f"{engine} is {missing}")


@pytest.mark.parametrize("engine", OWN_LSTM)
@pytest.mark.parametrize("name", MODELS)
def test_results_at_any_size(name: str, engine: str, fast_engine: Any) -> None:
    require(engine)
    fast_engine(engine, True)
    model = MODELS[name]().eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 20, 3), budget=100.0)
    runner = runner_of(fast)
    assert [r.engine for r in runner.record.regions] == [engine] and not runner.plan.lstms
    same(model, fast, (2, 20, 3), (1, 20, 3), (5, 33, 3), (3, 3, 3))
    text = explain(fast)
    assert f"without gradient it runs in {ENGINES[engine].title}" in text
    assert "as one, LSTMs included:" in text and "by parts with fast LSTMs: 2e+03 ms" in text


def test_the_parts_are_kept_where_they_are_faster(fast_engine: Any) -> None:
    require("onnxruntime")
    fast_engine("onednn", False)
    model = Reader().eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 20, 3), budget=100.0)
    assert len(runner_of(fast).plan.lstms) == 1
    text = explain(fast)
    assert "as one, LSTMs included: onnxruntime" in text, text
    assert "without gradient it runs in" not in text
    same(model, fast, (2, 20, 3), (4, 9, 3))


def test_weights_of_the_lstm_are_watched(fast_engine: Any) -> None:
    require("onnxruntime")
    fast_engine("onnxruntime", True)
    model = Reader().eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 20, 3), budget=100.0)
    same(model, fast, (2, 20, 3))
    with torch.no_grad():
        for m in (model, fast):
            m.lstm.weight_hh_l0[0, 0] += 1.0
    for _ in range(CALLS_BEFORE_REBUILD + 1):
        same(model, fast, (2, 20, 3))
    assert runner_of(fast).enabled and runner_of(fast)._same == 0


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(way: Any, fast_engine: Any) -> None:
    require("onnxruntime")
    fast_engine("onnxruntime", True)
    model = Reader().eval()
    fast = way(optimize(copy.deepcopy(model), torch.randn(2, 20, 3), budget=100.0))
    for _ in range(CALLS_BEFORE_REBUILD + 1):
        same(model, fast, (2, 20, 3))
    assert runner_of(fast)._bound is not None
    assert type(cnnlstm_fast.revert(fast)) is Reader


def test_the_next_process_knows(fast_engine: Any) -> None:
    require("onnxruntime")
    fast_engine("onnxruntime", True)
    x = torch.randn(2, 20, 3)
    model = Reader().eval()
    optimize(copy.deepcopy(model), x, budget=100.0)
    fast = optimize(copy.deepcopy(model), x, budget=100.0)
    assert runner_of(fast).record.cached and not runner_of(fast).plan.lstms
    same(model, fast, (2, 20, 3), (3, 8, 3))


def test_training_is_not_its_business(fast_engine: Any) -> None:
    require("onnxruntime")
    fast_engine("onnxruntime", True)
    model = Reader().eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 20, 3), budget=100.0)
    x = torch.randn(2, 20, 3)
    for m in (model.train(), fast.train()):
        m(x).square().sum().backward()
    for a, b in zip(model.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)


class Ragged(Reader):
    """With lengths, which no other engine has."""

    def forward(self, x: Tensor) -> Tensor:
        found = torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        lengths = torch.full((x.size(0),), found.size(1))
        return self.head(self.lstm(found, lengths=lengths)[0])


@pytest.mark.parametrize("make", [lambda: Reader(proj_size=2), Ragged], ids=["projection", "lengths"])
def test_what_only_our_lstm_does_stays_in_parts(make: Any) -> None:
    model = optimize(make().eval())
    captured = capture(model, (torch.randn(2, 20, 3),), {})
    assert prepare._whole(captured) is None
    assert prepare.Plan.of(captured).lstms


def test_a_whole_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    original = choose._record_inputs

    def failing(plan: prepare.Plan, call: Any) -> Any:
        if not plan.lstms:
            raise CannotCaptureError("no such luck")
        return original(plan, call)

    monkeypatch.setattr(choose, "_record_inputs", failing)
    model = Reader().eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 20, 3), budget=100.0)
    assert "PyTorch's LSTM: no such luck" in explain(fast)
    same(model, fast, (2, 20, 3), (3, 8, 3))
