"""Training steps by rewritten operators: the same numbers, buffers and random draws, and the usual ones elsewhere."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnnlstm_fast import _native, explain, optimize, revert
from cnnlstm_fast.encoder import rewrites, training
from cnnlstm_fast.encoder.agreement import agree
from cnnlstm_fast.encoder.modules import has_runner, install_trainer
from cnnlstm_fast.encoder.record import Candidate
from cnnlstm_fast.encoder.training import Trainer, TrainingRecord

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the compiled guard")

BOTH = "channels_last+onednn"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(rewrites, "SMALLEST_WEIGHT", 1)


class Clips(nn.Module):
    """Frames (B, 3, H, W) -> scores (B, 5), with every kind of state that a training step has. ``view``: of the
    features (B, 6, H, W), which fails with channels last unless H = W = 1."""

    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.lstm = nn.LSTM(6, 7, batch_first=True)
        self.head = nn.Linear(7, 5)
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.dropout(torch.relu(self.norm(self.conv1(x)))))
        x = (x.view(x.size(0), -1).view(x.size(0), 6, -1) if self.view else x.flatten(2)).transpose(1, 2)
        return self.head(self.lstm(x)[0][:, -1])


def trained(names: str = BOTH, view: bool = False) -> tuple[Any, Any]:
    """A model with a trainer, and a copy without."""
    torch.manual_seed(0)
    plain = Clips(view)
    fast = copy.deepcopy(plain)
    install_trainer(fast, Trainer(TrainingRecord(names, threads=torch.get_num_threads())))
    return fast, plain


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    found = model(x)
    found.square().sum().backward()
    return [found.detach(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]


class Usual(TorchFunctionMode):
    """A mode that changes nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def rewritten(model: Any, x: Tensor) -> bool:
    """Whether a call runs with channels last, seen from inside."""
    found: list[Tensor] = []
    original = model.conv2._conv_forward

    def keep(*args: Any) -> Tensor:
        found.append(original(*args))
        return found[-1]

    model.conv2._conv_forward = keep
    try:
        model(x)
    finally:
        del model.conv2._conv_forward
    return found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("names", ["channels_last", "onednn", BOTH])
def test_step_is_the_same(names: str) -> None:
    fast, plain = trained(names)
    for size in (4, 6, 4):
        x = torch.randn(size, 3, 5, 6)
        assert agree(step(fast, x), step(plain, x), None)  # gradients accumulate, too
    for p, q in zip(fast.parameters(), plain.parameters(), strict=True):
        assert p.grad.stride() == q.grad.stride()
    assert fast.norm.num_batches_tracked == 3
    assert rewritten(fast, x) == ("channels_last" in names)


def test_frozen_parameters_and_edited_weights() -> None:
    fast, plain = trained()
    x = torch.randn(4, 3, 5, 6)
    for model in (fast, plain):
        model.conv1.weight.requires_grad_(False)
        model.head.weight.requires_grad_(False)
        step(model, x)
        with torch.no_grad():
            model.head.weight.mul_(2.0)
            model.conv2.weight.add_(0.1)
        model.zero_grad()
    assert agree(step(fast, x), step(plain, x), None)
    assert fast.head.weight.grad is None


def test_second_derivatives() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    weight, bias = torch.randn(5, 6, requires_grad=True), torch.randn(5, requires_grad=True)

    def second(linear: Any) -> list[Tensor]:
        (first,) = torch.autograd.grad(linear(x, weight, bias).tanh().sum(), x, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), (x, weight, bias)))

    assert agree(
        second(rewrites.rules_of("onednn")[nn.functional.linear]), second(nn.functional.linear), None
    )


@pytest.mark.parametrize("usual", ["eval", "no_grad", "autocast", "threads", "mode"])
def test_other_calls_run_as_usual(usual: str) -> None:
    fast, _ = trained()
    x = torch.randn(4, 3, 5, 6)
    assert rewritten(fast, x)
    if usual == "eval":
        fast.eval()
        assert not rewritten(fast, x)
        fast.train()
    elif usual == "no_grad":
        with torch.no_grad():
            assert not rewritten(fast, x)
    elif usual == "autocast":
        with torch.autocast("cpu"):
            assert not rewritten(fast, x)
    elif usual == "threads":
        fast.__dict__["_cnnlstm_fast_trainer"].record.threads += 1
        assert not rewritten(fast, x)
        fast.__dict__["_cnnlstm_fast_trainer"].record.threads -= 1
    else:
        with Usual():
            assert not rewritten(fast, x)
    assert rewritten(fast, x)


def test_sizes_that_fail_with_another_layout_run_as_usual() -> None:
    """What the failed call has drawn and counted is undone."""
    fast, plain = trained(view=True)
    for size in ((4, 3, 1, 1), (4, 3, 5, 6), (4, 3, 5, 6)):
        x = torch.randn(size)
        assert agree(step(fast, x), step(plain, x), None)
    assert fast.norm.num_batches_tracked == 3
    with pytest.raises(RuntimeError, match="channels"):
        fast(torch.randn(4, 2, 5, 6))


def test_copies_and_pickles_train_alike() -> None:
    fast, plain = trained()
    x = torch.randn(4, 3, 5, 6)
    wanted = step(plain, x)
    for model in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert agree(step(model, x), wanted, None)
        assert rewritten(model, x)
        assert isinstance(model, Clips)
        assert not has_runner(revert(model))


def measured(monkeypatch: pytest.MonkeyPatch, faster: str) -> None:
    """Lets a candidate win."""

    def times(calls: Any, seconds: float, **options: Any) -> dict[str, list[float]]:
        for call in calls.values():
            call()
        return {name: [0.5 if name == faster else 1.0] * 5 for name in calls}

    monkeypatch.setattr(training, "interleave", times)


def test_optimize_in_train_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring leaves no trace; the next process reads the choice from the disk."""
    measured(monkeypatch, BOTH)
    plain = Clips()
    x = torch.randn(4, 3, 5, 6)
    before = copy.deepcopy(plain.state_dict())
    models = [copy.deepcopy(plain) for _ in range(2)]
    random = torch.get_rng_state()
    optimize(models[0], x, encoder="eager")
    monkeypatch.setattr(training, "_measure", None)
    optimize(models[1], x, encoder="eager")
    assert torch.equal(torch.get_rng_state(), random)
    for model in models:
        assert model.training
        assert all(p.grad is None for p in model.parameters())
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True)
        )
        assert rewritten(model, x)
        assert f"* {BOTH}:" in explain(model)
    assert "measured by an earlier process" in explain(models[1])
    assert "measured by an earlier process" not in explain(models[0]).partition("training:")[2]
    assert not rewritten(revert(models[0]), x)


def test_optimize_in_eval_mode_measures_no_training() -> None:
    model = optimize(Clips().eval(), torch.randn(4, 3, 5, 6), encoder="eager")
    assert "training: not measured; optimize(model.train(), example_inputs)" in explain(model)


def test_without_time_or_gain_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, "eager")
    x = torch.randn(4, 3, 5, 6)
    model = optimize(Clips(), x, encoder="eager")
    assert "* eager:" in explain(model).partition("training:")[2]
    assert not rewritten(model, x)
    monkeypatch.setattr(training, "STEPS", 10**9)
    assert "left of `budget`" in explain(optimize(Clips(view=True), x, encoder="eager"))


def test_wrong_candidates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, "onednn")
    wrong = {nn.functional.linear: lambda *args: nn.functional.linear(*args) * 1.001}
    monkeypatch.setitem(rewrites.REWRITES, "onednn", wrong)
    model = optimize(Clips(), torch.randn(4, 3, 5, 6), encoder="eager")
    assert "onednn:" in explain(model)
    assert "the error of output 0 is" in explain(model)


def test_gradients_that_are_zero_by_mathematics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a bias before a batch norm: every implementation finds other rounding errors."""

    class Jitter(torch.autograd.Function):
        size = 0.0

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad + Jitter.size

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.linear(x, weight) + Jitter.apply(bias)

    measured(monkeypatch, "onednn")
    monkeypatch.setitem(rewrites.REWRITES, "onednn", {nn.functional.linear: linear})
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64))
    x = torch.randn(64, 16)
    for Jitter.size, good in ((1e-5, True), (1e-1, False)):
        chosen = "* onednn:" in explain(optimize(model, x, encoder="eager"))
        revert(model)
        model[0].extra = good  # another key in the cache
        assert chosen is good


def test_layouts_of_dimensions_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of 1x1 convolutions have two layouts with the same numbers at the same places."""
    measured(monkeypatch, "channels_last")
    model = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.Tanh(), nn.Conv2d(8, 4, 3))
    assert "* channels_last:" in explain(optimize(model, torch.randn(4, 8, 6, 6), encoder="eager"))


def test_results_keep_their_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A permuted result stays permuted."""

    class Permuted(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).permute(1, 2, 3, 0)

    measured(monkeypatch, "onednn")
    model = optimize(Permuted(16, 32), torch.randn(3, 4, 5, 16), encoder="eager")
    assert "* onednn:" in explain(model)
    assert model(torch.randn(3, 4, 5, 16)).permute(3, 0, 1, 2).is_contiguous()


def test_hooks_are_not_called_by_a_measurement() -> None:
    model = Clips()
    calls: list[Tensor] = []
    model.conv1.weight.register_hook(calls.append)
    optimize(model, torch.randn(4, 3, 5, 6), encoder="eager")
    assert not calls
    assert "it has hooks" in explain(model)


def test_a_damaged_choice_is_measured_again() -> None:
    with pytest.raises(ValueError, match="there is no 'warp'"):
        TrainingRecord.from_json({"engine": "warp", "candidates": [{"engine": "eager"}]})
    record = TrainingRecord("onednn", [Candidate("onednn", 1.0)])
    assert (
        TrainingRecord.from_json({"engine": "onednn", "candidates": [vars(record.candidates[0])]}) == record
    )
