"""What is captured of a stranger's model and what is not, how the engines are chosen, and what is kept on disk."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cnnlstm_fast import _native, explain, optimize
from cnnlstm_fast.encoder import cache, choose, elsewhere, prepare
from cnnlstm_fast.encoder.engines import ENGINES, Engine, Options, Run
from cnnlstm_fast.encoder.modules import has_runner
from cnnlstm_fast.encoder.options import How
from cnnlstm_fast.encoder.region import Region
from cnnlstm_fast.encoder.usual import RUNNER

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the compiled guard")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Frames(nn.Module):
    """Frames (B, T, 3, H, W) -> scores (B, 4): a CNN for each, then an LSTM over time. ``how`` is a line of forward."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 4)
        self.how = how
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "counts":
            self.calls += 1
        elif self.how == "edits a buffer":
            self.seen += 1
        elif self.how == "edits its argument":
            x.mul_(2.0)
        elif self.how == "draws random numbers":
            x = x + torch.randn_like(x)
        elif self.how == "branches on data" and x.sum() > 0:
            x = -x
        if self.how == "loops":
            found = torch.stack([self.cnn(x[:, t]).mean((2, 3)) for t in range(x.size(1))], 1)
        else:
            found = self.cnn(x.flatten(0, 1)).mean((2, 3)).view(x.size(0), x.size(1), 8)
        return self.head(self.lstm(found)[0][:, -1])


def runners(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if RUNNER in module.__dict__]


def same(model: nn.Module, fast: nn.Module, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(fast(x.clone()), model(x.clone()), rtol=1e-4, atol=1e-5)


def test_the_whole_model_is_captured() -> None:
    model = Frames().eval()
    fast = optimize(copy.deepcopy(model), torch.randn(1, 2, 3, 8, 8), encoder="onednn")
    assert runners(fast) == [""]
    same(model, fast, (1, 2, 3, 8, 8), (3, 5, 3, 8, 10), (2, 1, 3, 9, 8), (1, 1, 3, 8, 8))
    text = explain(fast)
    assert "region 0: cnn" in text and "region 1: head" in text and "* onednn" in text


VIEWS: dict[str, Callable[[int, int, int], Tensor]] = {
    "cut to the widest": lambda B, H, W: torch.randn(B, 3, H, W + 5)[..., :W],
    "a part of the batch": lambda B, H, W: torch.randn(B + 2, 3, H, W)[1:-1],
    "every second row": lambda B, H, W: torch.randn(B, 3, 2 * H, W)[:, :, ::2],
    "channels last": lambda B, H, W: torch.randn(B, H, W, 3).permute(0, 3, 1, 2),
    "a frame": lambda B, H, W: torch.randn(B, 4, 3, H, W)[:, 1],
    "expanded": lambda B, H, W: torch.randn(1, 3, H, W).expand(B, -1, -1, -1),
}
"""Pictures (B, 3, H, W) as models get them, parts of other tensors."""


@pytest.mark.parametrize("how", VIEWS)
def test_an_example_that_is_a_view(how: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(2)
    ).eval()
    fast = optimize(copy.deepcopy(model), VIEWS[how](4, 12, 14), encoder="onednn")
    assert runners(fast) == [""], explain(fast)
    with torch.no_grad():
        for view in VIEWS.values():
            for size in ((4, 12, 14), (1, 9, 20), (7, 30, 5)):
                x = view(*size)
                for _ in range(2):
                    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert not fast.__dict__[RUNNER].notes


def _log_spectrum(x: Tensor) -> Tensor:
    spectrum = torch.stft(x, 64, 32, window=torch.hann_window(64), return_complex=True)
    return spectrum.abs().clamp(min=1e-5).log()


def _phases(x: Tensor) -> Tensor:
    spectrum = torch.stft(x, 64, 32, window=torch.hann_window(64), return_complex=True)
    return torch.view_as_real(spectrum * spectrum.conj().roll(1, -1)).flatten(1, 1)[..., 0]


FRONTS: dict[str, Callable[[Tensor], Tensor]] = {
    "magnitudes": _log_spectrum,
    "phases": _phases,
    "windows": lambda x: x.unfold(-1, 33, 20).transpose(1, 2),
}
"""Of sound (B, n) the features (B, 33, T)."""


class Sound(nn.Module):
    """(B, n) -> (B, T, 8)."""

    def __init__(self, front: str) -> None:
        super().__init__()
        self.front = front
        self.cnn = nn.Sequential(nn.Conv1d(33, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 12, 1))
        self.lstm = nn.LSTM(12, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.cnn(FRONTS[self.front](x)).transpose(1, 2))[0]


@pytest.mark.parametrize("front", FRONTS)
def test_what_engines_have_not_is_left_to_pytorch(front: str) -> None:
    """Complex numbers and windows, of which there are no ONNX models with open sizes: the CNN behind has one."""
    if (reason := ENGINES["onnxruntime"].missing()) is not None:
        pytest.skip(reason)
    model = Sound(front).eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 400), encoder="onnxruntime")
    assert runners(fast) == [""], explain(fast)
    same(model, fast, (2, 400), (3, 520), (1, 333))
    assert [region.modules for region in fast.__dict__[RUNNER].record.regions] == [["cnn"]]


class Step(nn.Module):
    """One step of a policy: pictures (B, 3, H, W), states (1, B, 6) -> scores (B, 4) and the next states."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.lstm = nn.LSTM(8, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, (h, c) = self.lstm(self.cnn(x)[None], (h, c))
        return self.head(output[0]), h, c


@pytest.mark.parametrize("captured_at", [1, 4, 9])
def test_the_batch_of_states_varies_with_that_of_pictures(captured_at: int) -> None:
    def inputs(B: int) -> tuple[Tensor, ...]:
        return torch.randn(B, 3, 12, 12), torch.randn(1, B, 6), torch.randn(1, B, 6)

    model = Step().eval()
    fast = optimize(copy.deepcopy(model), inputs(captured_at), encoder="onednn")
    assert runners(fast) == [""]
    for B in (1, 2, 7):
        given = inputs(B)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(fast(*given), model(*given), rtol=1e-4, atol=1e-5)
    assert not fast.__dict__[RUNNER].notes


class Nowcast(nn.Module):
    """Maps (B, T, 1, H, W) -> a map (B, 1, H, W): an LSTM for each place of what the CNN makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.lstm = nn.Conv2d(1, 8, 4, stride=4), nn.LSTM(8, 6)
        self.up = nn.ConvTranspose2d(6, 1, 4, stride=4)

    def forward(self, maps: Tensor) -> Tensor:
        B, T = maps.shape[:2]
        found = torch.relu(self.down(maps.flatten(0, 1)))
        H, W = found.shape[2:]
        places = found.view(B, T, 8, H * W).permute(1, 0, 3, 2).reshape(T, B * H * W, 8)
        last = self.lstm(places)[1][0][-1]
        return self.up(last.view(B, H, W, 6).permute(0, 3, 1, 2))


@pytest.mark.parametrize("captured_at", [1, 3])
def test_a_reshape_that_is_a_view_of_a_batch_of_one(captured_at: int) -> None:
    model = Nowcast().eval()
    fast = optimize(copy.deepcopy(model), torch.randn(captured_at, 4, 1, 24, 32), encoder="onednn")
    assert runners(fast) == [""], explain(fast)
    same(model, fast, (1, 4, 1, 24, 32), (2, 6, 1, 8, 20), (3, 1, 1, 16, 12), (1, 1, 1, 8, 8))
    assert not fast.__dict__[RUNNER].notes


REASONS = {
    "edits a buffer": "edits a buffer or Parameter in place",
    "edits its argument": "edits an argument in place",
    "draws random numbers": "draws random numbers",
    "branches on data": "data-dependent",
    "loops": "takes the size x0[1] for fixed",
    "counts": "changes its own attributes",
}


@pytest.mark.parametrize("how", REASONS)
def test_where_the_whole_cannot_be_captured_its_modules_are(how: str) -> None:
    torch.manual_seed(0)
    model = Frames(how).eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 2, 3, 8, 8), encoder="onednn")
    assert runners(fast) == ["cnn", "head"]
    assert REASONS[how] in explain(fast)
    if how == "draws random numbers":
        for m in (model, fast):
            torch.manual_seed(1)
            with torch.no_grad():
                x = m(torch.ones(2, 2, 3, 8, 8))
            model.result = x if m is model else torch.testing.assert_close(x, model.result)
    else:
        same(model, fast, (2, 2, 3, 8, 8), (1, 5, 3, 8, 10))
    if how == "counts":
        assert fast.calls == model.calls  # those of optimize are not the user's


def test_hooks_inside_are_the_users_code() -> None:
    model = Frames().eval()
    seen: list[int] = []
    model.cnn[1].register_forward_hook(lambda m, args, out: seen.append(1))
    fast = optimize(model, torch.randn(2, 2, 3, 8, 8), encoder="onednn")
    assert "cnn.1 has a hook" in explain(fast) and runners(fast) == ["cnn.0", "cnn.1", "head"]
    seen.clear()
    with torch.no_grad():
        fast(torch.randn(2, 2, 3, 8, 8))
    assert seen == [1]


def test_normalised_weights_are_captured() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 4, 3)), nn.ReLU()).eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 2, 9), encoder="onednn")
    assert runners(fast) == [""]
    same(model, fast, (3, 2, 20))
    with torch.no_grad():
        for m in (model, fast):
            m[0].parametrizations.weight.original0.mul_(3.0)
    same(model, fast, (3, 2, 20))


class Answer(nn.Module):
    """Takes and returns what is no tensor, too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, pair: tuple[Tensor, Tensor], scale: float = 1.0, names: Any = None) -> dict[str, Any]:
        found = torch.relu(self.linear(pair[0])) * scale + pair[1]
        return {"found": [found, found.sum(-1)], "names": names, "scale": scale}


def test_nested_arguments_and_results() -> None:
    model = Answer().eval()
    x, y = torch.randn(4, 3), torch.randn(4, 5)
    fast = optimize(copy.deepcopy(model), ((x, y), 2.0, None), encoder="onednn")
    assert runners(fast) == [""]
    with torch.no_grad():
        for args, kwargs in (
            (((x, y), 2.0, None), {}),
            (((x[:1], y[:1]), 2.0, None), {}),
            (((x, y), 3.0, None), {}),
            (((x, y),), {"names": "a"}),
        ):
            found, expected = fast(*args, **kwargs), model(*args, **kwargs)
            assert found.keys() == expected.keys() and found["names"] == expected["names"]
            assert found["scale"] == expected["scale"]
            torch.testing.assert_close(found["found"], expected["found"], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- the choice


def _fake(name: str, change: Callable[[Run], Run]) -> Engine:
    """onednn under another name, changed."""

    def build(region: Region, example: tuple[Tensor, ...], options: Options) -> Run:
        return change(ENGINES["onednn"].build(region, example, options))

    return replace(ENGINES["onednn"], name=name, title=name, build=build, modules=(), pip="")


def _only(monkeypatch: pytest.MonkeyPatch, *engines: Engine) -> None:
    for name in list(ENGINES):
        if name != "eager":
            monkeypatch.delitem(ENGINES, name)
    for engine in engines:
        monkeypatch.setitem(ENGINES, engine.name, engine)


def _slow(run: Run) -> Run:
    def slow(*inputs: Tensor) -> tuple[Tensor, ...]:
        time.sleep(0.02)
        return run(*inputs)

    return slow


def test_a_wrong_and_a_slow_engine_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = _fake("wrong", lambda run: lambda *inputs: tuple(t * 1.001 for t in run(*inputs)))
    slow, missing = (
        _fake("slow", _slow),
        replace(_fake("absent", _slow), modules=("no_such_module",), pip="nothing"),
    )
    _only(monkeypatch, wrong, slow, missing, replace(ENGINES["onednn"], name="good"))
    monkeypatch.setitem(ENGINES, "onednn", replace(ENGINES["good"], name="onednn"))
    fast = optimize(Frames().eval(), torch.randn(8, 4, 3, 16, 16))
    text = explain(fast)
    assert "is wrong: error" in text and "not installed: pip install nothing" in text
    record = fast.__dict__[RUNNER].record if has_runner(fast) else prepare.outcomes[fast].record
    assert all(region.engine in ("eager", "good", "onednn") for region in record.regions)
    assert all(
        c.seconds >= 0.02 for r in record.regions for c in r.candidates if c.engine == "slow" and c.seconds
    )


def test_what_gains_nothing_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, _fake("slow", _slow))
    fast = optimize(Frames().eval(), torch.randn(1, 2, 3, 8, 8))
    assert type(fast) is Frames and runners(fast) == []
    assert "no engine is faster" in explain(fast)


def test_compilers_come_last_and_nothing_slow_for_a_small_part(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, int]] = []

    def noted(name: str, **kind: Any) -> Engine:
        def build(region: Region, example: tuple[Tensor, ...], options: Options) -> Run:
            built.append((name, example[0].dim()))
            return ENGINES["onednn"].build(region, example, options)

        return replace(ENGINES["onednn"], name=name, title=name, build=build, **kind)

    quick, foreign = noted("quick"), noted("foreign", modules=("torch",), pip="torch")
    compiler = noted("compiler", setup_seconds=1e-3)
    _only(monkeypatch, compiler, foreign, quick, ENGINES["onednn"])
    record_inputs = choose._record_inputs

    def with_shares(*given: Any) -> Any:
        trials = record_inputs(*given)
        for trial in trials:  # the CNN's, on pictures, and the head's, on (B, 6)
            trial.share = 0.9 if trial.inputs[0].dim() == 4 else 0.009
        return trials

    monkeypatch.setattr(choose, "_record_inputs", with_shares)
    fast = optimize(Frames().eval(), torch.randn(2, 2, 3, 64, 64), budget=100.0)
    assert built[:5] == [("foreign", 4), ("quick", 4), ("quick", 2), ("compiler", 4)]
    text = explain(fast)
    assert text.count("not tried: this region takes") == 2
    built.clear()
    optimize(Frames().eval(), torch.randn(2, 2, 3, 64, 64), encoder="foreign")
    assert built == [("foreign", 4), ("foreign", 2)]


def test_a_module_inside_that_takes_no_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(module: nn.Module, call: Any) -> float:
        return {nn.Sequential: 0.4, nn.Linear: 0.009}.get(type(module), 1.0)

    monkeypatch.setattr(prepare, "_seconds", seconds)
    x = torch.randn(2, 2, 3, 16, 16)
    fast = optimize(Frames("counts").eval(), x, budget=100.0)
    assert prepare.outcomes[fast.cnn].record is not None and prepare.outcomes[fast.head].record is None
    assert "head: not captured: it takes 0.9% of the model's call" in explain(fast)
    assert runners(optimize(Frames("counts").eval(), x, encoder="onednn")) == ["cnn", "head"]
    model, tried = Frames("loops").eval(), []
    monkeypatch.setattr(prepare, "_seconds", lambda module, call: 1.0 if module is model else 0.006)
    monkeypatch.setattr(prepare, "_try", lambda module, call, how: tried.append((module, how.share)) or True)
    prepare.prepare_children(model, (x,), {}, How("auto", None, math.inf, lambda text: None))
    assert tried == [(model.cnn, 0.012)]  # both frames together take more


@pytest.mark.parametrize("share, part", [(1.0, 1.0), (0.5, 0.5), (0.02, 1 / 6)])
def test_a_module_is_measured_for_its_part_of_the_time(
    share: float, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum of all modules' times does not grow with their number."""
    measured: list[float] = []

    class Noted(choose.Turns):
        def medians(self, seconds: float) -> list[float]:
            measured.append(seconds)
            return super().medians(seconds)

    for module in (choose, elsewhere):
        monkeypatch.setattr(module, "Turns", Noted)
    _only(monkeypatch, ENGINES["onednn"])
    module, x = Frames().eval().cnn, torch.randn(16, 3, 8, 8)
    prepare.measure(module, (x,), {}, How("auto", None, math.inf, lambda text: None, share))
    assert measured[:2] == pytest.approx([choose.MEASURE_SECONDS * part, choose.MEASURE_SECONDS * part / 2])
    assert all(seconds < measured[0] for seconds in measured[1:])


def test_what_comes_after_the_budget_is_open_in_its_sizes_and_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, ENGINES["onednn"])
    x = torch.randn(2, 2, 3, 16, 16)
    for budget in (0.0, 100.0):
        fast = optimize(Frames("counts").eval(), x, budget=budget)
        (cnn,) = (outcome for module, outcome in prepare.outcomes.items() if module is fast.cnn)
        assert cnn.record is not None and cnn.notes == ([] if budget else [prepare.LATE])
        assert (prepare.LATE in explain(fast)) == (not budget)
        assert any((tmp_path / "cache").rglob("*.json")) == bool(budget)
        if has_runner(fast.cnn):
            fixed = [c for c in fast.cnn.__dict__[RUNNER].plan.conditions if "==" in c]
            assert fixed == ["x0[1] == 3"]


def test_an_engine_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(region: Region, example: tuple[Tensor, ...], options: Options) -> Run:
        raise ValueError("no such luck\nand more")

    _only(monkeypatch, replace(_fake("failing", _slow), build=fail))
    assert "ValueError: no such luck" in explain(optimize(Frames().eval(), torch.randn(1, 2, 3, 8, 8)))
    with pytest.raises(RuntimeError, match=r"encoder: 'failing' runs no part of this model: .*no such luck"):
        optimize(Frames().eval(), torch.randn(1, 2, 3, 8, 8), encoder="failing")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(encoder="fastest"), r"encoder: expected 'auto' or one of eager, .*got 'fastest'"),
        (dict(precision="int4"), r"precision: expected None or 'bf16', got 'int4'"),
        (dict(precision="bf16"), r"precision: 'bf16' needs example_inputs"),
    ],
)
def test_nonsense(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimize(Frames(), **arguments)  # type: ignore[arg-type]


def test_without_example_inputs_explain_says_what_they_are_for() -> None:
    fast = optimize(Frames().eval())
    assert runners(fast) == [] and "example_inputs" in explain(fast)


def test_training_mode_is_restored_and_prepared_for_eval() -> None:
    model = Frames()
    model.cnn[1].eval()
    fast = optimize(model, torch.randn(2, 2, 3, 8, 8), encoder="onednn")
    assert fast.training and fast.cnn.training and not fast.cnn[1].training
    assert torch.equal(fast.cnn[1].running_mean, torch.zeros(8))


def test_bfloat16_by_request() -> None:
    model = Frames().eval()
    x = torch.randn(4, 3, 3, 16, 16)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        with pytest.raises(RuntimeError, match="oneDNN has no bfloat16 on this CPU; use 'auto'"):
            optimize(model, x, encoder="onednn", precision="bf16")
        return
    fast = optimize(copy.deepcopy(model), x, encoder="onednn", precision="bf16")
    with torch.no_grad():
        found, expected = fast(x), model(x)
    assert found.dtype == torch.float32
    error = float((found - expected).norm() / expected.norm())
    assert 1e-5 < error < 3e-2


# ---------------------------------------------------------------- on disk


def _stored() -> list[Path]:
    return sorted(cache.folder().glob("*"))


def test_the_next_model_of_the_same_code_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 2, 3, 8, 8)
    first = optimize(Frames().eval(), x, encoder="onednn")
    assert [p.suffix for p in _stored()] == [".json"]

    def never(*args: Any) -> Any:
        raise AssertionError("captured again")

    monkeypatch.setattr(prepare, "capture", never)
    monkeypatch.setattr(prepare, "choose", never)
    model = Frames().eval()
    fast = optimize(copy.deepcopy(model), x, encoder="onednn")
    assert runners(fast) == [""] and fast.__dict__[RUNNER].record.cached
    same(model, fast, (2, 2, 3, 8, 8), (3, 5, 3, 8, 10))
    with torch.no_grad():
        assert not torch.allclose(first(x), fast(x))


def test_the_next_process_needs_no_compiler() -> None:
    """To import PyTorch's takes two seconds."""
    program = """
        import sys, torch
        from torch import nn
        from cnnlstm_fast import optimize

        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
        optimize(model, torch.randn(2, 3, 8, 8), encoder="onednn")
        with torch.no_grad():
            model(torch.randn(5, 3, 8, 8))
        print(model.__dict__["_cnnlstm_fast_runner"].record.cached, "torch._dynamo" in sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2))
    assert (first.stdout.split(), second.stdout.split()) == (["False", "True"], ["True", "False"])


class Other(Frames):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + helper()


def helper() -> float:
    return 1.0


@pytest.mark.parametrize("changed", ["code", "an attribute", "sizes", "threads"])
def test_whatever_the_choice_depends_on_is_in_the_key(changed: str) -> None:
    x = torch.randn(2, 2, 3, 8, 8)
    optimize(Frames().eval(), x, encoder="onednn")
    model: nn.Module = (
        Other() if changed == "code" else Frames("nothing" if changed == "an attribute" else "")
    )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + (changed == "threads"))
        optimize(model.eval(), torch.randn(4, 2, 3, 8, 8) if changed == "sizes" else x, encoder="onednn")
    finally:
        torch.set_num_threads(threads)
    assert len(_stored()) == 2


def test_a_helpers_code_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 2, 3, 8, 8)
    optimize(Other().eval(), x, encoder="onednn")
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda: 2.0)
    prepare.fingerprint.__globals__["_code_of_class"].cache_clear()  # as in the next process
    optimize(Other().eval(), x, encoder="onednn")
    assert len(_stored()) == 2


def _damage(path: Path, how: str) -> None:
    data = json.loads(path.read_text())
    if how == "half written":
        path.write_text(path.read_text()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_text("")
    elif how == "another version":
        path.write_text(json.dumps(data | {"format": 0}))
    elif how == "another key":
        path.write_text(json.dumps(data | {"key": "0" * 64}))
    elif how == "code":
        data["plan"]["top"][0][1] = "x=__import__('os').abort()"
        path.write_text(json.dumps(data))
    elif how == "an unknown operator":
        nodes = data["plan"]["regions"][0]
        next(node for node in nodes if node[0] == "call_function")[1] = "aten.nothing.default"
        path.write_text(json.dumps(data))
    elif how == "a condition that is code":
        data["plan"]["conditions"].append("__import__('os').abort() == 0")
        path.write_text(json.dumps(data))
    elif how == "bytes":
        path.write_bytes(os.urandom(1000))


@pytest.mark.parametrize(
    "how",
    [
        *("half written", "empty", "another version", "another key", "bytes"),
        *("code", "an unknown operator", "a condition that is code"),
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning_and_replaced(how: str) -> None:
    x = torch.randn(2, 2, 3, 8, 8)
    optimize(Frames().eval(), x, encoder="onednn")
    (path,) = _stored()
    _damage(path, how)
    damaged = path.read_bytes()
    model = Frames().eval()
    with pytest.warns(UserWarning, match="is damaged"):
        fast = optimize(copy.deepcopy(model), x, encoder="onednn")
    same(model, fast, (2, 2, 3, 8, 8))
    assert _stored() == [path] and path.read_bytes() != damaged


def test_a_stored_plan_with_other_results_is_not_used() -> None:
    x = torch.randn(2, 2, 3, 8, 8)
    optimize(Frames().eval(), x, encoder="onednn")
    (path,) = _stored()
    path.write_text(path.read_text().replace("aten.relu.default", "aten.tanh.default"))
    model = Frames().eval()
    fast = optimize(copy.deepcopy(model), x, encoder="onednn")
    assert not fast.__dict__[RUNNER].record.cached
    same(model, fast, (2, 2, 3, 8, 8))


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    fast = optimize(Frames().eval(), torch.randn(2, 2, 3, 8, 8), encoder="onednn")
    assert runners(fast) == [""] and "could not be stored" in explain(fast)


def test_the_module_can_be_imported_without_the_engines() -> None:
    assert not {"onnxruntime", "openvino"} & _imported_by("import cnnlstm_fast")


def _imported_by(code: str) -> set[str]:
    import subprocess

    text = f"{code}; import sys; print(*(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return set(done.stdout.split())
