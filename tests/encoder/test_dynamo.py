"""``torch.compile(model, backend="cnnlstm_fast")``: the engines for Dynamo's graphs, all else as in eager."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cnnlstm_fast
from cnnlstm_fast import _compile_backend, _native, explain, optimize
from cnnlstm_fast.encoder import cache, dynamo, prepare
from cnnlstm_fast.encoder.deferred import Deferred
from cnnlstm_fast.encoder.engines import ENGINES
from cnnlstm_fast.encoder.runner import CALLS_BEFORE_REBUILD, Runner
from cnnlstm_fast.encoder.usual import RUNNER

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the compiled guard")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch._dynamo.reset()
    dynamo.graphs.clear()
    yield
    torch._dynamo.reset()


class Reader(nn.Module):
    """Images (B, 1, 8, W) -> scores (B, W / 2 * 5), with code that asks for sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.lstm = nn.LSTM(64, 12, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = F.max_pool2d(F.dropout(self.norm(self.conv(x)).relu(), 0.3, self.training), 2)
        b, c, h, w = features.shape
        sequence = features.permute(0, 3, 1, 2).reshape(b, w, c * h)
        output, _ = self.lstm(sequence)
        return self.head(output).view(b, w * 5)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def compiled(model: Any, encoder: str = "onednn", **arguments: Any) -> Any:
    return torch.compile(model, backend="cnnlstm_fast", options={"encoder": encoder}, **arguments)


def pair(dynamic: bool | None = True) -> tuple[Reader, Reader, Any]:
    """A model, a copy of it with fast LSTMs, and that one compiled."""
    model = Reader().eval()
    fast = optimize(copy.deepcopy(model))
    return model, fast, compiled(fast, dynamic=dynamic)


def runners() -> list[Any]:
    return [o.__dict__.get(RUNNER) for g in dynamo.graphs.values() for o in g._owners.values()]


def bound() -> list[bool]:
    """Whether each module has its engines built."""
    return [isinstance(runner, Runner) and runner._bound is not None for runner in runners()]


def by_engine(call: Callable[[], Any]) -> bool:
    """Whether one graph ran by its engines in the call."""
    ran: list[bool] = []
    forwards = [
        (r._bound.gate, r._bound.gate.forward) for r in runners() if isinstance(r, Runner) and r._bound
    ]
    for holder, forward in forwards:
        holder.forward = lambda *tensors, forward=forward: (ran.append(True), forward(*tensors))[1]
    try:
        call()
    finally:
        for holder, forward in forwards:
            holder.forward = forward
    return bool(ran)


def same(model: Any, fast: Any, *inputs: Tensor, engine: bool | None = None) -> None:
    with torch.no_grad():
        for x in inputs or (torch.randn(2, 1, 8, 20),):
            found: list[Tensor] = []
            ran = by_engine(lambda x=x, found=found: found.append(fast(x)))
            torch.testing.assert_close(found[0], model(x), rtol=1e-4, atol=1e-5)
            assert engine is None or ran == engine


# ---------------------------------------------------------------- graphs and sizes


def test_a_model_with_fast_lstms_is_one_graph_for_all_sizes() -> None:
    model, fast, call = pair()
    shapes = [(2, 1, 8, 20), (3, 1, 8, 31), (5, 1, 8, 64)]
    same(model, call)
    same(model, call, *(torch.randn(s) for s in shapes), engine=True)
    assert bound() == [True]
    (runner,) = runners()
    assert len(runner.plan.lstms) == 1 and [r.engine for r in runner.record.regions] == ["onednn"] * 2
    text = explain(fast)
    assert "a graph of torch.compile: captured" in text and "* onednn" in text
    assert "torch.compile" not in explain(model)


def test_automatic_dynamic_sizes_stop_recompiling() -> None:
    model, _, call = pair(dynamic=None)
    for width in (20, 22, 24, 26, 28):
        for batch in (2, 3, 4):
            same(model, call, torch.randn(batch, 1, 8, width))
    assert len(dynamo.graphs) <= 3 and all(bound())
    same(model, call, torch.randn(3, 1, 8, 30), engine=True)


def test_what_is_before_a_plain_lstm_runs_by_the_engines() -> None:
    """Dynamo stops there, and hands over the sizes that the rest of the function needs."""
    model = Reader().eval()
    call = compiled(copy.deepcopy(model), dynamic=True)
    same(model, call)
    same(model, call, torch.randn(2, 1, 8, 20), torch.randn(3, 1, 8, 31), engine=True)
    (runner,) = runners()
    assert runner.plan.lstms == () and len(runner.record.regions) == 1
    (graph,) = dynamo.graphs.values()
    assert graph._sizes


def test_a_function_with_numbers() -> None:
    def scaled(x: Tensor, weight: Tensor, k: int) -> Tensor:
        return F.linear(x, weight).relu() * k

    weight = torch.randn(16, 16)
    call = compiled(scaled, dynamic=True)
    for k in (3, 4, 3):
        for rows in (3, 5, 9):
            same(
                lambda x, k=k: scaled(x, weight, k), lambda x, k=k: call(x, weight, k), torch.randn(rows, 16)
            )
    assert len(dynamo.graphs) == 1 and bound() == [True]


def test_negative_sizes_are_returned() -> None:
    def short(x: Tensor) -> tuple[Tensor, int]:
        n = x.size(0) - 5
        torch._dynamo.graph_break()
        return x * 2, n

    with torch.no_grad():
        call = compiled(short, "auto", dynamic=True)
        assert [call(torch.ones(k, 2))[1] for k in (3, 4, 9)] == [-2, -1, 4]


def test_layers_of_one_class_share_a_graph() -> None:
    layers = [Block().eval() for _ in range(3)]
    calls = [compiled(layer) for layer in layers]
    for _ in range(CALLS_BEFORE_REBUILD + 1):
        for layer, call in zip(layers, calls, strict=True):
            same(layer, call, torch.randn(2, 4, 9))
    assert len(dynamo.graphs) == 1 and bound() == [True] * 3
    for layer, call in zip(layers, calls, strict=True):
        same(layer, call, torch.randn(2, 4, 9), engine=True)


def test_weights_given_anew_in_every_call_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo, "MOST_WEIGHTS", 3)

    def layer(x: Tensor, weight: nn.Parameter) -> Tensor:
        return F.linear(x, weight)

    call = compiled(layer)
    for _ in range(6):
        weight = nn.Parameter(torch.randn(4, 4))
        same(lambda x, w=weight: layer(x, w), lambda x, w=weight: call(x, w), torch.randn(2, 4))
    (graph,) = dynamo.graphs.values()
    assert len(graph._owners) == 3


# ---------------------------------------------------------------- weights and modes


EDITS: dict[str, Callable[[Reader], Any]] = {
    "in place": lambda m: m.conv.weight.mul_(2.0),
    "data": lambda m: m.head.weight.data.mul_(0.5),
    "replaced": lambda m: setattr(m.head, "weight", nn.Parameter(torch.ones(5, 24))),
    "of the LSTM": lambda m: m.lstm.weight_hh_l0.mul_(3.0),
    "buffer": lambda m: m.norm.running_mean.add_(1.0),
    "load_state_dict": lambda m: m.load_state_dict({k: v * 1.5 for k, v in m.state_dict().items()}),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edited_weights_are_used_by_the_next_call(edit: Callable[[Reader], Any]) -> None:
    model, fast, call = pair()
    same(model, call)
    same(model, call, engine=True)
    with torch.no_grad():
        for m in (model, fast):
            edit(m)
    for _ in range(CALLS_BEFORE_REBUILD):
        same(model, call, engine=False)
    same(model, call, engine=True)


def test_training_and_then_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo, "has_compiler", lambda: False)
    model, fast, call = pair()
    same(model, call)
    x = torch.randn(4, 1, 8, 20)
    for m, run in ((model, model), (fast, call)):
        m.train()
        torch.manual_seed(7)
        run(x).square().sum().backward()
        torch.optim.SGD(m.parameters(), 0.1).step()
        m.eval()
    for a, b in zip(model.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.norm.running_var, model.norm.running_var)
    for _ in range(CALLS_BEFORE_REBUILD):
        same(model, call, engine=False)
    same(model, call, engine=True)


@pytest.mark.slow
def test_calls_that_need_gradients_are_compiled_by_inductor() -> None:
    model, fast, call = pair()
    x = torch.randn(4, 1, 8, 20)
    for run in (model, call):
        run(x).square().sum().backward()
    for a, b in zip(model.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    assert len(dynamo.graphs) == 0


def test_gradients_enabled_where_nothing_needs_one() -> None:
    model, fast, call = pair()
    for m in (model, fast):
        m.requires_grad_(False)
    x = torch.randn(2, 1, 8, 20)
    call(x)
    assert by_engine(lambda: torch.testing.assert_close(call(x), model(x), rtol=1e-4, atol=1e-5))


def test_training_mode_without_gradient_edits_statistics_once() -> None:
    for norm in (nn.BatchNorm1d(8), nn.InstanceNorm1d(8, track_running_stats=True)):
        model = nn.Sequential(nn.Conv1d(4, 8, 3), norm, nn.Dropout(0.5))
        fast = copy.deepcopy(model)
        torch._dynamo.reset()
        with pytest.warns(UserWarning, match="edits"):
            call = compiled(fast)
            for k in range(3):
                x = torch.randn(3, 4, 9)
                results = []
                for run in (model, call):
                    torch.manual_seed(k)
                    with torch.no_grad():
                        results.append(run(x))
                torch.testing.assert_close(*results)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(fast.get_buffer(name), buffer)


def test_a_compiled_optimizer_steps_once_a_step() -> None:
    results = []
    for compile_it in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
        step = compiled(optimizer.step, "auto") if compile_it else optimizer.step
        for _ in range(3):
            layer(torch.ones(2, 4)).square().sum().backward()
            step()
            optimizer.zero_grad()
        results.append(layer.weight.detach())
    torch.testing.assert_close(*results)


def test_edits_of_arguments_and_parameters_are_made_once() -> None:
    def double(x: Tensor) -> Tensor:
        return x.mul_(2.0)

    for x in (torch.ones(3), nn.Parameter(torch.ones(3))):
        with torch.no_grad():
            compiled(double, "auto")(x)
        assert torch.equal(x, torch.full((3,), 2.0))


def test_autocast_and_inference_mode() -> None:
    model, _, call = pair()
    x = torch.randn(2, 1, 8, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            assert call(x).dtype == model(x).dtype == torch.bfloat16
    assert [type(runner) for runner in runners()] == [Deferred]
    with torch.inference_mode():
        call(x)
        assert by_engine(lambda: torch.testing.assert_close(call(x), model(x), rtol=1e-4, atol=1e-5))


# ---------------------------------------------------------------- the choice, options


def test_engines_are_chosen_by_measurement_and_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(ENGINES):
        if name not in ("eager", "onednn"):
            monkeypatch.delitem(ENGINES, name)

    def records() -> list[Any]:
        owners = [o for g in dynamo.graphs.values() for o in g._owners.values()]
        return [prepare.outcomes[owner].record for owner in owners]

    found = []
    for _ in range(2):
        torch._dynamo.reset()
        dynamo.graphs.clear()
        model, _, _ = pair()
        call = torch.compile(model, backend="cnnlstm_fast", dynamic=True, options={"budget": 1.0})
        same(Reader.forward.__get__(copy.deepcopy(model)), call)
        found += records()
    assert [record.cached for record in found] == [False, True]
    assert found[0].regions[0].candidates[1].seconds and found[1].regions == found[0].regions


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(options={"threads": 2}), "options: expected some of encoder, precision, budget, got 'threads'"),
        (dict(options={"encoder": "fastest"}), "encoder: expected 'auto' or one of eager, .*got 'fastest'"),
        (dict(options={"precision": "int4"}), "precision: expected None or 'bf16', got 'int4'"),
        (dict(mode="max-autotune"), "mode: expected None, got 'max-autotune'"),
    ],
)
def test_nonsense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        torch.compile(Block().eval(), backend="cnnlstm_fast", **arguments)(torch.randn(2, 4, 9))


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(ENGINES["onednn"]), "missing", lambda self: "not installed: pip install it")
    with pytest.raises(Exception, match="encoder: 'onednn' is not installed: pip install it"):
        compiled(Block().eval())(torch.randn(2, 4, 9))


def test_a_graph_that_is_not_captured_is_compiled_once() -> None:
    """Capturing it must not have Dynamo forget its graphs."""
    weight = torch.randn(3, 3)

    def noisy(x: Tensor) -> Tensor:
        return F.linear(x, weight) + torch.randn_like(x)

    call = compiled(noisy, "auto")
    made = []
    with torch.no_grad():
        for _ in range(3):
            call(torch.ones(2, 3))
            made.append(set(dynamo.graphs))
    assert len(made[0]) == 1 and made[0] == made[1] == made[2]


def test_other_graphs_have_another_file() -> None:
    """Of the same shapes and weights."""
    call, other = compiled(lambda x, w: F.linear(x, w).relu()), compiled(lambda x, w: F.linear(x, w).tanh())
    x, w = torch.randn(3, 4), nn.Parameter(torch.randn(4, 4))
    with torch.no_grad():
        call(x, w), other(x, w)
    assert len(list(cache.folder().glob("*.json"))) == 2


# ---------------------------------------------------------------- the name


def _run(code: str, *paths: Path) -> str:
    """What the code prints in a new process."""
    path = os.pathsep.join(map(str, (*paths, ROOT)))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


COMPILED = "torch.compile(torch.nn.Linear(2, 2), backend='cnnlstm_fast')"


def test_import_makes_the_name_known_and_leaves_dynamo_alone() -> None:
    code = f"import torch, sys, cnnlstm_fast; print('torch._dynamo' in sys.modules); {COMPILED}"
    code += "; print(len([f for f in sys.meta_path if 'cnnlstm' in type(f).__module__]))"
    code += "; print(sys.modules['torch._dynamo.backends.registry']._COMPILER_FNS['cnnlstm_fast'].__module__)"
    assert _run(code).split() == ["False", "0", "cnnlstm_fast.encoder.dynamo"]


@pytest.mark.slow
def test_import_after_dynamo() -> None:
    assert _run(f"import torch._dynamo, cnnlstm_fast, torch; {COMPILED}; print(1)").strip() == "1"


def test_an_installation_makes_the_name_known_without_import(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry = _compile_backend.ENTRY_POINT
    assert project["entry-points"][entry.group] == {entry.name: entry.value}
    folder = tmp_path / "cnnlstm_fast-9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: cnnlstm-fast\nVersion: 9\n")
    (folder / "entry_points.txt").write_text(f"[{entry.group}]\n{entry.name} = {entry.value}\n")
    code = f"import torch, sys; print('cnnlstm_fast' in sys.modules); {COMPILED}; print('cnnlstm_fast' in sys.modules)"
    assert _run(code, tmp_path).split() == ["False", "True"]


def test_list_of_backends() -> None:
    assert cnnlstm_fast.__name__ in torch._dynamo.list_backends()
