"""The engine onednn: the numbers of eager for every kind of layer, at any size, layout and number of threads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from regions import regions_of
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnnlstm_fast.contract import Result, compare
from cnnlstm_fast.encoder.engines import ENGINES, Options
from cnnlstm_fast.encoder.region import Region, TensorSpec
from cnnlstm_fast.encoder.regions import build_region

needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 on this CPU"
)

ENGINE = ENGINES["onednn"]
aten = torch.ops.aten

LINE, IMAGE, VOLUME = (2, 3, 20), (2, 3, 12, 16), (2, 3, 6, 8, 8)
"""Sizes of the examples."""
OTHERS = {
    3: [(1, 3, 33), (5, 3, 8)],
    4: [(1, 3, 9, 21), (5, 3, 16, 8)],
    5: [(1, 3, 5, 9, 7), (3, 3, 8, 6, 8)],
}
"""Sizes of later calls, for examples of so many dimensions."""


class Block(nn.Module):
    """Layers by keyword, and what forward does with them."""

    def __init__(self, forward: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.call = forward

    def forward(self, *tensors: Tensor) -> object:
        return self.call(self, *tensors)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    example: tuple[int, ...] = IMAGE
    others: list[tuple[int, ...]] | None = None

    def sizes(self) -> list[tuple[int, ...]]:
        return [self.example, *(OTHERS[len(self.example)] if self.others is None else self.others)]


def sequence(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


def activations() -> Iterator[tuple[str, nn.Module]]:
    for layer in (
        nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.Hardtanh(-0.3, 0.4), nn.Hardswish(), nn.Hardsigmoid(),
        nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.ELU(), nn.Mish(), nn.Softplus(), nn.PReLU(),
    ):  # fmt: skip
        yield f"{type(layer).__name__}{'-tanh' if getattr(layer, 'approximate', '') == 'tanh' else ''}", layer


WIDE = 256
"""Channels with which a product is not small for the engine, see ``onednn_fuse.SMALL``."""

CASES: dict[str, Case] = {
    "conv1d": Case(
        sequence(nn.Conv1d(3, 64, 5, padding=2), nn.BatchNorm1d(64), nn.ReLU(), nn.Conv1d(64, 8, 3)), LINE
    ),
    "conv1d pools": Case(
        sequence(
            nn.Conv1d(3, 8, 3),
            nn.MaxPool1d(2, 2, 1),
            nn.ELU(),
            nn.AvgPool1d(2, padding=1),
            nn.AdaptiveAvgPool1d(3),
        ),
        LINE,
    ),
    "conv1d causal": Case(
        lambda: Block(lambda m, x: m.c(x)[:, :, :-4].relu(), c=nn.Conv1d(3, 8, 3, padding=4, dilation=2)),
        LINE,
    ),
    "conv1d same": Case(
        sequence(nn.Conv1d(3, 8, 4, padding="same", dilation=3), nn.Conv1d(8, 3, 3, padding="same")), LINE
    ),
    "conv1d reflect": Case(
        sequence(
            nn.Conv1d(3, 8, 3, padding=1, padding_mode="reflect"),
            nn.Conv1d(8, 8, 3, padding=1, padding_mode="circular"),
        ),
        LINE,
    ),
    "conv1d GLU": Case(sequence(nn.Conv1d(3, 16, 3), nn.GLU(1), nn.Conv1d(8, 16, 1), nn.GLU(-2)), LINE),
    "conv1d residual": Case(
        lambda: Block(
            lambda m, x: (x + m.b(m.c(x))).relu() * m.scale(x),
            c=nn.Conv1d(3, 3, 3, padding=1),
            b=nn.BatchNorm1d(3),
            scale=nn.Conv1d(3, 1, 1),
        ),
        LINE,
    ),
    "conv1d cat": Case(
        lambda: Block(
            lambda m, x: m.d(torch.cat([x, m.c(x)], -2)),
            c=nn.Conv1d(3, 5, 3, padding=1),
            d=nn.Conv1d(8, 4, 3),
        ),
        LINE,
    ),
    "conv1d norms": Case(
        sequence(
            nn.Conv1d(3, 8, 3),
            nn.GroupNorm(2, 8),
            nn.GELU(),
            nn.Conv1d(8, 8, 3),
            nn.InstanceNorm1d(8, affine=True),
            nn.PReLU(8),
        ),
        LINE,
    ),
    "conv1d transposed": Case(
        sequence(
            nn.Conv1d(3, 8, 4, 2),
            nn.ReLU(),
            nn.ConvTranspose1d(8, 4, 4, 2, 1, 1),
            nn.BatchNorm1d(4),
            nn.Sigmoid(),
        ),
        LINE,
    ),
    "conv1d squeeze-excite": Case(
        lambda: Block(
            lambda m, x: (y := m.c(x)) * torch.sigmoid(m.e(y.mean(2, keepdim=True))),
            c=nn.Conv1d(3, 8, 3),
            e=nn.Conv1d(8, 8, 1),
        ),
        LINE,
    ),
    "embedding conv1d": Case(
        lambda: Block(
            lambda m, x: m.c(m.e((x * 5).long().abs() % 10).transpose(1, 2)).relu(),
            e=nn.Embedding(10, 6),
            c=nn.Conv1d(6, 8, 3),
        ),
        (2, 20),
        [(1, 9), (4, 30)],
    ),
    "conv2d": Case(
        sequence(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 16, 3, bias=False),
            nn.BatchNorm2d(16, affine=False),
        )
    ),
    "conv2d one image": Case(
        sequence(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Tanh()), (1, 3, 8, 8)
    ),
    "conv2d strided": Case(sequence(nn.Conv2d(3, 32, (3, 5), (2, 1), (1, 2), (1, 2)), nn.LeakyReLU(0.3))),
    "conv2d grouped": Case(
        sequence(
            nn.Conv2d(3, 16, 1),
            nn.Conv2d(16, 32, 3, groups=4),
            nn.BatchNorm2d(32),
            nn.Conv2d(32, 32, 3, groups=32),
            nn.SiLU(),
        )
    ),
    "conv2d same": Case(
        sequence(nn.Conv2d(3, 32, (4, 3), padding="same"), nn.ReLU(), nn.Conv2d(32, 8, 3, padding="valid"))
    ),
    "conv2d paddings": Case(
        sequence(
            *(
                nn.Conv2d(3, 3, 3, padding=(1, 2), padding_mode=mode)
                for mode in ("reflect", "replicate", "circular", "zeros")
            )
        )
    ),
    "conv2d then scaled": Case(
        lambda: Block(lambda m, x: (m.c(x) * 3 + 1) / 4 - 0.5, c=nn.Conv2d(3, WIDE, 3))
    ),
    "batch norm first": Case(sequence(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, WIDE, 3))),
    "batch norm of the batch": Case(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
        IMAGE,
        [(5, 3, 16, 8)],
    ),
    "conv3d": Case(
        sequence(
            nn.Conv3d(3, 8, 3, padding=1),
            nn.BatchNorm3d(8),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Conv3d(8, 4, (1, 2, 2)),
            nn.AvgPool3d(2),
        ),
        VOLUME,
    ),
    "conv2d transposed": Case(
        sequence(
            nn.Conv2d(3, 16, 3, 2),
            nn.ConvTranspose2d(16, 8, 3, 2, 1, 1, groups=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 8, 2, groups=8, dilation=2),
        )
    ),
    "conv3d transposed": Case(sequence(nn.ConvTranspose3d(3, 4, 2, 2, bias=False), nn.ReLU()), VOLUME),
    "residual": Case(
        lambda: Block(
            lambda m, x: F.relu(m.b2(m.c2(F.relu(m.b1(m.c1(x))))) + m.d(x)),
            c1=nn.Conv2d(3, WIDE, 3, padding=1),
            b1=nn.BatchNorm2d(WIDE),
            c2=nn.Conv2d(WIDE, 8, 3, padding=1),
            b2=nn.BatchNorm2d(8),
            d=nn.Conv2d(3, 8, 1),
        )
    ),
    "residual, other order": Case(
        lambda: Block(
            lambda m, x: F.relu((y := F.relu(m.a(x))) + m.b(y)),
            a=nn.Conv2d(3, 64, 3),
            b=nn.Conv2d(64, 64, 3, padding=1),
        )
    ),
    "residual after relu": Case(
        lambda: Block(
            lambda m, x: (y := m.a(x)) + F.relu(m.b(y)),
            a=nn.Conv2d(3, 64, 3),
            b=nn.Conv2d(64, 64, 3, padding=1),
        )
    ),
    "residual then hardtanh": Case(
        lambda: Block(
            lambda m, x: F.hardtanh((y := m.a(x)) + m.b(y)),
            a=nn.Conv2d(3, 64, 3),
            b=nn.Conv2d(64, 64, 3, padding=1),
        )
    ),
    "residual of two products": Case(
        lambda: Block(
            lambda m, x: F.relu(m.a(x) + m.b(x * 2)),
            a=nn.Conv2d(3, WIDE, 3),
            b=nn.Conv2d(3, WIDE, 3, bias=False),
        )
    ),
    "residual broadcast, other order": Case(
        lambda: Block(
            lambda m, x: m.b(x.mean((2, 3), keepdim=True)) + m.a(x),
            a=nn.Conv2d(3, WIDE, 3),
            b=nn.Conv2d(3, WIDE, 3, padding=1),
        )
    ),
    "residual broadcast": Case(
        lambda: Block(
            lambda m, x: m.a(x) + m.b(x.mean((2, 3), keepdim=True)),
            a=nn.Conv2d(3, 64, 3),
            b=nn.Conv2d(3, 64, 1),
        )
    ),
    "residual scaled": Case(
        lambda: Block(
            lambda m, x: torch.add(m.a(x), m.b(x), alpha=0.3), a=nn.Conv2d(3, 64, 3), b=nn.Conv2d(3, 64, 3)
        )
    ),
    "used twice": Case(lambda: Block(lambda m, x: F.relu(y := m.a(x)) + 0.5 * y, a=nn.Conv2d(3, WIDE, 3))),
    "added to itself": Case(lambda: Block(lambda m, x: (y := m.a(x)) + y, a=nn.Conv2d(3, WIDE, 3))),
    "normed and used": Case(
        lambda: Block(lambda m, x: m.n(y := m.a(x)) * y, a=nn.Conv2d(3, WIDE, 3), n=nn.BatchNorm2d(WIDE))
    ),
    "a view is used": Case(
        lambda: Block(
            lambda m, x: (y := m.n(x)).flatten(2).mean(2)[:, :, None, None] + F.elu(y), n=nn.BatchNorm2d(3)
        )
    ),
    "two outputs": Case(
        lambda: Block(
            lambda m, x: (y := m.a(x), F.relu(y), m.b(F.relu(y))),
            a=nn.Conv2d(3, 64, 3),
            b=nn.Conv2d(64, 4, 1),
        )
    ),
    "weight used twice": Case(
        lambda: Block(lambda m, x: m.n(m.a(x)) + m.a(x * 2), a=nn.Conv2d(3, 64, 3), n=nn.BatchNorm2d(64))
    ),
    "squeeze-excite": Case(
        lambda: Block(
            lambda m, x: (y := m.a(x)) * F.hardsigmoid(m.v(F.relu(m.u(F.adaptive_avg_pool2d(y, 1))))),
            a=nn.Conv2d(3, 64, 3),
            u=nn.Conv2d(64, 8, 1),
            v=nn.Conv2d(8, 64, 1),
        )
    ),
    "squeeze-excite, other order": Case(
        lambda: Block(
            lambda m, x: F.hardsigmoid(m.u((y := F.hardswish(m.a(x))).mean((2, 3), keepdim=True))) * y,
            a=nn.Conv2d(3, WIDE, 3),
            u=nn.Conv2d(WIDE, WIDE, 1),
        )
    ),
    "U-net": Case(
        lambda: Block(
            lambda m, x: m.o(torch.cat([m.u(F.relu(m.d(y := F.relu(m.c(x))))), y], 1)),
            c=nn.Conv2d(3, 16, 3, padding=1),
            d=nn.Conv2d(16, 32, 2, 2),
            u=nn.ConvTranspose2d(32, 16, 2, 2),
            o=nn.Conv2d(32, 4, 1),
        ),
        IMAGE,
        [(1, 3, 8, 20), (3, 3, 16, 4)],
    ),
    "interpolate": Case(
        lambda: Block(
            lambda m, x: m.b(
                F.interpolate(F.interpolate(m.a(x), scale_factor=2), size=(15, 20), mode="bilinear")
            ),
            a=nn.Conv2d(3, 16, 3),
            b=nn.Conv2d(16, 16, 3),
        )
    ),
    "pools": Case(
        sequence(
            nn.Conv2d(3, 32, 3),
            nn.MaxPool2d(3, 1, 1, ceil_mode=True),
            nn.AvgPool2d(2, 1),
            nn.AdaptiveMaxPool2d((3, 2)),
            nn.Conv2d(32, 8, 1),
            nn.AdaptiveAvgPool2d(2),
        )
    ),
    "norms": Case(
        sequence(
            nn.Conv2d(3, 32, 3),
            nn.GroupNorm(4, 32),
            nn.GELU(),
            nn.Conv2d(32, 16, 3),
            nn.InstanceNorm2d(16),
            nn.ReLU(),
        )
    ),
    "flatten and linear": Case(
        sequence(
            nn.Conv2d(3, 64, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((3, 4)),
            nn.Flatten(),
            nn.Linear(768, 1024),
            nn.BatchNorm1d(1024),
            nn.Hardswish(),
            nn.Linear(1024, 10),
            nn.BatchNorm1d(10),
        )
    ),
    "view": Case(
        lambda: Block(
            lambda m, x: m.l((y := m.c(x)).contiguous().view(y.shape[0], -1, 2)),
            c=nn.Conv2d(3, 64, 3, padding=1),
            l=nn.Linear(2, 2),
        ),
        IMAGE,
        [(1, 3, 6, 20), (5, 3, 16, 8)],
    ),
    "to an LSTM": Case(
        lambda: Block(
            lambda m, x: m.l(m.c(x).permute(0, 3, 1, 2).flatten(2)),
            c=nn.Conv2d(3, 64, 3, (2, 1)),
            l=nn.Linear(320, 32),
        ),
        IMAGE,
        [(1, 3, 12, 30), (7, 3, 12, 9)],
    ),
    "linear": Case(
        lambda: Block(
            lambda m, x: m.n(F.relu(m.b(F.gelu(m.a(x))) + x)),
            a=nn.Linear(64, 640),
            b=nn.Linear(640, 64),
            n=nn.LayerNorm(64),
        ),
        (2, 40, 64),
        [(1, 90, 64), (8, 3, 64)],
    ),
    "linear batch norm of steps": Case(
        lambda: Block(lambda m, x: m.n(m.a(x)), a=nn.Linear(64, 512), n=nn.BatchNorm1d(40)),
        (2, 40, 64),
        [(5, 40, 64)],
    ),
    "matmul by a weight": Case(
        lambda: Block(
            lambda m, x: F.relu(x @ m.a.weight + m.a.bias) @ m.b.weight + 1,
            a=nn.Linear(64, 64),
            b=nn.Linear(512, 64),
        ),
        (2, 40, 64),
        [(1, 90, 64)],
    ),
    "addmm": Case(
        lambda: Block(
            lambda m, x: torch.addmm(m.b.bias, x, m.a.weight) * torch.addmm(m.b.bias, x, m.a.weight, alpha=2),
            a=nn.Linear(512, 64),
            b=nn.Linear(64, 512),
        ),
        (40, 64),
        [(1, 64), (90, 64)],
    ),
    "attention": Case(
        lambda: Block(
            lambda m, x: torch.softmax((q := m.q(x)) @ m.k(x).transpose(1, 2) / 8, -1) @ q + x,
            q=nn.Linear(64, 64),
            k=nn.Linear(64, 64),
        ),
        (2, 40, 64),
        [(1, 90, 64)],
    ),
}
ACTIVATIONS: dict[str, Case] = {
    **{
        f"conv2d {name}": Case(sequence(nn.Conv2d(3, WIDE, 3), act, nn.Conv2d(WIDE, 2, 1)))
        for name, act in activations()
    },
    **{
        f"small conv2d {name}": Case(sequence(nn.Conv2d(3, 4, 3), act), (1, 3, 8, 8))
        for name, act in activations()
    },
    **{
        f"linear {name}": Case(sequence(nn.Linear(64, 1024), act), (20, 64), [(1, 64), (90, 64)])
        for name, act in activations()
    },
}
CASES |= ACTIVATIONS


def network_of(case: Case) -> nn.Module:
    """The network in eval mode with statistics and weights as after training."""
    network = copy.deepcopy(case.make()).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            if module.track_running_stats:
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.01, 3.0)  # type: ignore[union-attr]
            if module.affine:
                module.weight.data.normal_()
                module.bias.data.normal_()
    return network


def region_of(network: nn.Module, example: Tensor) -> Region:
    (region,) = regions_of(network, example)
    return region


def draw(shape: tuple[int, ...], layout: str = "plain", dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers in one of the layouts that a caller may use."""
    if layout == "every other":
        return torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]
    tensor = torch.randn(shape, dtype=dtype)
    if layout == "channels last":
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    return tensor


def check(
    region: Region,
    run: Callable[..., tuple[Tensor, ...]],
    make: Callable[[], Tensor],
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
) -> None:
    """By the contract, against the region in float64; the input is left as it is."""
    exact = copy.deepcopy(region.module).double()

    def results(_: int) -> Iterator[Result]:
        given = make()
        kept = given.clone()
        fast = run(given)
        assert torch.equal(given, kept), "the input was edited"
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            eager = region.module(given.contiguous())
        for k, (f, e, x) in enumerate(zip(fast, eager, exact(given.double().contiguous()), strict=True)):
            assert f.shape == e.shape and f.dtype == region.outputs[k].dtype
            yield Result(f"output {k}", dtype, f, e, x)

    rows = compare(results)
    assert all(row.ok for row in rows), rows


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [name for name in CASES if name not in ACTIVATIONS])
@torch.no_grad()
def test_numbers(name: str) -> None:
    check_numbers(CASES[name])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ACTIVATIONS)
@torch.no_grad()
def test_numbers_of_activations(name: str) -> None:
    check_numbers(ACTIVATIONS[name])


def check_numbers(case: Case) -> None:
    region = region_of(network_of(case), torch.randn(case.example))
    weights = {key: tensor.clone() for key, tensor in region.weights().items()}
    run = ENGINE.build(region, (torch.randn(case.example),), Options(2))
    for size in case.sizes():
        for layout in ("plain", "every other", "channels last"):
            check(region, run, lambda size=size, layout=layout: draw(size, layout))
    assert all(torch.equal(tensor, weights[key]) for key, tensor in region.weights().items())


@needs_bf16
@pytest.mark.sampled(6)
@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [name for name in CASES if "PReLU" not in name])  # autocast raises for PReLU
@torch.no_grad()
def test_bf16_inside(name: str) -> None:
    case = CASES[name]
    region = region_of(network_of(case), torch.randn(case.example))
    run = ENGINE.build(region, (torch.randn(case.example),), Options(2, "bf16"))
    for size in case.sizes():
        check(region, run, lambda size=size: draw(size), torch.bfloat16, autocast=True)


@needs_bf16
@pytest.mark.parametrize(
    "name",
    ["conv1d", "conv2d", "residual", "squeeze-excite", "linear", "conv2d transposed", "conv3d transposed"],
)
@torch.no_grad()
def test_a_bf16_network(name: str) -> None:
    case = CASES[name]
    network = network_of(case).bfloat16()
    region = region_of(network, torch.randn(case.example, dtype=torch.bfloat16))
    run = ENGINE.build(region, (torch.randn(case.example, dtype=torch.bfloat16),), Options(2))
    for size in case.sizes():
        check(region, run, lambda size=size: draw(size, dtype=torch.bfloat16), torch.bfloat16)


class Recorder(TorchDispatchMode):
    """The operators that run, without their overloads."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def operators_of(run: Callable[..., tuple[Tensor, ...]], given: Tensor) -> list[str]:
    with Recorder() as recorder:
        run(given)
    short = {"mkldnn::_convolution_pointwise": "conv", "mkldnn::_linear_pointwise": "linear"}
    return [short.get(name, name) for name in recorder.names]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv2d then scaled", ["conv"]),
        ("batch norm first", ["aten::empty", "aten::native_batch_norm", "aten::relu_", "conv"]),
        ("residual, other order", ["conv", "conv"]),
        ("residual of two products", ["aten::mul", "conv", "conv"]),
        ("residual after relu", ["conv", "conv", "aten::add_"]),
        ("used twice", ["conv", "aten::relu", "aten::mul", "aten::add_"]),
        ("linear GELU", ["linear"]),
        ("linear", ["linear", "linear", "aten::relu_", "aten::native_layer_norm"]),
        (
            "matmul by a weight",
            ["aten::view", "aten::t", "aten::addmm", "aten::view", "aten::relu_", "linear"],
        ),
    ],
)
@torch.no_grad()
def test_what_is_fused(name: str, expected: list[str]) -> None:
    case = CASES[name]
    region = region_of(network_of(case), torch.randn(case.example))
    run = ENGINE.build(region, (torch.randn(case.example),), Options(2))
    assert (
        operators_of(run, draw(case.example, "channels last" if len(case.example) == 4 else "plain"))
        == expected
    )


def graph_region(weights: dict[str, Tensor], example: Tensor, forward: Callable[..., fx.Node]) -> Region:
    """A region written down: ``forward`` takes the graph, the input and the weights."""
    graph = fx.Graph()
    given = graph.placeholder("input_0")
    result = forward(graph, given, *(graph.get_attr(name) for name in weights))
    graph.output((result,))
    values: dict[fx.Node, Tensor] = {given: example}
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = weights[node.target]
        elif node.op == "call_function":
            args = fx.node.map_arg(node.args, values.__getitem__)
            values[node] = node.target(*args)
        if node.op != "output":
            node.meta["spec"] = TensorSpec(values[node].dtype, tuple(values[node].shape))
    return build_region("0", graph, weights)


@torch.no_grad()
def test_dropout_is_no_operator() -> None:
    """torch.export keeps the call of dropout in eval mode."""

    def forward(graph: fx.Graph, x: fx.Node, weight: fx.Node) -> fx.Node:
        product = graph.call_function(aten.conv2d.default, (x, weight))
        dropped = graph.call_function(aten.dropout.default, (product, 0.5, False))
        return graph.call_function(aten.relu.default, (dropped,))

    region = graph_region({"weight_0": torch.randn(WIDE, 3, 3, 3)}, draw(IMAGE), forward)
    run = ENGINE.build(region, (draw(IMAGE),), Options(2))
    assert operators_of(run, draw(IMAGE, "channels last")) == ["conv"]
    check(region, run, lambda: draw((3, 3, 8, 8)))


@torch.no_grad()
def test_a_transposed_weight_is_a_linear() -> None:
    def forward(graph: fx.Graph, x: fx.Node, weight: fx.Node, bias: fx.Node) -> fx.Node:
        matrix = graph.call_function(aten.t.default, (weight,))
        first = graph.call_function(aten.addmm.default, (bias, x, matrix))
        other = graph.call_function(aten.transpose.int, (weight, 0, 1))
        return graph.call_function(aten.add.Tensor, (graph.call_function(aten.mm.default, (x, other)), first))

    weights = {"weight_0": torch.randn(512, 64), "weight_1": torch.randn(512)}
    region = graph_region(weights, draw((40, 64)), forward)
    run = ENGINE.build(region, (draw((40, 64)),), Options(2))
    assert operators_of(run, draw((40, 64))) == ["linear", "linear"]
    check(region, run, lambda: draw((3, 64)))


@torch.no_grad()
def test_empty_batch_and_too_small_image() -> None:
    for name in ("conv2d", "conv2d transposed", "squeeze-excite", "flatten and linear"):
        region = region_of(network_of(CASES[name]), torch.randn(IMAGE))
        run = ENGINE.build(region, (torch.randn(IMAGE),), Options(2))
        assert run(torch.randn(0, *IMAGE[1:]))[0].shape == region.module(torch.randn(0, *IMAGE[1:]))[0].shape
        with pytest.raises(RuntimeError, match="size"):
            run(torch.randn(1, 3, 0, 8))


@pytest.mark.parametrize("name", ["conv2d", "squeeze-excite", "conv1d residual"])
@torch.no_grad()
def test_results_are_fresh(name: str) -> None:
    case = CASES[name]
    region = region_of(network_of(case), torch.randn(case.example))
    run = ENGINE.build(region, (torch.randn(case.example),), Options(2))
    given = torch.randn(case.example)
    (first,) = run(given)
    kept = first.clone()
    (second,) = run(given)
    second.zero_()
    assert torch.equal(first, kept)
    assert torch.equal(run(given)[0], kept)


@torch.no_grad()
def test_several_threads_at_once() -> None:
    case = CASES["residual"]
    region = region_of(network_of(case), torch.randn(case.example))
    run = ENGINE.build(region, (torch.randn(case.example),), Options(2))
    inputs = [torch.randn(1 + k % 3, 3, 8 + k % 5, 10) for k in range(24)]
    alone = [run(x)[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = [r[0] for r in pool.map(run, inputs)]
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    region = region_of(nn.Conv2d(3, 4, 3).to(dtype), torch.randn(IMAGE, dtype=dtype))
    assert str(dtype).removeprefix("torch.") in (ENGINE.supports(region, Options(2)) or "")


@needs_bf16
def test_float32_and_bf16_are_supported() -> None:
    region = region_of(nn.Conv2d(3, 4, 3), torch.randn(IMAGE))
    assert ENGINE.supports(region, Options(2)) is None
    assert ENGINE.supports(region, Options(2, "bf16")) is None
    assert "int8" in (ENGINE.supports(region, Options(2, "int8")) or "")
