"""Loops over frames that run as one call: where, and that nobody can tell but by the time."""

from __future__ import annotations

import copy
import functools
import gc
import json
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

from cnnlstm_fast import _native, explain, optimize, revert, verify
from cnnlstm_fast.encoder import cache, fold, frames, prepare
from cnnlstm_fast.encoder import runner as runners
from cnnlstm_fast.encoder.frame_runner import MOST_UNFINISHED, FrameRunner
from cnnlstm_fast.encoder.runner import CALLS_BEFORE_REBUILD
from cnnlstm_fast.encoder.usual import RUNNER

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the compiled guard")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the measurement of the whole model gives: one call is faster, unless a test says otherwise."""
    found = {"looped": 2.0, "folded": 1.0}
    monkeypatch.setattr(fold, "_times", lambda model, *states: (found["looped"], found["folded"]))
    return found


Features = Callable[[nn.Module, Tensor], list[Tensor]]


def plain(cnn: nn.Module, x: Tensor) -> list[Tensor]:
    return [cnn(x[:, t]) for t in range(x.size(1))]


class Video(nn.Module):
    """Frames (B, T, 2, 8, 8) -> (B, 5), by a loop that ``features`` runs."""

    def __init__(self, features: Features = plain, cnn: nn.Module | None = None) -> None:
        super().__init__()
        self.cnn = cnn or nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.lstm = nn.LSTM(144, 6, batch_first=True)
        self.head = nn.Linear(6, 5)
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(torch.stack(self.features(self.cnn, x), 1).flatten(2))[0][:, -1])


def pair(features: Features = plain, cnn: nn.Module | None = None) -> tuple[Video, Video]:
    """A model, and an optimized one with the same weights."""
    model = Video(features, cnn).eval()
    return model, optimize(copy.deepcopy(model), torch.randn(2, 4, 2, 8, 8), encoder="onednn")


@functools.cache
def _usual() -> tuple[Video, Video]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "_times", lambda model, *states: (2.0, 1.0))
        return pair()


def usual(features: Features = plain) -> tuple[Video, Video]:
    """Copies of a pair that was optimized with the usual loop, ready to run, now with another loop."""
    model, fast = copy.deepcopy(_usual())
    with torch.no_grad():
        for _ in range(CALLS_BEFORE_REBUILD):
            fast(torch.randn(2, 4, 2, 8, 8))
    model.features = fast.features = features
    return model, fast


def runner_of(module: nn.Module) -> FrameRunner:
    runner = module.__dict__[RUNNER]
    assert isinstance(runner, FrameRunner)
    return runner


def folded(model: Video) -> bool:
    return isinstance(model.cnn.__dict__.get(RUNNER), FrameRunner)


def rows(module: nn.Module, call: Callable[[], Any]) -> list[int]:
    """How many rows each call of the module's engines had."""
    bound = runner_of(module)._bound
    assert bound is not None
    forward, ran = bound.gate.forward, []

    def counted(x: Tensor) -> Any:
        ran.append(x.size(0))
        return forward(x)

    bound.gate.forward = counted
    try:
        call()
    finally:
        bound.gate.forward = forward
    return ran


def same(model: nn.Module, fast: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(fast(x.clone()), model(x.clone()), rtol=1e-4, atol=1e-5)


def runs(pair: tuple[Video, Video], x: Tensor, expected: list[int]) -> None:
    """The results are eager's, and the CNN runs on so many rows at once."""
    same(*pair, x)  # sizes that are new run both ways
    assert rows(pair[1].cnn, lambda: same(*pair, x)) == expected


# ---------------------------------------------------------------- which loops


def conv(kernel: type[nn.Module] = nn.Conv2d, inside: int = 2, *size: int) -> nn.Module:
    return nn.Sequential(kernel(inside, 4, *(size or (3,))), nn.ReLU(), nn.Flatten())


class Scored(nn.Module):
    """Features in a loop, and a score."""

    def __init__(self, cnn: nn.Module, features: Features) -> None:
        super().__init__()
        self.cnn, self.features = cnn, features
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack(self.features(self.cnn, x)).sum((0, 2)).unsqueeze(1))


FORMS: dict[str, tuple[nn.Module, tuple[int, ...], Features]] = {
    "x[:, t]": (conv(), (2, 4, 2, 8, 8), plain),
    "x[:, t] of one row": (conv(), (1, 4, 2, 8, 8), plain),
    "x[:, t, ...]": (
        conv(),
        (2, 4, 2, 8, 8),
        lambda cnn, x: [cnn(x[:, t, ...]) for t in range(x.size(1))],
    ),
    "x[t]": (conv(), (4, 2, 2, 8, 8), lambda cnn, x: [cnn(x[t]) for t in range(x.size(0))]),
    "x[:, :, t]": (
        conv(),
        (2, 2, 4, 8, 8),
        lambda cnn, x: [cnn(x[:, :, t]) for t in range(x.size(2))],
    ),
    "unbind": (conv(), (2, 4, 2, 8, 8), lambda cnn, x: [cnn(f) for f in x.unbind(1)]),
    "transpose": (conv(), (2, 4, 2, 8, 8), lambda cnn, x: [cnn(f) for f in x.transpose(0, 1)]),
    "permute": (conv(), (2, 2, 8, 8, 4), lambda cnn, x: [cnn(f) for f in x.permute(4, 0, 1, 2, 3)]),
    "split": (
        conv(),
        (2, 4, 2, 8, 8),
        lambda cnn, x: [cnn(f.squeeze(1)) for f in torch.split(x, 1, 1)],
    ),
    "grey": (
        conv(inside=1),
        (2, 4, 8, 8),
        lambda cnn, x: [cnn(x[:, t].unsqueeze(1)) for t in range(x.size(1))],
    ),
    "grey by slices": (
        conv(inside=1),
        (2, 4, 8, 8),
        lambda cnn, x: [cnn(x[:, t : t + 1]) for t in range(x.size(1))],
    ),
    "flattened": (
        nn.Sequential(nn.Linear(18, 4), nn.ReLU()),
        (2, 4, 2, 3, 3),
        lambda cnn, x: [cnn(x[:, t].flatten(1)) for t in range(x.size(1))],
    ),
    "contiguous of one row": (
        conv(),
        (1, 4, 2, 8, 8),
        lambda cnn, x: [cnn(x[:, t].contiguous().float()) for t in range(x.size(1))],
    ),
    "row by row": (conv(), (4, 2, 8, 8), lambda cnn, x: [cnn(x[i : i + 1]) for i in range(x.size(0))]),
    "windows": (
        conv(nn.Conv1d),
        (2, 2, 40),
        lambda cnn, x: [cnn(x[:, :, i : i + 10]) for i in range(0, x.size(2), 10)],
    ),
    "windows that overlap": (
        conv(nn.Conv1d),
        (2, 2, 43),
        lambda cnn, x: [cnn(x[:, :, i : i + 10]) for i in range(0, x.size(2) - 9, 3)],
    ),
    "every second": (
        conv(),
        (2, 7, 2, 8, 8),
        lambda cnn, x: [cnn(x[:, t]) for t in range(0, x.size(1), 2)],
    ),
    "two runs of the loop": (conv(), (2, 2, 2, 8, 8), lambda cnn, x: [*plain(cnn, x), *plain(cnn, x)]),
    "of a tensor made inside": (conv(), (2, 4, 2, 8, 8), lambda cnn, x: plain(cnn, x * 0.5)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inference", [False, True])
def test_all_frames_are_found_from_the_first_one(form: str, inference: bool) -> None:
    _, shape, features = FORMS[form]
    given: list[Tensor] = []
    features(lambda frame: (given.append(frame), frame)[1], torch.randn(shape))  # type: ignore[arg-type]
    loop = frames.find(given)
    assert loop is not None and loop.calls == len(given) // (2 if form.startswith("two") else 1)
    assert loop.rows == loop.calls * given[0].size(0)
    with torch.inference_mode(inference):
        given.clear()
        features(lambda frame: (given.append(frame), frame)[1], torch.randn(shape))  # type: ignore[arg-type]
        for k, frame in enumerate(given[: loop.calls]):
            following = loop.from_here(frame)
            if inference and form in ("windows that overlap", "every second"):
                assert following is None  # PyTorch does not say how long the tensor is
            else:
                assert following is not None and torch.equal(following, torch.stack(given[k : loop.calls]))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("form", FORMS)
def test_a_loop_runs_as_one_call(form: str) -> None:
    cnn, shape, features = FORMS[form]
    model = Scored(cnn, features).eval()
    fast = optimize(copy.deepcopy(model), torch.randn(shape), encoder="onednn")
    loop = runner_of(fast.cnn).record.loop
    assert loop is not None
    runs((model, fast), torch.randn(shape), [loop.rows] * (2 if form.startswith("two") else 1))
    text = explain(fast)
    assert f"{loop.calls} calls run as one" in text and "cnn.0:" not in text
    assert [name for name, m in fast.named_modules() if RUNNER in m.__dict__] == ["cnn", "head"]


UNFOLDED: dict[str, Features] = {
    "another order": lambda cnn, x: [cnn(x[:, t]) for t in reversed(range(x.size(1)))],
    "two swapped": lambda cnn, x: [cnn(x[:, t]) for t in (0, 1, 3, 2)],
    "some": lambda cnn, x: [cnn(x[:, t]) for t in range(x.size(1) - 1)],
    "no views": lambda cnn, x: [cnn(x[:, t] * 1.0) for t in range(x.size(1))],
    "one after the other": lambda cnn, x: [cnn(x[:, 0]), cnn(x[:, 0])],
    "of two": lambda cnn, x: [cnn(y[:, t]) for t in range(4) for y in (x, x + 1.0)],
}


@pytest.mark.parametrize("form", UNFOLDED)
def test_other_calls_stay(form: str) -> None:
    model, fast = pair(UNFOLDED[form])
    assert not folded(fast)
    assert "times, one by one: not for all frames of one tensor in order" in explain(fast)
    same(model, fast, torch.randn(3, 5, 2, 8, 8))


def test_a_recurrent_loop_stays() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(3, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h, c = x.new_zeros(x.size(0), 4), x.new_zeros(x.size(0), 4)
            for t in range(x.size(1)):
                h, c = self.cell(x[:, t], (h, c))
            return self.head(h)

    model = Cells().eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 4, 3), encoder="onednn")
    assert not any(isinstance(m.__dict__.get(RUNNER), FrameRunner) for m in fast.modules())
    same(model, fast, torch.randn(3, 4, 3))


@pytest.mark.parametrize(
    "batch, length, expected",
    [
        (2, 4, [8]),
        (1, 4, [4]),
        (2, 3, [6]),
        (1, 11, [8, 3]),
        (1, 9, [8, 1]),
        (3, 5, [6, 6, 3]),
        (2, 1, [2]),
        (9, 2, [9, 9]),
    ],
)
def test_other_sizes_run_at_most_the_examples_rows_at_once(
    batch: int, length: int, expected: list[int]
) -> None:
    runs(usual(), torch.randn(batch, length, 2, 8, 8), expected)


def test_a_part_of_a_larger_tensor() -> None:
    both = usual()
    data = torch.randn(6, 9, 2, 8, 8)
    for x in (data[2:4], data[:, 5:], data[1:3, 5:]):
        with torch.no_grad():
            both[1](x)
            expected = [8, 8, 2] if x.size(1) == 9 else [8] if x.size(0) == 2 else [6] * 4
            assert rows(both[1].cnn, lambda x=x: both[1](x)) == expected  # type: ignore[misc]
            torch.testing.assert_close(both[1](x), both[0](x), rtol=1e-4, atol=1e-5)


def test_strange_views_stay_inside_of_their_tensor() -> None:
    loop = frames.Loop(-4, None, 4, 8)
    x = torch.randn(2, 4, 2, 8, 8)
    for frame in (
        x.as_strided((2, 2, 8, 8), (400, 128, 8, 1), 100),
        x.diagonal(0, 3, 4)[:, 3],
        x[:, 3],
        x[1:, 2],
        x.expand(3, 2, 4, 2, 8, 8)[:, 1, 1],
        x[:, 1, :, 3:, 3:],
    ):
        found = loop.from_here(frame)
        assert found is None or torch.equal(found[0], frame)
    pairs = torch.view_as_real(torch.randn(2, 4, 2, 8, dtype=torch.complex64))
    for frame in (x, x[:, 0, :0], x[0, 0, 0, 0, 0], pairs[:, 1]):
        found = loop.from_here(frame)
        assert found is None or len(found) == 1


# ---------------------------------------------------------------- what a loop may do


def test_a_loop_that_ends_early() -> None:
    def early(cnn: nn.Module, x: Tensor) -> list[Tensor]:
        return plain(cnn, x)[: x.size(1)] if x.size(0) == 2 else [cnn(x[:, t]) for t in range(2)]

    both = usual(early)
    for _ in range(MOST_UNFINISHED):
        same(*both, torch.randn(1, 4, 2, 8, 8))
    runner = runner_of(both[1].cnn)
    assert runner.folds
    same(*both, torch.randn(1, 4, 2, 8, 8))
    assert not runner.folds and "3 loops in a row ended before their last frame" in explain(both[1])
    runs(both, torch.randn(2, 4, 2, 8, 8), [2] * 4)


def test_a_loop_that_ends_early_now_and_then() -> None:
    both = usual(lambda cnn, x: [cnn(x[:, t]) for t in range(x.size(1) if x.size(0) == 2 else 2)])
    for _ in range(2 * MOST_UNFINISHED):
        same(*both, torch.randn(1, 4, 2, 8, 8))
        runs(both, torch.randn(2, 4, 2, 8, 8), [8])


def _in_place(x: Tensor, t: int) -> None:
    x[:, t] += 1.0


def _by_data(x: Tensor, t: int) -> None:
    x.data[:, t] += 1.0


def _by_numpy(x: Tensor, t: int) -> None:
    x.numpy()[1, t, 1, 7, 7] += 1.0  # a single number, which no counter sees


@pytest.mark.parametrize("edit", [_in_place, _by_data, _by_numpy])
@pytest.mark.parametrize("when", ["once", "always"])
def test_frames_that_are_edited_by_the_loop(edit: Callable[[Tensor, int], None], when: str) -> None:
    def loop(cnn: nn.Module, x: Tensor) -> list[Tensor]:
        found = []
        for t in range(x.size(1)):
            if t == 3 or (when == "always" and x.size(0) == 3):
                edit(x, t)
            found.append(cnn(x[:, t]))
        return found

    both = usual(loop)
    for _ in range(3):
        same(*both, torch.randn(3, 5, 2, 8, 8))
        same(*both, torch.randn(2, 5, 2, 8, 8))


def test_a_buffer_that_is_filled_from_frame_to_frame() -> None:
    model, fast = usual()
    data = torch.randn(6, 2, 2, 8, 8)
    buffer = torch.zeros(2, 4, 2, 8, 8)
    with torch.no_grad():
        for k, frame in enumerate(data):
            buffer[:, k % 4] = frame
            torch.testing.assert_close(
                fast.cnn(buffer[:, k % 4]), model.cnn(buffer[:, k % 4]), rtol=1e-4, atol=1e-5
            )


def test_frames_in_another_order_and_more_than_once() -> None:
    model, fast = usual()
    x = torch.randn(2, 4, 2, 8, 8)
    with torch.no_grad():
        for t in (0, 1, 1, 0, 3, 2, 0, 0, 1, 2, 3, 3):
            torch.testing.assert_close(fast.cnn(x[:, t]), model.cnn(x[:, t]), rtol=1e-4, atol=1e-5)


def test_no_number_at_all() -> None:
    both = pair(cnn=nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()))
    x = torch.randn(2, 4, 2, 8, 8)
    x[0, 1, 0] = float("nan")
    assert rows(both[1].cnn, lambda: both[1].cnn(x[:, 0])) == []  # gradients
    with torch.no_grad():
        assert rows(both[1].cnn, lambda: both[1](x)) == [8]
        assert torch.equal(both[1](x).isnan(), both[0](x).isnan())


def test_two_networks_over_the_same_frames() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(), conv()

        def forward(self, x: Tensor) -> Tensor:
            return sum(self.a(x[:, t]) - 2 * self.b(x[:, t]) for t in range(x.size(1)))  # type: ignore[return-value]

    model = Two().eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 4, 2, 8, 8), encoder="onednn")
    for x in (torch.randn(2, 4, 2, 8, 8), torch.randn(1, 5, 2, 8, 8)):
        same(model, fast, x)
        assert rows(fast.a, lambda x=x: rows(fast.b, lambda: same(model, fast, x))) == [x.shape[:2].numel()]  # type: ignore[misc]


class Pyramid(nn.Module):
    """Several results, and one that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        fine = self.a(x).relu()
        return {"levels": [fine, self.b(fine)], "name": "pyramid"}


def test_several_results() -> None:
    def levels(cnn: nn.Module, x: Tensor) -> list[Tensor]:
        found = [cnn(x[:, t]) for t in range(x.size(1))]
        assert all(f["name"] == "pyramid" for f in found)
        return [torch.cat([level.mean((2, 3)) for level in f["levels"]], 1).repeat(1, 18) for f in found]

    runs(pair(levels, Pyramid()), torch.randn(2, 4, 2, 8, 8), [8])


# ---------------------------------------------------------------- results


def test_results_may_be_edited_and_have_memory_of_their_own() -> None:
    model, fast = pair(cnn=nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()))
    assert folded(fast)
    x = torch.randn(2, 4, 2, 8, 8)
    with torch.no_grad():
        found = []
        for t in range(4):
            found.append(fast.cnn(x[:, t]).mul_(2.0))
        for t, result in enumerate(found):
            expected = model.cnn(x[:, t])
            torch.testing.assert_close(result, 2.0 * expected, rtol=1e-4, atol=1e-5)
            assert result.stride() == expected.stride() and not result._is_view()
            assert result.untyped_storage().nbytes() == expected.untyped_storage().nbytes()
            assert result._version == 1
        assert len({result.data_ptr() for result in found}) == 4


def test_what_was_not_asked_for_goes_with_the_frames() -> None:
    _, fast = usual()
    x = torch.randn(2, 4, 2, 8, 8)
    with torch.no_grad():
        fast.cnn(x[:, 0])
    (ahead,) = runner_of(fast.cnn)._local.kept.values()
    kept = weakref.ref(ahead)
    del ahead
    gc.collect()
    assert kept() is not None
    del x
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("then", ["all frames", "other frames", "gradients", "edited weights"])
def test_what_was_not_asked_for_is_dropped(then: str) -> None:
    _, fast = usual()
    x, y = torch.randn(2, 4, 2, 8, 8), torch.randn(2, 4, 2, 8, 8)
    runner = runner_of(fast.cnn)
    with torch.no_grad():
        fast.cnn(x[:, 0])
        if then == "edited weights":
            fast.cnn[0].weight.mul_(2.0)
    kept = weakref.ref(next(iter(runner._local.kept.values())))
    with torch.set_grad_enabled(then == "gradients"):
        if then == "all frames":
            for t in range(1, 4):
                fast.cnn(x[:, t])
        else:
            fast.cnn(y[:, 0] if then == "other frames" else x[:, 1])
    gc.collect()
    assert kept() is None and len(runner._local.kept) == (then == "other frames")


def test_a_dropped_model_is_freed() -> None:
    _, fast = usual()
    with torch.no_grad():
        fast.cnn(torch.randn(2, 4, 2, 8, 8)[:, 0])
    gone = weakref.ref(fast.cnn)
    del fast
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- modes


def test_gradients() -> None:
    model, fast = usual()
    x = torch.randn(2, 4, 2, 8, 8)
    grads = []
    for m in (model, fast):
        given = x.clone().requires_grad_()
        m(given).square().sum().backward()
        grads.append([given.grad, *(p.grad for p in m.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert rows(fast.cnn, lambda: fast(x)) == []


def test_gradients_from_a_frame_on() -> None:
    model, fast = usual()
    x = torch.randn(2, 4, 2, 8, 8)
    with torch.no_grad():
        fast.cnn(x[:, 0])
    result = fast.cnn(x[:, 1])
    assert result.requires_grad
    torch.testing.assert_close(result, model.cnn(x[:, 1]), rtol=1e-4, atol=1e-5)


def test_training() -> None:
    model, fast = usual()
    x = torch.randn(2, 4, 2, 8, 8)
    with torch.no_grad():
        fast.cnn(x[:, 0])
        results = []
        for m in (model, fast):
            m.train()
            results.append([m.cnn(x[:, t]) for t in range(1, 4)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.cnn[1].running_mean, fast.cnn[1].running_mean)


@pytest.mark.parametrize("made", ["outside", "inside"])
def test_inference_mode(made: str) -> None:
    model, fast = usual()
    x = torch.randn(2, 4, 2, 8, 8)
    with torch.inference_mode():
        x = x * 2.0 if made == "inside" else x
        assert rows(fast.cnn, lambda: fast(x)) == [8]
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        for m in (model, fast):
            m.features = lambda cnn, x: [cnn(x[:, t].add_(1.0)) for t in range(x.size(1))]
        torch.testing.assert_close(fast(x.clone()), model(x.clone()), rtol=1e-4, atol=1e-5)
        fast.cnn(x[:, 0])
    with torch.no_grad():
        result = fast.cnn(x[:, 1])
        assert not result.is_inference()
        torch.testing.assert_close(result, model.cnn(x[:, 1]), rtol=1e-4, atol=1e-5)


def test_weights_that_are_edited_in_the_loop() -> None:
    model, fast = usual()
    x = torch.randn(2, 6, 2, 8, 8)
    with torch.no_grad():
        for t in range(6):
            if t in (2, 3):
                for m in (model, fast):
                    m.cnn[0].weight.mul_(1.5)
            torch.testing.assert_close(fast.cnn(x[:, t]), model.cnn(x[:, t]), rtol=1e-4, atol=1e-5)
    for _ in range(CALLS_BEFORE_REBUILD):
        same(model, fast, x)
    runs((model, fast), x, [8, 4])


def test_weights_that_another_thread_edits() -> None:
    """It may have had the engines built again before this thread asks for its next frame."""
    model, fast = usual()
    x = torch.randn(2, 4, 2, 8, 8)

    def edit() -> None:
        with torch.no_grad():
            for m in (model, fast):
                m.cnn[0].weight.mul_(2.0)
            for _ in range(CALLS_BEFORE_REBUILD + 1):
                fast.cnn(torch.randn(1, 2, 8, 8))

    with torch.no_grad():
        fast.cnn(x[:, 0])
        thread = threading.Thread(target=edit)
        thread.start()
        thread.join()
        torch.testing.assert_close(fast.cnn(x[:, 1]), model.cnn(x[:, 1]), rtol=1e-4, atol=1e-5)


def test_several_threads_at_once() -> None:
    model, fast = usual()
    shared = torch.randn(2, 4, 2, 8, 8)
    failed: list[BaseException] = []

    def work(k: int) -> None:
        try:
            generator = torch.Generator().manual_seed(k)
            for j in range(10):
                x = shared if j % 2 else torch.randn(1 + k % 2, 3 + k, 2, 8, 8, generator=generator)
                same(model, fast, x)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and runner_of(fast.cnn).folds


def test_each_thread_has_its_own_loop() -> None:
    _, fast = usual()
    x, y = torch.randn(2, 2, 4, 2, 8, 8).clone().unbind(0)

    def other() -> None:
        with torch.no_grad():
            fast.cnn(y.clone()[:, 0])

    def loop() -> None:
        for t in range(4):
            fast.cnn(x[:, t])
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()

    with torch.no_grad():
        assert rows(fast.cnn, loop) == [8] * 5  # one of this thread, one of each other


def test_a_shallow_copy() -> None:
    model, fast = usual()
    x = torch.randn(2, 4, 2, 8, 8)
    with torch.no_grad():
        fast.cnn(x[:, 0])
        shallow = copy.copy(fast.cnn)
        shallow._modules = {**fast.cnn._modules, "2": nn.Sigmoid()}
        expected = model.cnn[1](model.cnn[0](x[:, 1])).sigmoid().flatten(1)
        torch.testing.assert_close(shallow(x[:, 1]), expected, rtol=1e-4, atol=1e-5)


def test_a_forked_child_runs_frame_by_frame() -> None:
    model, fast = usual()
    x = torch.randn(2, 4, 2, 8, 8)
    with torch.no_grad():
        fast.cnn(x[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python, that a process with threads forks
        child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # PyTorch's own threads do not survive a fork either
            runner_of(fast.cnn)._look_ahead = lambda *args: os._exit(2)  # type: ignore[method-assign]
            with torch.no_grad():
                code = 0 if torch.allclose(fast(x), model(x), atol=1e-4) else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_hooks() -> None:
    model, fast = usual()
    seen: list[tuple[int, ...]] = []
    fast.cnn.register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    x = torch.randn(2, 4, 2, 8, 8)
    same(model, fast, x)
    fast.cnn[0].register_forward_hook(lambda m, args, out: seen.append(tuple(out.shape)))
    same(model, fast, x)
    assert seen == [(2, 144)] * 4 + [(2, 4, 6, 6), (2, 144)] * 4


def test_autocast_and_other_arguments() -> None:
    model, fast = usual()
    x = torch.randn(2, 4, 2, 8, 8)
    with torch.no_grad():
        fast.cnn(x[:, 0])
        with torch.autocast("cpu", torch.bfloat16):
            assert fast.cnn(x[:, 1]).dtype == torch.bfloat16
        fast.cnn(x[:, 0])
        with pytest.raises(TypeError):
            fast.cnn(x[:, 1], scale=2.0)
        with torch.autocast("cpu", torch.bfloat16):
            assert rows(fast.cnn, lambda: fast(x)) == []
        same(model, fast, x)
        torch.testing.assert_close(fast.cnn(input=x[:, 0]), model.cnn(x[:, 0]), rtol=1e-4, atol=1e-5)
        with pytest.raises(RuntimeError):
            fast.cnn(x[:, 0].double())
        with pytest.raises(RuntimeError):
            fast.cnn(torch.randn(2, 4, 3, 8, 8)[:, 0])
    same(model, fast, x)


def test_an_error_of_many_frames_leaves_the_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, fast = usual()
    runner = runner_of(fast.cnn)
    bound = runner._bound
    assert bound is not None
    forward = bound.gate.forward

    def short_of_memory(x: Tensor) -> Any:
        if x.size(0) > 2:
            raise RuntimeError("not enough memory")
        return forward(x)

    bound.gate.forward = short_of_memory
    original = runners.original_forward
    with monkeypatch.context() as patch:
        patch.setattr(
            runners,
            "original_forward",
            lambda m, args, kwargs: short_of_memory(*args) if m is fast.cnn else original(m, args, kwargs),
        )
        same(model, fast, torch.randn(2, 4, 2, 8, 8))
    assert not runner.folds and runner.enabled and "not enough memory" in explain(fast)
    same(model, fast, torch.randn(2, 4, 2, 8, 8))


# ---------------------------------------------------------------- what must not run at once


class Joint(nn.Module):
    """A CNN whose rows depend on each other, or whose results are not its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(2, 4, 3), how

    def forward(self, x: Tensor) -> Any:
        found = self.conv(x).relu().flatten(1)
        if self.how == "mean":
            return found - found.mean(0)
        if self.how == "a maximum above 100":
            return found / x.abs().max().clamp(min=100.0)
        if self.how == "no more than 7 rows" and x.size(0) > 7:
            raise ValueError("too many rows")
        if self.how == "one number":
            return found.sum()
        if self.how == "softmax":
            return found.softmax(0)
        if self.how == "returns its argument":
            return found, x
        if self.how == "one result twice":
            return found, found.view(-1, 4, 36)
        return found


@pytest.mark.parametrize(
    "how, reason",
    [
        ("mean", "the results for frames depend on each other"),
        ("no more than 7 rows", "ValueError: too many rows"),
        ("one number", "zero-dimensional tensor"),
        ("softmax", "the results for frames depend on each other"),
        ("a maximum above 100", "max.default may compute something of all frames together"),
        ("returns its argument", "a result shares memory with its argument or another result"),
        ("one result twice", "a result shares memory with its argument or another result"),
    ],
)
def test_what_must_not_run_at_once(how: str, reason: str) -> None:
    def loop(cnn: nn.Module, x: Tensor) -> list[Tensor]:
        found = [cnn(x[:, t]) for t in range(x.size(1))]
        return [(f[0] if isinstance(f, tuple) else f).expand(x.size(0), 144) for f in found]

    model, fast = pair(loop, Joint(how))
    assert not folded(fast) and reason in explain(fast)
    same(model, fast, 200.0 * torch.randn(2, 4, 2, 8, 8))


def test_what_random_frames_show() -> None:
    """The frames of the example have no negative number."""

    class Rectified(Joint):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) - x.clamp(max=0.0).sum((1, 2, 3), keepdim=True).flatten(1).cumsum(0)

    model = Video(cnn=Rectified("")).eval()
    fast = optimize(copy.deepcopy(model), torch.rand(2, 4, 2, 8, 8), encoder="onednn")
    assert not folded(fast) and "the results for random frames depend on each other" in explain(fast)
    same(model, fast, torch.randn(2, 4, 2, 8, 8))


def test_what_is_slower_at_once_stays_a_loop(times: dict[str, float]) -> None:
    times["folded"] = 1.99
    model, fast = pair()
    assert not folded(fast) and RUNNER in fast.cnn.__dict__ and RUNNER in fast.head.__dict__
    assert (
        "cnn is called 4 times, one by one: all at once the model would take 1.99e+03 ms instead of 2e+03 ms"
        in explain(fast)
    )
    same(model, fast, torch.randn(2, 4, 2, 8, 8))


def test_the_engine_named_eager_folds_nothing() -> None:
    fast = optimize(Video().eval(), torch.randn(2, 4, 2, 8, 8), encoder="eager")
    assert not any(RUNNER in m.__dict__ for m in fast.modules())


def test_what_was_found_faster_runs_at_once_also_without_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(prepare.choose.__globals__["ENGINES"]):
        if name != "eager":
            monkeypatch.delitem(prepare.choose.__globals__["ENGINES"], name)
    model = Video().eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 4, 2, 8, 8))
    assert folded(fast) and RUNNER not in fast.head.__dict__
    runs((model, fast), torch.randn(2, 4, 2, 8, 8), [8])


# ---------------------------------------------------------------- a whole model captured with its number of frames


class Encoder(nn.Module):
    """The features of four frames, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = conv()

    def forward(self, x: Tensor) -> Tensor:
        if x.size(1) != 4:
            raise ValueError("four frames")
        return torch.cat(plain(self.cnn, x), 1)


class Fixed(nn.Module):
    """A model around it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Linear(4 * 144, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


@pytest.mark.parametrize("faster", [True, False])
def test_a_captured_model_with_a_loop_inside(times: dict[str, float], faster: bool) -> None:
    times["folded"] = 1.0 if faster else 3.0
    model = Fixed().eval()
    x = torch.randn(2, 4, 2, 8, 8)
    fast = optimize(copy.deepcopy(model), x, encoder="onednn")
    names = [name for name, m in fast.named_modules() if RUNNER in m.__dict__]
    text = explain(fast)
    if faster:
        assert names == ["encoder.cnn", "head"]
        assert "it calls encoder.cnn in a loop, whose calls run as one" in text
        assert rows(fast.encoder.cnn, lambda: same(model, fast, x)) == [8]
    else:
        assert names == [""] and "head:" not in text
        assert "encoder.cnn is called 4 times, one by one: all at once the model would take 3e+03 ms" in text
        bound = fast.__dict__[RUNNER]._bound
        ran: list[bool] = []
        forward = bound.gate.forward
        bound.gate.forward = lambda *tensors: (ran.append(True), forward(*tensors))[1]
        same(model, fast, x)
        assert ran == [True]  # it has its engines back
    same(model, fast, torch.randn(3, 4, 2, 8, 8))
    text = explain(optimize(fast, x, encoder="eager"))
    assert "encoder.cnn" not in text.replace("region 0: encoder.cnn", "")


# ---------------------------------------------------------------- copies, revert, disk


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_fold(copied: Callable[[Any], Any]) -> None:
    model, fast = usual()
    x = torch.randn(2, 4, 2, 8, 8)
    with torch.no_grad():
        fast.cnn(x[:, 0])  # what is kept is not copied
    fast = copied(fast)
    for _ in range(CALLS_BEFORE_REBUILD):
        same(model, fast, x)
    runs((model, fast), x, [8])


def test_revert() -> None:
    model, fast = usual()
    revert(fast)
    assert type(fast.cnn) is nn.Sequential and vars(fast.cnn).keys() == vars(model.cnn).keys()
    x = torch.randn(2, 4, 2, 8, 8)
    with torch.no_grad():
        assert torch.equal(fast(x), model(x))


def test_verify() -> None:
    model, _ = usual()
    report = verify(model, torch.randn(2, 4, 2, 8, 8), seconds=0.1)
    assert report.ok, report


def _never(*args: Any) -> Any:
    raise AssertionError("measured again")


@pytest.mark.parametrize("faster", [True, False])
def test_the_next_process_folds_without_measuring(
    times: dict[str, float], monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    times["folded"] = 1.0 if faster else 3.0
    x = torch.randn(2, 4, 2, 8, 8)
    first = explain(optimize(Video().eval(), x, encoder="onednn"))
    for module, name in ((prepare, "choose"), (fold, "measure"), (fold, "_times")):
        monkeypatch.setattr(module, name, _never)
    model = Video().eval()
    fast = optimize(copy.deepcopy(model), x, encoder="onednn")
    assert folded(fast) == faster
    assert explain(fast).count("all at once" if not faster else "calls run as one") == 1
    assert [line for line in first.splitlines() if "frames:" in line] == [
        line for line in explain(fast).splitlines() if "frames:" in line
    ]
    same(model, fast, x)


@pytest.mark.parametrize("changed", ["sizes", "the model"])
def test_another_call_or_model_is_measured(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair()
    monkeypatch.setattr(fold, "_times", _never)
    with pytest.raises(AssertionError, match="measured again"):
        if changed == "sizes":
            optimize(Video().eval(), torch.randn(2, 5, 2, 8, 8), encoder="onednn")
        else:
            pair(lambda cnn, x: plain(cnn, x))


def test_a_stored_plan_with_other_results_is_not_used() -> None:
    x = torch.randn(2, 4, 2, 8, 8)
    optimize(Video().eval(), x, encoder="onednn")
    changed = 0
    for path in cache.folder().glob("*.json"):
        if json.loads(path.read_text())["record"]["loop"] is not None:
            path.write_text(path.read_text().replace("aten.relu.default", "aten.tanh.default"))
            changed += 1
    assert changed == 1
    model = Video().eval()
    fast = optimize(copy.deepcopy(model), x, encoder="onednn")
    assert folded(fast) and not runner_of(fast.cnn).record.cached
    same(model, fast, x)


def test_no_budget() -> None:
    fast = optimize(Video().eval(), torch.randn(2, 4, 2, 8, 8), encoder="onednn", budget=0.0)
    assert not folded(fast) and "nothing was left of `budget`" in explain(fast)


@pytest.mark.serial
def test_by_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    layers = nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(144, 4096), nn.ReLU(), nn.Linear(4096, 144)
    model = Video(cnn=nn.Sequential(*layers)).eval()  # weights that are read once instead of for each frame
    fast = optimize(copy.deepcopy(model), torch.randn(1, 32, 2, 8, 8), encoder="onednn")
    loop = runner_of(fast.cnn).record.loop
    assert loop is not None and loop.looped is not None and loop.folded is not None
    assert loop.folded < loop.looped
    runs((model, fast), torch.randn(1, 32, 2, 8, 8), [32])
