"""The contract of an optimized model: what people do to a model, done to one whose calls run by engines."""

from __future__ import annotations

import copy
import io
import os
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnlstm_fast
from cnnlstm_fast import _native
from cnnlstm_fast.encoder.modules import has_runner
from cnnlstm_fast.encoder.runner import CALLS_BEFORE_REBUILD, Runner
from cnnlstm_fast.encoder.usual import RUNNER

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the compiled guard")


class Tagger(nn.Module):
    """Images (B, 1, 16, W) -> scores (B, W / 2, 5), with batch norm and dropout, as a text recogniser."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Dropout(0.5),
        )
        self.lstm = nn.LSTM(64, 12, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 5)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        features = self.cnn(x).flatten(1, 2).transpose(1, 2)
        return self.head(self.lstm(features)[0]) * self.scale


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def pair() -> tuple[Tagger, Tagger]:
    """A model and an optimized one with the same weights, in eval mode."""
    model = Tagger()
    with torch.no_grad():
        for _ in range(3):  # statistics of the batch norm that are not 0 and 1
            model(torch.randn(4, 1, 16, 20) * 2 + 1)
    model.eval()
    return model, cnnlstm_fast.optimize(copy.deepcopy(model), torch.randn(2, 1, 16, 20), encoder="onednn")


def runner_of(model: nn.Module) -> Runner:
    return model.__dict__[RUNNER]


def by_engine(model: nn.Module, call: Callable[[], Any]) -> bool:
    """Whether the call ran by the engines."""
    runner = runner_of(model)
    bound = runner._bound
    ran: list[bool] = []
    if bound is None:
        call()
        return False
    forward = bound.gate.forward
    bound.gate.forward = lambda *tensors: (ran.append(True), forward(*tensors))[1]
    try:
        call()
    finally:
        bound.gate.forward = forward
    return bool(ran)


def same(model: nn.Module, fast: nn.Module, x: Tensor, engine: bool = True) -> None:
    """Both give the same result without gradient, and the optimized one by its engines, or not."""
    with torch.no_grad():
        found: list[Tensor] = []
        assert by_engine(fast, lambda: found.append(fast(x))) == engine
        torch.testing.assert_close(found[0], model(x), rtol=1e-4, atol=1e-5)


def stays_eager(model: nn.Module, fast: nn.Module, x: Tensor) -> None:
    """However often it is called."""
    for _ in range(CALLS_BEFORE_REBUILD + 2):
        same(model, fast, x, engine=False)


@pytest.mark.parametrize(
    "shape", [(2, 1, 16, 20), (1, 1, 16, 20), (3, 1, 16, 33), (1, 1, 16, 2), (5, 1, 16, 64)]
)
def test_any_batch_size_and_length_runs_by_the_engines(
    pair: tuple[Tagger, Tagger], shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    pair[1](x)
    same(*pair, x)


def test_what_eager_refuses_raises_the_same_error(pair: tuple[Tagger, Tagger]) -> None:
    for x in (torch.randn(2, 3, 16, 20), torch.randn(2, 1, 15, 20), torch.randn(2, 1, 16, 20).double()):
        errors = []
        for model in pair:
            with torch.no_grad(), pytest.raises((RuntimeError, ValueError)) as caught:
                model(x)
            errors.append(type(caught.value))
        assert errors[0] is errors[1] or x.size(2) == 15  # our LSTM's own message for a wrong size
    same(*pair, torch.randn(2, 1, 16, 20))
    assert runner_of(pair[1]).enabled


def test_parameters_keys_and_class_stay(pair: tuple[Tagger, Tagger]) -> None:
    model, fast = pair
    assert isinstance(fast, Tagger) and type(fast).__name__ == "Tagger" and fast.__class__ is Tagger
    assert list(fast.state_dict()) == list(model.state_dict())
    assert [n for n, _ in fast.named_modules()] == [n for n, _ in model.named_modules()]
    assert repr(fast) == repr(model)
    before = list(model.parameters())
    again = cnnlstm_fast.optimize(model, torch.randn(2, 1, 16, 20), encoder="onednn")
    assert all(a is b for a, b in zip(before, again.parameters(), strict=True))


def test_results_are_not_overwritten_by_the_next_call(pair: tuple[Tagger, Tagger]) -> None:
    with torch.no_grad():
        first = pair[1](torch.randn(2, 1, 16, 20))
        kept = first.clone()
        pair[1](torch.randn(2, 1, 16, 20))
    assert torch.equal(first, kept)


def test_results_are_contiguous_where_those_of_eager_are() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()).eval()
    fast = cnnlstm_fast.optimize(copy.deepcopy(net), torch.randn(2, 3, 9, 9), encoder="onednn")
    with torch.no_grad():
        assert has_runner(fast) and fast(torch.randn(2, 3, 9, 9)).view(2, -1).shape == (2, 16 * 49)


# ---------------------------------------------------------------- weights

EDITS: dict[str, Callable[[Tagger], Any]] = {
    "in place": lambda m: m.cnn[0].weight.mul_(2.0),
    "one element": lambda m: m.head.bias.__setitem__(0, 3.0),
    "data": lambda m: m.cnn[0].weight.data.mul_(0.5),
    "replaced": lambda m: setattr(m.head, "weight", nn.Parameter(torch.ones(5, 24))),
    "of the LSTM": lambda m: m.lstm.weight_hh_l0.mul_(3.0),
    "buffer": lambda m: m.cnn[1].running_mean.add_(1.0),
    "load_state_dict": lambda m: m.load_state_dict({k: v * 1.5 for k, v in m.state_dict().items()}),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edited_weights_are_used_by_the_next_call(
    pair: tuple[Tagger, Tagger], edit: Callable[[Tagger], Any]
) -> None:
    x = torch.randn(2, 1, 16, 20)
    with torch.no_grad():
        for model in pair:
            edit(model)
    for _ in range(CALLS_BEFORE_REBUILD):
        same(*pair, x, engine=False)
    same(*pair, x, engine=True)


def test_weights_that_change_at_every_call_never_run_old(pair: tuple[Tagger, Tagger]) -> None:
    for _ in range(3 * CALLS_BEFORE_REBUILD):
        with torch.no_grad():
            for model in pair:
                model.head.weight.mul_(1.1)
        same(*pair, torch.randn(2, 1, 16, 20), engine=False)


# ---------------------------------------------------------------- modes


def test_train_and_eval(pair: tuple[Tagger, Tagger]) -> None:
    x = torch.randn(4, 1, 16, 20)
    for model in pair:
        model.train()
        torch.manual_seed(7)
        model(x).sum().backward()
    assert torch.allclose(pair[0].cnn[1].running_mean, pair[1].cnn[1].running_mean)
    for a, b in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    for model in pair:
        model.eval()
    same(*pair, x, engine=False)  # the statistics of batch norm have changed
    for _ in range(CALLS_BEFORE_REBUILD):
        pair[1](x)  # with gradients wanted it would run eager whatever the weights, and they may change again
    same(*pair, x, engine=False)
    with torch.no_grad():
        for _ in range(CALLS_BEFORE_REBUILD):
            pair[1](x)
    same(*pair, x)


def test_part_of_the_model_in_training_mode(pair: tuple[Tagger, Tagger]) -> None:
    for model in pair:
        model.cnn[1].train()
    stays_eager(*pair, torch.randn(4, 1, 16, 20))


def test_gradients_in_eval_mode(pair: tuple[Tagger, Tagger]) -> None:
    x = torch.randn(2, 1, 16, 20)
    grads = []
    for model in pair:
        given = x.clone().requires_grad_()
        model(given).square().sum().backward()
        grads.append([given.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_frozen_models_run_by_the_engines_with_gradients_enabled(pair: tuple[Tagger, Tagger]) -> None:
    model, fast = pair
    fast.requires_grad_(False)
    x = torch.randn(2, 1, 16, 20)
    for _ in range(CALLS_BEFORE_REBUILD + 1):  # requires_grad is part of what the guard knows
        fast(x)
    found = fast(x)
    assert not found.requires_grad
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)
    assert fast(x.clone().requires_grad_()).requires_grad


def test_inference_mode(pair: tuple[Tagger, Tagger]) -> None:
    x = torch.randn(2, 1, 16, 20)
    with torch.inference_mode():
        assert by_engine(pair[1], lambda: pair[1](x))
        torch.testing.assert_close(pair[1](x), pair[0](x), rtol=1e-4, atol=1e-5)


def test_autocast(pair: tuple[Tagger, Tagger]) -> None:
    x = torch.randn(2, 1, 16, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not by_engine(pair[1], lambda: pair[1](x))
        assert pair[1](x).dtype == pair[0](x).dtype == torch.bfloat16


def test_a_hook_registered_later_is_called(pair: tuple[Tagger, Tagger]) -> None:
    seen: list[tuple[int, ...]] = []
    x = torch.randn(2, 1, 16, 20)
    handle = pair[1].cnn[0].register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    stays_eager(*pair, x)
    assert seen == [(2, 8, 16, 20)] * (CALLS_BEFORE_REBUILD + 2)
    handle.remove()
    same(*pair, x)
    assert len(seen) == CALLS_BEFORE_REBUILD + 2


def test_an_attribute_that_forward_reads(pair: tuple[Tagger, Tagger]) -> None:
    for model in pair:
        model.scale = 3.0
    stays_eager(*pair, torch.randn(2, 1, 16, 20))


def test_a_submodule_that_is_replaced(pair: tuple[Tagger, Tagger]) -> None:
    head = nn.Linear(24, 5)
    for model in pair:
        model.head = head
    stays_eager(*pair, torch.randn(2, 1, 16, 20))


def test_other_dtypes(pair: tuple[Tagger, Tagger]) -> None:
    x = torch.randn(2, 1, 16, 20)
    for model in pair:
        model.double()
    stays_eager(*pair, x.double())
    for model in pair:
        model.float()
    same(*pair, x, engine=False)


# ---------------------------------------------------------------- transforms


def test_functional_call(pair: tuple[Tagger, Tagger]) -> None:
    x = torch.randn(2, 1, 16, 20)
    other = {name: value * 2.0 for name, value in pair[0].state_dict().items()}
    with torch.no_grad():
        expected = torch.func.functional_call(pair[0], other, (x,))
        found = torch.func.functional_call(pair[1], other, (x,))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    same(*pair, x)


def test_vmap_of_the_cnn() -> None:
    cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    fast = cnnlstm_fast.optimize(copy.deepcopy(cnn), torch.randn(2, 1, 8, 8), encoder="onednn")
    x = torch.randn(3, 2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(fast)(x), torch.vmap(cnn)(x), rtol=1e-4, atol=1e-5)


def test_compile_and_export(pair: tuple[Tagger, Tagger]) -> None:
    x = torch.randn(2, 1, 16, 20)
    with torch.no_grad():
        expected = pair[0](x)
        program = torch.export.export(pair[1], (x,))
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)
        compiled = torch.compile(pair[1], backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- copies, threads, processes


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: torch.load(_saved(m), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_have_engines_of_their_own(pair: tuple[Tagger, Tagger], copied: Callable[[Any], Any]) -> None:
    x = torch.randn(2, 1, 16, 20)
    fast = copied(pair[1])
    assert has_runner(fast) and runner_of(fast) is not runner_of(pair[1])
    for _ in range(CALLS_BEFORE_REBUILD):
        same(pair[0], fast, x, engine=False)
    same(pair[0], fast, x)
    with torch.no_grad():
        fast.head.bias.add_(1.0)
        torch.testing.assert_close(fast(x), pair[0](x) + 1.0, rtol=1e-4, atol=1e-5)
    same(*pair, x)


def test_a_shallow_copy_runs_eager(pair: tuple[Tagger, Tagger]) -> None:
    """As DataParallel makes them: its ``__dict__`` is its own, and the guard knows another one."""
    x = torch.randn(2, 1, 16, 20)
    shallow = copy.copy(pair[1])
    shallow.scale = 3.0
    same(pair[0], pair[1], x)
    with torch.no_grad():
        torch.testing.assert_close(shallow(x), 3.0 * pair[0](x), rtol=1e-4, atol=1e-5)


COPY_EDITS: dict[str, Callable[[Tagger], Any]] = {
    "an attribute": lambda m: setattr(m, "scale", 3.0),
    "training mode": lambda m: m.cnn.train(),
    "a hook": lambda m: m.cnn[0].register_forward_hook(lambda module, args, out: out + 1.0),
    "a submodule": lambda m: setattr(m, "cnn", nn.Sequential(*m.cnn, nn.Sigmoid())),
    "nothing": lambda m: None,
}


@pytest.mark.parametrize("edit", COPY_EDITS)
def test_a_copy_that_is_edited_before_its_first_call(pair: tuple[Tagger, Tagger], edit: str) -> None:
    model, fast = copy.deepcopy(pair[0]), copy.deepcopy(pair[1])
    for m in (model, fast):
        COPY_EDITS[edit](m)
    for k in range(CALLS_BEFORE_REBUILD + 2):
        torch.manual_seed(k)
        x = torch.randn(2, 1, 16, 20)
        results = []
        for m in (model, fast):
            torch.manual_seed(k)
            with torch.no_grad():
                results.append(m(x))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert by_engine(fast, lambda: fast(x)) == (edit == "nothing")


def _saved(model: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def test_several_threads_at_once(pair: tuple[Tagger, Tagger]) -> None:
    inputs = [torch.randn(2, 1, 16, 20 + 2 * k) for k in range(4)]
    with torch.no_grad():
        expected = [pair[0](x) for x in inputs]
    failed: list[BaseException] = []

    def work(k: int) -> None:
        try:
            with torch.no_grad():
                for _ in range(10):
                    torch.testing.assert_close(pair[1](inputs[k]), expected[k], rtol=1e-4, atol=1e-5)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_forked_child_runs_eager(pair: tuple[Tagger, Tagger]) -> None:
    x = torch.randn(2, 1, 16, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python, that a process with threads forks
        child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # PyTorch's own threads do not survive a fork either
            with torch.no_grad():
                engine = by_engine(pair[1], lambda: pair[1](x))
                code = 0 if not engine and torch.allclose(pair[1](x), pair[0](x), atol=1e-4) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_another_number_of_threads_has_the_engines_built_again(pair: tuple[Tagger, Tagger]) -> None:
    x = torch.randn(2, 1, 16, 20)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        for _ in range(CALLS_BEFORE_REBUILD):
            same(*pair, x, engine=False)
        same(*pair, x)
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------- failures


def test_an_engine_that_fails_is_left_with_one_warning(pair: tuple[Tagger, Tagger]) -> None:
    def fail(*tensors: Tensor) -> Any:
        raise RuntimeError("out of luck")

    x = torch.randn(2, 1, 16, 20)
    bound = runner_of(pair[1])._bound
    assert bound is not None
    bound.gate.forward = fail
    with torch.no_grad(), pytest.warns(UserWarning, match="out of luck") as caught:
        torch.testing.assert_close(pair[1](x), pair[0](x), rtol=1e-4, atol=1e-5)
        pair[1](x)
    assert len(caught) == 1
    assert "out of luck" in cnnlstm_fast.explain(pair[1])


def test_an_engine_that_is_wrong_for_new_sizes_is_not_used_for_them(pair: tuple[Tagger, Tagger]) -> None:
    bound = runner_of(pair[1])._bound
    assert bound is not None
    forward = bound.gate.forward
    bound.gate.forward = lambda x: tuple(t + float(x.size(0) == 1) for t in forward(x))
    same(*pair, torch.randn(2, 1, 16, 20))
    x = torch.randn(1, 1, 16, 20)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(pair[1](x), pair[0](x), rtol=1e-4, atol=1e-5)


def test_revert(pair: tuple[Tagger, Tagger]) -> None:
    model, fast = pair
    assert cnnlstm_fast.revert(fast) is fast
    assert type(fast) is Tagger and type(fast.lstm) is nn.LSTM and RUNNER not in fast.__dict__
    assert vars(fast).keys() == vars(model).keys()
    with torch.no_grad():
        x = torch.randn(2, 1, 16, 20)
        assert torch.equal(fast(x), model(x))


def test_a_dropped_model_is_freed(pair: tuple[Tagger, Tagger]) -> None:
    import gc

    fast = cnnlstm_fast.optimize(Tagger().eval(), torch.randn(2, 1, 16, 20), encoder="onednn")
    with torch.no_grad():
        fast(torch.randn(1, 1, 16, 20))
    gone = weakref.ref(fast)
    del fast
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- nested arguments and results


class Nested(nn.Module):
    """Features by name, states in a tuple, a number -> a dict of a tensor, a list and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8)
        self.lstm = nn.LSTM(8, 4, batch_first=True)

    def forward(self, features: dict[str, Tensor], states: Any, scale: float = 1.0) -> dict[str, Any]:
        found = torch.relu(self.left(features["left"])) - torch.relu(self.right(features["right"])) * scale
        output, (h_n, c_n) = self.lstm(found, (states[0], states[1]))
        return {"scores": output, "states": [h_n, (c_n,)], "kind": "nested", "none": None}


def nested(B: int = 3) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    left, right = torch.randn(2, B, 5, 6)
    return {"left": left, "right": right}, (torch.randn(1, B, 4), torch.randn(1, B, 4))


def same_nested(model: nn.Module, fast: nn.Module, *args: Any, engine: bool, **kwargs: Any) -> None:
    with torch.no_grad():
        found: list[Any] = []
        assert by_engine(fast, lambda: found.append(fast(*args, **kwargs))) == engine
        expected = model(*args, **kwargs)
    assert list(found[0]) == list(expected) and type(found[0]["states"]) is list
    assert found[0]["kind"] == "nested" and found[0]["none"] is None and type(found[0]["states"][1]) is tuple
    torch.testing.assert_close(found[0]["scores"], expected["scores"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0]["states"], expected["states"], rtol=1e-4, atol=1e-5)


def test_nested_arguments_and_results() -> None:
    model = Nested().eval()
    features, states = nested()
    fast = cnnlstm_fast.optimize(copy.deepcopy(model), (features, states), encoder="onednn")
    quick = runner_of(fast).quick
    for B in (3, 3, 2, 2, 5):
        features, states = nested(B)
        same_nested(model, fast, features, states, engine=True)
    with torch.no_grad():
        assert quick(fast, (features, states), {}) is not None
        assert quick(fast, (features, list(states)), {}) is None
        assert quick(fast, (features, states, 1.0), {}) is None
        assert quick(fast, (features, (*states, states[0])), {}) is None
        assert quick(fast, (features | {"more": states[0]}, states), {}) is None
        assert quick(fast, ({"left": features["left"], "wrong": features["right"]}, states), {}) is None
    same_nested(model, fast, {"right": features["right"], "left": features["left"]}, states, engine=True)
    same_nested(model, fast, features, states, scale=2.0, engine=False)
    same_nested(model, fast, features=features, states=states, engine=False)


def test_keyword_arguments_and_numbers_are_those_of_the_example() -> None:
    model = Nested().eval()
    features, states = nested()
    fast = cnnlstm_fast.optimize(copy.deepcopy(model).eval(), (features, states, 2.0), encoder="onednn")
    for scale, engine in ((2.0, True), (2.0, True), (3.0, False), (2, False)):
        features, states = nested()
        same_nested(model, fast, features, states, scale, engine=engine)
