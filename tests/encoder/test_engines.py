"""Every engine on small networks: numbers by the contract, open sizes, copies of the weights, threads, empty inputs."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import threads
from regions import regions_of
from torch import Tensor, nn

from cnnlstm_fast.contract import Result, compare
from cnnlstm_fast.encoder import files
from cnnlstm_fast.encoder.engines import ENGINES, Options, Run, inductor, onnx_files, onnx_model
from cnnlstm_fast.encoder.engines.check import check
from cnnlstm_fast.encoder.region import Region


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv = nn.Embedding(50, 12), nn.Conv1d(12, 16, 3, padding=1)

    def forward(self, words: Tensor) -> Tensor:
        return torch.relu(self.conv(self.embedding(words).transpose(1, 2)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv1d(4, 8, 3, padding=1), nn.Linear(6, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(self.conv(x)) + self.linear(y)[:, :, None]


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.relu(self.conv(x))
        return found, torch.sigmoid(self.head(found))


class Clips(nn.Module):
    """Clips (B, 3, T, H, W) -> (B, 5, T): the mean of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv3d(3, 5, 3, padding=1), nn.AdaptiveAvgPool3d((None, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(torch.relu(self.conv(x))).flatten(2)


class UNet(nn.Module):
    """Skips that are cut to the length of what they are added to."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv1d(4, 6, 5, stride=3), nn.Conv1d(6, 8, 5, stride=3)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose1d(8, 6, 5, stride=3), nn.ConvTranspose1d(6, 4, 5, stride=3)]
        )

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for conv in self.down:
            x = torch.relu(conv(x))
            skips.append(x)
        for conv in self.up:
            skip = skips.pop()
            x = conv(x + skip[..., : x.shape[-1]])
        return x


class Pools(nn.Module):
    """Pools along one dimension with every option, and a mean over both of a map, which gates it."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Sequential(
            *(nn.Conv1d(4, 6, 3, padding=1), nn.MaxPool1d(2), nn.Conv1d(6, 6, 3, padding=1)),
            nn.MaxPool1d(3, 2, padding=1, dilation=1, ceil_mode=True),
        )
        self.map = nn.Conv2d(1, 5, 3, padding=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(5, 5, 1), nn.Sigmoid())
        self.rows = nn.AdaptiveAvgPool2d((1, None))

    def forward(self, x: Tensor) -> Tensor:
        found = self.map(torch.relu(self.row(x)).unsqueeze(1))
        return self.rows(found * self.gate(found)).squeeze(2)


class Columns(nn.Module):
    """Cuts the map into columns, in sizes that are computed from those of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.max_pool2d(torch.relu(self.conv(x)), 2).permute(0, 3, 1, 2)
        rows = self.linear(found.reshape(found.shape[0] * found.shape[1], -1))
        return torch.tanh(rows.view(found.shape[0], found.shape[1], 10))


class Frames(nn.Module):
    """Frames (B, T, 6) -> (B, 5, T), each through the same network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = nn.Linear(6, 30), nn.Conv1d(3, 8, 3), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.first(x).flatten(0, 1).unflatten(-1, (3, 10))
        found = torch.relu(self.conv(frames)).flatten(1)
        return torch.tanh(self.last(found).unflatten(0, (x.size(0), -1)).transpose(1, 2))


def depthwise() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
    )


def conv1d() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(4, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU()),
        *(nn.Conv1d(8, 8, 3, stride=2, dilation=2), nn.LeakyReLU()),
    )


def spectrogram() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d((2, 1))),
        *(nn.Conv2d(8, 8, (3, 1)), nn.ELU(), nn.AvgPool2d((2, 1))),
    )


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 20), nn.Tanh()),
    )


Shapes = tuple[tuple[int, ...], ...]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shapes, Shapes]] = {
    # the network, the shapes of the example, other shapes
    "lenet": (lenet, ((3, 1, 20, 20),), ((1, 1, 20, 20),)),
    "residual": (Residual, ((2, 8, 9, 11),), ((3, 8, 7, 16),)),
    "depthwise": (depthwise, ((1, 4, 12, 14),), ((4, 4, 9, 15),)),
    "conv1d": (conv1d, ((2, 4, 20),), ((1, 4, 33),)),
    "words": (Words, ((3, 17),), ((1, 5),)),
    "spectrogram": (spectrogram, ((2, 1, 16, 10),), ((1, 1, 18, 7),)),
    "linear": (
        lambda: nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU()),
        ((5, 6),),
        ((1, 6),),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 4, 2, 1), nn.ReLU()),
        ((2, 4, 9),),
        ((3, 4, 6),),
    ),
    "glu": (lambda: nn.Sequential(nn.Conv1d(6, 16, 3, padding=1), nn.GLU(1)), ((2, 6, 15),), ((1, 6, 4),)),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.GELU()),
        ((2, 5, 6),),
        ((4, 1, 6),),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.GroupNorm(2, 8)),
        ((2, 4, 20),),
        ((3, 4, 9),),
    ),
    "two inputs": (TwoInputs, ((2, 4, 20), (2, 6)), ((3, 4, 7), (3, 6))),
    "two outputs": (TwoOutputs, ((2, 4, 20),), ((1, 4, 3),)),
    "frames": (Frames, ((2, 4, 6),), ((3, 7, 6),)),
    "columns": (Columns, ((2, 3, 16, 20),), ((3, 3, 16, 9),)),
    "clips": (Clips, ((2, 3, 4, 8, 8),), ((1, 3, 7, 6, 9),)),
    "skips": (UNet, ((2, 4, 52),), ((1, 4, 93),)),
    "pools": (Pools, ((2, 4, 21),), ((1, 4, 14),)),
}
QUICK = {"residual", "words", "columns"}
"""Of an engine that takes seconds to compile, these are in the fast tier."""

COPYING = [engine for engine in ENGINES if engine != "eager"]


def each(engines: Iterable[str]) -> list[Any]:
    """The compiler takes seconds for each region."""
    return [pytest.param(e, marks=[pytest.mark.slow] if e == "inductor" else []) for e in engines]


"""Those that do not run the region's own weights."""


def cases(engines: list[str]) -> list[Any]:
    return [
        pytest.param(
            engine, name, marks=[pytest.mark.slow] if engine == "inductor" and name not in QUICK else []
        )
        for engine in engines
        for name in NETWORKS
    ]


def draw_inputs(shapes: Shapes, name: str) -> tuple[Tensor, ...]:
    return tuple(torch.randint(50, s) if name == "words" else torch.randn(s) for s in shapes)


def network_of(name: str) -> nn.Module:
    network = NETWORKS[name][0]().eval()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network


def available(engine: str) -> None:
    if reason := ENGINES[engine].missing():
        pytest.skip(reason)


def built(engine: str, region: Region, example: tuple[Tensor, ...], precision: str | None = None) -> Run:
    available(engine)
    options = Options(torch.get_num_threads(), precision)
    reason = ENGINES[engine].supports(region, options)
    if reason is not None and reason.endswith("on this CPU"):
        pytest.skip(reason)
    assert reason is None
    run = ENGINES[engine].build(region, example, options)

    def without_gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return run(*inputs)

    return without_gradient


def one_region(network: nn.Module, example: tuple[Tensor, ...]) -> Region:
    (region,) = regions_of(network, *example)
    return region


def assert_same(
    region: Region, run: Run, inputs_of: Callable[[], tuple[Tensor, ...]], dtype: torch.dtype = torch.float32
) -> None:
    """Against the region in float64, with the error of the region in ``dtype``."""

    def converted(to: torch.dtype) -> Run:
        module = copy.deepcopy(region.module).to(to)
        return lambda *inputs: module(*[t.to(to) if t.is_floating_point() else t for t in inputs])

    def draw(k: int) -> Iterator[Result]:
        inputs = inputs_of()
        with torch.no_grad():
            results = run(*inputs), converted(dtype)(*inputs), converted(torch.float64)(*inputs)
        for j, (out, eager, exact) in enumerate(zip(*results, strict=True)):
            assert out.dtype == region.outputs[j].dtype
            yield Result(f"output {j}", dtype, out, eager, exact)

    rows = compare(draw)
    assert all(row.ok for row in rows), rows


def strided(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same numbers, with the last dimension outermost and gaps in between."""
    return tuple(t.movedim(-1, 0).repeat_interleave(2, dim=0)[::2].movedim(0, -1) for t in inputs)


@pytest.mark.parametrize("engine, name", cases(list(ENGINES)))
def test_numbers(engine: str, name: str) -> None:
    _, shapes, others = NETWORKS[name]
    example = draw_inputs(shapes, name)
    region = one_region(network_of(name), example)
    run = built(engine, region, example)
    for where in (shapes, others):
        assert_same(region, run, lambda where=where: draw_inputs(where, name))
        assert_same(region, run, lambda where=where: strided(draw_inputs(where, name)))


@pytest.mark.parametrize("engine, name", cases(COPYING))
def test_bfloat16_products(engine: str, name: str) -> None:
    _, shapes, others = NETWORKS[name]
    example = draw_inputs(shapes, name)
    region = one_region(network_of(name), example)
    run = built(engine, region, example, "bf16")
    for where in (shapes, others):
        assert_same(region, run, lambda where=where: draw_inputs(where, name), torch.bfloat16)


def test_what_has_no_onnx_model_is_said_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2))
    example = (torch.randn(2, 3, 9, 9),)
    with pytest.raises(RuntimeError, match=r"^no ONNX model: .*adaptive_avg_pool2d"):
        onnx_model.onnx_model(one_region(network, example), example)
    assert capfd.readouterr() == ("", "")


def test_pools_have_their_own_operators_in_onnx() -> None:
    """Squeezes around a pool, or a mean in the place of a global one, cost a change of layout each."""
    onnx = pytest.importorskip("onnx")
    example = draw_inputs(NETWORKS["pools"][1], "pools")
    model = onnx.load_from_string(onnx_model.onnx_model(one_region(network_of("pools"), example), example))
    kinds = [node.op_type for node in model.graph.node if node.op_type != "Constant"]
    chain = ["Conv", "MaxPool", "Conv", "MaxPool", "Relu", "Unsqueeze", "Conv", "GlobalAveragePool"]
    assert kinds[: len(chain)] == chain


@pytest.mark.parametrize("engine", each(COPYING))
def test_the_engine_copies_the_weights(engine: str) -> None:
    network, example = network_of("residual"), draw_inputs(NETWORKS["residual"][1], "residual")
    region = one_region(network, example)
    run = built(engine, region, example)
    before = run(*example)[0]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.data.mul_(1.5)  # which changes no version
    assert torch.equal(run(*example)[0], before)
    again = built(engine, region, example)
    assert_same(region, again, lambda: example)
    assert not torch.allclose(again(*example)[0], before)


@pytest.mark.parametrize("engine", each(ENGINES))
def test_results_are_fresh(engine: str) -> None:
    example = draw_inputs(NETWORKS["residual"][1], "residual")
    region = one_region(network_of("residual"), example)
    run = built(engine, region, example)
    given = [t.clone() for t in example]
    first = run(*example)[0]
    kept = first.clone()
    second = run(*[t * 2 for t in example])[0]
    assert torch.equal(first, kept) and not torch.equal(first, second)
    assert all(map(torch.equal, example, given))
    first.add_(1.0)  # its memory is the caller's
    assert torch.equal(run(*example)[0], kept)
    del run
    assert torch.equal(first, kept + 1.0)


@pytest.mark.parametrize("engine", each(ENGINES))
def test_inputs_that_require_gradients(engine: str) -> None:
    example = draw_inputs(NETWORKS["residual"][1], "residual")
    region = one_region(network_of("residual"), example)
    run = built(engine, region, example)
    expected = run(*example)[0]
    assert torch.equal(run(*[t.requires_grad_() for t in example])[0], expected)


@pytest.mark.parametrize("engine", each(ENGINES))
def test_two_threads_at_once(engine: str) -> None:
    example = draw_inputs(NETWORKS["residual"][1], "residual")
    region = one_region(network_of("residual"), example)
    run = built(engine, region, example)
    inputs = [(torch.randn(2 + k, 8, 9, 11 + k),) for k in range(2)]
    expected = [run(*x)[0] for x in inputs]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(100):
            found = run(*inputs[k])[0]
            if not torch.allclose(found, expected[k], atol=1e-5):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


EMPTY = """
import sys, torch
from cnnlstm_fast.encoder.engines import ENGINES, Options
from test_engines import NETWORKS, draw_inputs, network_of, one_region
engine, name = sys.argv[1:]
shapes = NETWORKS[name][1]
example = draw_inputs(shapes, name)
region = one_region(network_of(name), example)
run = ENGINES[engine].build(region, example, Options(1))
with torch.no_grad():
    inputs = [t.narrow(0, 0, 0) for t in example]
    found, expected = run(*inputs), region.module(*inputs)
    assert [t.shape for t in found] == [t.shape for t in expected], (found, expected)
"""


@pytest.mark.slow  # a process each
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["residual", "words", "conv1d"])
def test_empty_inputs(engine: str, name: str) -> None:
    """In a process of its own, since an engine may abort it."""
    available(engine)
    here = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (here.parent, here, here / "encoder")))
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-c", EMPTY, engine, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", each(ENGINES))
def test_the_process_stays_as_it_was(engine: str) -> None:
    def state() -> tuple[object, ...]:
        return (
            dict(os.environ),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            list(warnings.filters),
            1e-310 * torch.ones(1, dtype=torch.float64),  # 0 where denormals are flushed
        )

    available(engine)
    example = draw_inputs(NETWORKS["linear"][1], "linear")
    region = one_region(network_of("linear"), example)
    before = state()
    run = built(engine, region, example)
    run(*example)
    assert state() == before


def test_a_missing_package_is_named() -> None:
    engine = replace(ENGINES["openvino"], modules=("no_such_package",))
    assert engine.missing() == "not installed: pip install openvino onnx"


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    region = one_region(network_of("linear"), draw_inputs(NETWORKS["linear"][1], "linear"))
    assert inductor.ENGINE.supports(region, Options(1)) is None
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "C++ compiler" in (inductor.ENGINE.supports(region, Options(1)) or "")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_other_dtypes_are_declined(engine: str) -> None:
    region = one_region(network_of("linear").double(), (torch.randn(5, 6, dtype=torch.float64),))
    assert "float64" in (ENGINES[engine].supports(region, Options(1)) or "")


def test_an_operator_that_onnx_lacks_is_named() -> None:
    class Strange(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(super().forward(x))

    example = (torch.randn(5, 6),)
    region = one_region(Strange(6, 6), example)
    with pytest.raises(RuntimeError, match="bessel_j0"):
        onnx_model.onnx_model(region, example)


def test_both_exporters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that a later PyTorch may lack, and the one that takes its place."""
    pytest.importorskip("onnxscript")
    example = draw_inputs(NETWORKS["columns"][1], "columns")
    region = one_region(network_of("columns"), example)
    monkeypatch.setattr(onnx_model, "_LEGACY_EXPORTER", "torch.no_such_module")
    run = built("onnxruntime", region, example)
    assert_same(region, run, lambda: draw_inputs(NETWORKS["columns"][2], "columns"))


def test_the_model_is_made_once_for_both() -> None:
    example = draw_inputs(NETWORKS["linear"][1], "linear")
    network = network_of("linear")
    region = one_region(network, example)
    first = onnx_model.onnx_model(region, example)
    assert onnx_model.onnx_model(region, example) is first
    with torch.no_grad():
        next(network.parameters()).data[0, 0] += 1.0
    assert onnx_model.onnx_model(region, example) != first
    del region
    assert onnx_model._last is None


def _no_export(*_: object) -> bytes:
    raise AssertionError("exported")


def test_the_next_process_with_the_same_weights_exports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    example = draw_inputs(NETWORKS["linear"][1], "linear")
    network = network_of("linear")
    first = onnx_model.onnx_model(one_region(network, example), example)
    monkeypatch.setattr(onnx_model, "_export", _no_export)
    assert onnx_model.onnx_model(one_region(network, example), example) == first
    with torch.no_grad():
        next(network.parameters()).data[0, 0] += 1.0
    with pytest.raises(AssertionError, match="exported"):
        onnx_model.onnx_model(one_region(network, example), example)


def test_a_damaged_model_is_exported_again(monkeypatch: pytest.MonkeyPatch) -> None:
    example = draw_inputs(NETWORKS["linear"][1], "linear")
    network = network_of("linear")
    first = onnx_model.onnx_model(one_region(network, example), example)
    (path,) = files.folder().glob("*.onnx")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="is not used, since it is damaged"):
        assert onnx_model.onnx_model(one_region(network, example), example) == first
    monkeypatch.setattr(onnx_model, "_export", _no_export)
    assert onnx_model.onnx_model(one_region(network, example), example) == first  # replaced


def test_models_on_disk_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "MOST_BYTES", 250)
    for k, name in enumerate("abcd"):
        onnx_files.store(name, bytes([k]) * 50)
        os.utime(files.folder() / f"{name}.onnx", (k, k))
        if name == "c":
            assert onnx_files.load("a") == bytes(50)  # used last
    onnx_files.store("larger than all", bytes(300))
    # 82 bytes each: three fit
    assert sorted(path.stem for path in files.folder().glob("*")) == ["a", "c", "d"]


def test_check_finds_a_fixed_size() -> None:
    example = (torch.randn(2, 4, 20),)
    region = one_region(network_of("conv1d"), example)
    check(region, region.module, example, Options(1))

    def fixed(x: Tensor) -> tuple[Tensor, ...]:
        return region.module(nn.functional.pad(x[:, :, :20], (0, max(0, 20 - x.shape[2]))))

    with pytest.raises(RuntimeError, match="a size was fixed"):
        check(region, fixed, example, Options(1))


def test_check_finds_wrong_numbers() -> None:
    example = (torch.randn(2, 4, 20),)
    region = one_region(network_of("conv1d"), example)
    with pytest.raises(RuntimeError, match="is wrong"):
        check(region, lambda x: (region.module(x)[0] * 1.0001,), example, Options(1))
    check(region, lambda x: (region.module(x)[0] * 1.0001,), example, Options(1, "bf16"))


@pytest.mark.parametrize(("length", "draws"), [(20, 32), (300, 13), (3000, 2)])
def test_few_numbers_are_compared_more_often(length: int, draws: int) -> None:
    """An error above the limit is one of all draws, and so many as are wanted to tell it from a random one."""
    example = (torch.randn(2, 4, length),)
    region = one_region(network_of("conv1d"), example)
    calls: list[Tensor] = []

    def wrong(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(x)
        return (region.module(x)[0] * 1.0001,)

    with pytest.raises(RuntimeError, match=r"is wrong: error 1\.0e-04"):
        check(region, wrong, example, Options(1))
    assert len(calls) == draws


def test_a_slow_comparison_ends_with_the_budget() -> None:
    """It takes seconds for each input, in float64; the first input is always compared."""
    example = (torch.randn(2, 4, 20),)
    region, late = one_region(network_of("conv1d"), example), Options(1, deadline=0.0)
    check(region, region.module, example, late)
    calls: list[Tensor] = []

    def wrong(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(x)
        return (region.module(x)[0] * 1.0001,)

    with pytest.raises(RuntimeError, match="nothing of `budget` was left"):
        check(region, wrong, example, late)
    assert len(calls) == 1


@pytest.mark.parametrize("engine", each(ENGINES))
def test_more_threads_than_one(engine: str) -> None:
    with threads(2):
        example = (torch.randn(4, 8, 24, 24),)
        region = one_region(network_of("residual"), example)
        run = built(engine, region, example)
        assert_same(region, run, lambda: (torch.randn(3, 8, 20, 31),))
