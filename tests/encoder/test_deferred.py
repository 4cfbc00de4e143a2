"""A named engine without an example: the model's first call in eval mode without gradient is the example."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlstm_fast import _native, explain, optimize, revert, verify
from cnnlstm_fast.encoder.deferred import Deferred
from cnnlstm_fast.encoder.engines import ENGINES, Engine, Options, Run
from cnnlstm_fast.encoder.region import Region
from cnnlstm_fast.encoder.runner import Runner
from cnnlstm_fast.encoder.usual import RUNNER

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the compiled guard")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Tagger(nn.Module):
    """Features (B, 8, T) -> scores (B, T, 5)."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv1d(8, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5)
        )
        self.lstm = nn.LSTM(16, 6, batch_first=True)
        self.head = nn.Linear(6, 5)
        self.how = how
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "counts":
            self.calls += 1
        elif self.how == "edits its argument":
            x.mul_(2.0)
        elif self.how == "edits a Parameter":
            with torch.no_grad():
                self.head.weight.mul_(2.0)
        return self.head(self.lstm(self.cnn(x).transpose(1, 2))[0])


def x(*sizes: int) -> Tensor:
    return torch.randn(sizes or (2, 8, 20))


@pytest.fixture
def pair() -> tuple[Tagger, Tagger]:
    """A model, and its copy that waits for its first call."""
    model = Tagger().eval()
    return model, optimize(copy.deepcopy(model), encoder="onednn")


def same(model: nn.Module, fast: nn.Module, *shapes: tuple[int, ...]) -> None:
    for shape in shapes or ((2, 8, 20),):
        given = x(*shape)
        with torch.no_grad():
            torch.testing.assert_close(fast(given.clone()), model(given.clone()), rtol=1e-4, atol=1e-5)


def waits(model: nn.Module) -> bool:
    return isinstance(model.__dict__.get(RUNNER), Deferred)


def captured(model: nn.Module) -> bool:
    return isinstance(model.__dict__.get(RUNNER), Runner)


def test_the_first_call_is_the_example(pair: tuple[Tagger, Tagger]) -> None:
    model, fast = pair
    assert waits(fast) and "will be captured at the first call" in explain(fast)
    same(model, fast)
    text = explain(fast)
    assert captured(fast) and "first call" not in text and "* onednn" in text and "(2, 8, 20)" in text
    same(model, fast, (2, 8, 20), (3, 8, 33), (1, 8, 5))


def test_the_first_result_is_that_of_before(pair: tuple[Tagger, Tagger]) -> None:
    before, given = optimize(pair[0]), x()
    with torch.no_grad():
        assert torch.equal(pair[1](given), before(given))


def test_parameters_keys_and_class_stay(pair: tuple[Tagger, Tagger]) -> None:
    model, _ = pair
    parameters = list(model.parameters())
    fast = optimize(model, encoder="onednn")
    assert fast is model and fast.__class__ is Tagger and waits(fast)
    assert all(a is b for a, b in zip(parameters, fast.parameters(), strict=True))
    assert list(fast.state_dict()) == list(pair[1].state_dict()) and repr(fast) == repr(revert(pair[1]))


def test_training_runs_as_before() -> None:
    torch.manual_seed(0)
    before = optimize(Tagger())
    fast = optimize(revert(copy.deepcopy(before)), encoder="onednn")
    given = x()
    for model in (before, fast):
        torch.manual_seed(1)
        model(given).square().sum().backward()
    for a, b in zip(before.parameters(), fast.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert torch.equal(before.cnn[1].running_mean, fast.cnn[1].running_mean) and waits(fast)
    before.eval()
    same(before, fast.eval())
    assert captured(fast)


CALLS: dict[str, Callable[[Tagger], Any]] = {
    "in training mode": lambda m: m.train(),
    "with a part in training mode": lambda m: m.cnn[3].train(),
    "with a hook inside": lambda m: m.cnn[0].register_forward_hook(lambda *_: None),
    "with a hook": lambda m: m.register_forward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("how", CALLS)
def test_other_calls_are_waited_out(pair: tuple[Tagger, Tagger], how: str) -> None:
    changed = CALLS[how](pair[1])
    with torch.no_grad():
        pair[1](x())
    assert waits(pair[1])
    changed.remove() if "hook" in how else pair[1].eval()
    same(revert(copy.deepcopy(pair[1])), pair[1])  # in training mode statistics have changed
    assert captured(pair[1])


def test_gradients_and_autocast_are_waited_out(pair: tuple[Tagger, Tagger]) -> None:
    model, fast = pair
    assert fast(x()).requires_grad and waits(fast)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fast(x()).dtype == torch.bfloat16 and waits(fast)
    model.requires_grad_(False)
    fast.requires_grad_(False)
    assert fast(x().requires_grad_()).requires_grad and waits(fast)
    given = x()  # nothing needs a gradient, though they are enabled
    torch.testing.assert_close(fast(given), model(given), rtol=1e-4, atol=1e-5)
    assert captured(fast)


def test_inference_mode(pair: tuple[Tagger, Tagger]) -> None:
    with torch.inference_mode():
        same(*pair)
        assert captured(pair[1])
    same(*pair)


def test_a_call_that_fails_is_no_example(pair: tuple[Tagger, Tagger]) -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="channels"):
        pair[1](x(2, 7, 20))
    assert waits(pair[1])
    same(*pair)
    assert captured(pair[1])


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_made_before_the_first_call(pair: tuple[Tagger, Tagger], how: str) -> None:
    model, fast = pair
    other = copy.deepcopy(fast) if how == "deepcopy" else pickle.loads(pickle.dumps(fast))
    same(model, other)
    assert captured(other) and waits(fast)
    same(model, fast)
    assert captured(fast)


def test_revert_before_the_first_call(pair: tuple[Tagger, Tagger]) -> None:
    model, fast = pair
    assert (
        type(revert(fast)) is Tagger
        and type(fast.lstm) is nn.LSTM
        and vars(fast).keys() == vars(model).keys()
    )
    same(model, fast)
    assert type(fast) is Tagger


def test_an_example_ends_the_wait(pair: tuple[Tagger, Tagger]) -> None:
    optimize(pair[1], x(), encoder="onednn")
    assert captured(pair[1])
    optimize(pair[1], encoder="onednn")
    assert waits(pair[1])
    assert waits(optimize(pair[1]))


def test_verify_of_a_model_that_waits(pair: tuple[Tagger, Tagger]) -> None:
    assert verify(pair[1], x(), seconds=0.05).ok and waits(pair[1])


# ---------------------------------------------------------------- the user's call is one call


@pytest.mark.parametrize("how", ["counts", "edits its argument", "edits a Parameter"])
def test_what_the_first_call_does_is_done_once(how: str) -> None:
    model = Tagger(how).eval()
    fast = optimize(copy.deepcopy(model), encoder="onednn")
    given = x()
    theirs, ours = given.clone(), given.clone()
    torch.manual_seed(0)
    with torch.no_grad():
        torch.testing.assert_close(fast(ours), model(theirs), rtol=1e-4, atol=1e-5)
    assert torch.equal(ours, theirs) and fast.calls == model.calls
    assert torch.equal(fast.head.weight, model.head.weight) and torch.initial_seed() == 0
    assert not waits(fast)
    if how == "edits a Parameter":
        assert "edits Parameters in place" in explain(fast)


def test_several_threads_at_once(pair: tuple[Tagger, Tagger]) -> None:
    given = [x() for _ in range(4)]
    found: list[Any] = [None] * 4

    def call(k: int) -> None:
        with torch.no_grad():
            found[k] = pair[1](given[k])

    threads = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        for k in range(4):
            torch.testing.assert_close(found[k], pair[0](given[k]), rtol=1e-4, atol=1e-5)
    assert captured(pair[1])


# ---------------------------------------------------------------- what cannot be


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(ENGINES["onednn"], name="absent", modules=("no_such_module",), pip="no-such-package")
    monkeypatch.setitem(ENGINES, "absent", absent)
    model = Tagger()
    with pytest.raises(
        RuntimeError, match=r"encoder: 'absent' is not installed: pip install no-such-package"
    ):
        optimize(model, encoder="absent")
    assert type(model) is Tagger and type(model.lstm) is nn.LSTM


def test_an_engine_that_runs_no_part_is_left_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    unable = replace(ENGINES["onednn"], name="unable", supports=lambda region, options: "it is Monday")
    monkeypatch.setitem(ENGINES, "unable", unable)
    model = Tagger().eval()
    fast = optimize(copy.deepcopy(model), encoder="unable")
    with pytest.warns(UserWarning, match="'unable' runs no part of this model: it is Monday") as caught:
        same(model, fast, (2, 8, 20), (2, 8, 20))
    assert len(caught) == 1 and type(fast) is Tagger and "it is Monday" in explain(fast)


@pytest.mark.parametrize("model", [nn.LSTM(3, 4), torch.jit.script(nn.Linear(2, 2))], ids=["lstm", "script"])
def test_modules_whose_calls_cannot_be_waited_for(model: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="encoder: 'onednn' runs no part of this model: it is a"):
        optimize(model, encoder="onednn")


def test_precision_by_request(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Options] = []

    def build(region: Region, example: tuple[Tensor, ...], options: Options) -> Run:
        built.append(options)
        return region.module.forward

    monkeypatch.setitem(ENGINES, "mine", Engine("mine", "mine", build))
    fast = optimize(Tagger().eval(), encoder="mine", precision="bf16")
    with torch.no_grad():
        fast(x())
    assert captured(fast) and {options.precision for options in built} == {"bf16"}
