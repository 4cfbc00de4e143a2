"""verify tells right from wrong, and touches nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import one_thread
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import cnnlstm_fast
from cnnlstm_fast import BACKENDS, optimize, verify
from cnnlstm_fast.contract import ErrorRow
from cnnlstm_fast.recurrent.backends import Outputs
from cnnlstm_fast.recurrent.class_swap import is_fast
from cnnlstm_fast.verify import Report, SpeedRow


class Net(nn.Module):
    def __init__(self, lstm: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(3, 4, 3, padding=1)
        self.lstm = lstm or nn.LSTM(4, 8, 2, dropout=0.5)

    def forward(self, x: Tensor) -> Any:
        output, (h, c) = self.lstm(self.conv(x).permute(2, 0, 1))
        return {"scores": output, "states": [h, c], "note": "text"}


X = torch.randn(2, 3, 7)


def quick(model: nn.Module, inputs: Any) -> Report:
    with one_thread():  # on a busy machine PyTorch's threads wait for each other
        return verify(model, inputs, seconds=0.0)


def use_wrong(monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    """Puts a backend first in the table that spoils the reference's results."""
    base = BACKENDS["reference"]

    def forward(*args: Any) -> Outputs:
        return spoil(base.forward(*args))

    wrong = replace(base, name="wrong", forward=forward)
    monkeypatch.setattr("cnnlstm_fast.recurrent.dispatch.BACKENDS", {"wrong": wrong, **BACKENDS})
    cnnlstm_fast.recurrent.dispatch.forget_plans()


@pytest.fixture(autouse=True)
def _fresh_plans():
    yield
    cnnlstm_fast.recurrent.dispatch.forget_plans()


def test_a_right_model_passes() -> None:
    report = quick(Net(), X)
    assert report.ok and report.notes == []
    names = [row.what for row in report.errors]
    assert names[:3] == ["output 0", "output 1", "output 2"]
    assert {f"gradient of {n}" for n, _ in Net().named_parameters()} == set(names[3:])
    assert [row.what for row in report.speed] == ["forward", "forward + backward"]
    assert all(row.ratio > 0 and row.rounds >= 5 for row in report.speed)
    text = str(report)
    assert "verdict: same numbers" in text and "FAILED" not in text and "output 0" in text


@pytest.mark.parametrize(
    "spoil",
    [
        lambda o: o._replace(output=o.output * 1.001),
        lambda o: o._replace(c_n=o.c_n + 1e-4),
        lambda o: o._replace(output=o.output * float("nan")),
        lambda o: o._replace(output=o.output.detach() + 0.99 * (o.output - o.output.detach())),
    ],
    ids=["output", "state", "nan", "gradient"],
)
def test_a_wrong_backend_fails(spoil: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use_wrong(monkeypatch, spoil)
    report = quick(Net(), X)
    assert not report.ok and "FAILED" in str(report) and "NOT the same numbers" in str(report)


def test_a_wrong_backend_fails_in_a_model_that_was_optimized_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = optimize(Net())
    use_wrong(monkeypatch, lambda o: o._replace(output=o.output * 1.001))
    assert not quick(model, X).ok


def test_a_missing_gradient_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    use_wrong(monkeypatch, lambda o: Outputs(*[t.detach() for t in o]))
    report = quick(Net(), X)
    assert not report.ok
    failed = {row.what for row in report.errors if not row.ok}
    assert "gradient of conv.weight" in failed and "output 0" not in failed


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_the_model_is_left_alone(fast: bool, training: bool) -> None:
    model = Net().train(training)
    if fast:
        optimize(model)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    assert quick(model, X).ok
    assert is_fast(model.lstm) == fast and model.lstm.dropout == 0.5
    assert all(m.training == training for m in model.modules())
    assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight))
    assert model.lstm.weight_hh_l0.grad is None
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


def test_the_inputs_are_left_alone() -> None:
    x = torch.randn(2, 3, 7, requires_grad=True)
    kept = x.detach().clone()
    assert quick(Net(), x).ok
    assert torch.equal(x, kept) and x.grad is None


class Packer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, bidirectional=True)

    def forward(self, x: PackedSequence, scale: float = 1.0) -> Any:
        output, states = self.lstm(x)
        return output, states


def test_packed_input_and_output() -> None:
    packed = pack_padded_sequence(torch.randn(5, 3, 4), torch.tensor([2, 5, 3]), enforce_sorted=False)
    report = quick(Packer(), packed)
    assert report.ok and len([r for r in report.errors if r.what.startswith("output")]) == 3
    assert quick(Packer(), (packed, 2.0)).ok


def test_a_plain_lstm_with_states() -> None:
    hx = (torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    assert quick(nn.LSTM(4, 8, 2), (torch.randn(5, 3, 4), hx)).ok


def test_a_model_that_cannot_run_in_float64() -> None:
    class Single(Net):
        def forward(self, x: Tensor) -> Any:
            if x.dtype == torch.float64:
                raise RuntimeError("only float32 is taken here")
            return super().forward(x)

    report = quick(Single(), X)
    assert report.ok and "only float32 is taken here" in report.notes[0] and report.notes[0] in str(report)


def test_a_model_that_cannot_run_in_float64_still_fails_when_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Single(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.float())  # meets float64 weights

    use_wrong(monkeypatch, lambda o: o._replace(output=o.output * 1.01))
    assert not quick(Single(), X).ok


def test_bfloat16() -> None:
    assert quick(Net().bfloat16(), X.bfloat16()).ok


@pytest.mark.parametrize("seed", [12, 51, 61, 94, 131])  # a single draw failed here
def test_random_variation_of_a_single_number_passes(seed: int) -> None:
    """PyTorch's one rounded number may happen to be nearer to the exact one than ours."""

    class Forecast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 32, 2, batch_first=True)
            self.head = nn.Linear(32, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(seed)
    report = quick(Forecast().bfloat16(), torch.randn(1, 20, 3).bfloat16())
    assert report.ok, report


def test_a_frozen_model_has_no_training_row() -> None:
    report = quick(Net().requires_grad_(False), X)
    assert report.ok and [row.what for row in report.speed] == ["forward"]
    assert all(row.what.startswith("output") for row in report.errors)


def test_a_model_without_lstm_passes() -> None:
    assert quick(nn.Linear(3, 4), torch.randn(2, 3)).ok


def test_integer_outputs_count() -> None:
    class Reader(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)["scores"].argmax(-1)

    assert quick(Reader(), X).ok


def test_misuse() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got type"):
        verify(Net, X)
    with pytest.raises(TypeError, match="output"):
        quick(Silent(), X)


class Silent(Net):
    def forward(self, x: Tensor) -> str:
        return "nothing"


def test_rows() -> None:
    assert ErrorRow("a", 1e-7, 2e-6, 2e-6).ok and not ErrorRow("a", 1e-7, 3e-6, 2e-6).ok
    assert not ErrorRow("a", 0.0, float("inf"), 1.0).ok and not ErrorRow("a", 0.0, float("nan"), 1.0).ok
    report = Report([ErrorRow("a", 0.0, 1.0, 0.5)], [SpeedRow("forward", 2.0, 1.0, 2.0, 7)], ["a note"])
    assert not report.ok
    assert all(word in str(report) for word in ("FAILED", "2.00x", "7 paired rounds", "a note"))


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = Net()
    model.cache = torch.ones(2, requires_grad=True) * 2  # what hook-style weight norm leaves behind, too
    with pytest.raises(TypeError, match=r"model: expected one that copy\.deepcopy copies, got Net"):
        quick(model, X)
