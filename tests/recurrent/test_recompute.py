"""recompute=True: the same gradients, and next to nothing kept for them. And what is kept without it."""

from __future__ import annotations

import copy
import pickle
import platform
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import EXACT, Case, arguments, fast, make, one_thread, require, results
from torch import Tensor, nn

import cnnlstm_fast
from bench.measure.memory import allocated, kept, layers, saved
from cnnlstm_fast.contract import relative_error
from cnnlstm_fast.recurrent import functional

CASES = [
    Case(),
    Case(T=1, B=1, bias=False, states=False),
    Case(T=0),
    Case(layers=3, bidirectional=True, cells=True),
    Case(layers=2, bidirectional=True, proj=2, kind="packed"),
    Case(layers=2, bidirectional=True, kind="lengths+reset", cells=True),
    Case(T=30, B=20, I=33, H=40, layers=2),
]

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is asked as glibc's")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """PyTorch's threads spin where they find no core free, and what is kept does not depend on their number."""
    with one_thread():
        yield


@pytest.fixture(params=EXACT)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def same(backend: str, got: Tensor, want: Tensor) -> None:
    """Bit by bit where the kernels are the same; PyTorch has others for a forward pass without gradient."""
    if backend == "cpu":
        assert torch.equal(got, want)
    else:
        assert relative_error(got, want) <= {torch.float32: 1e-5, torch.bfloat16: 2e-2}[want.dtype]


def gradients(run: Callable[[], Any], leaves: list[Tensor]) -> list[Tensor]:
    """Of all results, by cotangents that do not depend on them; the generator starts anew."""
    torch.manual_seed(1)
    output, states = run()
    results = (output, *states)
    torch.manual_seed(2)
    return list(torch.autograd.grad(results, leaves, [torch.randn_like(t) for t in results]))


@pytest.mark.sampled(5, "interpreted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_results(case: Case, dtype: torch.dtype, backend: str) -> None:
    data = make(case, dtype).to(dtype)
    require(backend, data)
    want, got = (results(fast(backend, recompute=recompute), data) for recompute in (False, True))
    for name, tensor in want.items():
        same(backend if name.startswith("gradient") else "any", got[name], tensor)


@pytest.mark.sampled(3, "interpreted")
@pytest.mark.parametrize("p", [0.4, 1.0])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_same_gradients_through_dropout(bidirectional: bool, p: float, backend: str) -> None:
    layer = cnnlstm_fast.LSTM(5, 8, 3, dropout=p, bidirectional=bidirectional, backend=backend)
    x = torch.randn(7, 3, 5)
    want = gradients(lambda: layer(x), list(layer.parameters()))
    layer.recompute = True
    got = gradients(lambda: layer(x), list(layer.parameters()))
    for a, b in zip(got, want, strict=True):
        same(backend, a, b)


def test_same_gradients_under_autocast() -> None:
    layer = cnnlstm_fast.LSTM(5, 8, 2, bidirectional=True, backend="cpu")
    x = torch.randn(7, 3, 5, requires_grad=True)

    def run() -> Any:
        with torch.autocast("cpu"):
            return layer(x)

    want = gradients(run, [x, *layer.parameters()])
    layer.recompute = True
    assert all(map(torch.equal, gradients(run, [x, *layer.parameters()]), want))


@pytest.mark.parametrize("case", [Case(layers=2, bidirectional=True), Case(kind="packed")], ids=str)
def test_same_double_backward(case: Case, backend: str) -> None:
    data = make(case).to(torch.float32)
    require(backend, data)
    found = []
    for recompute in (False, True):
        leaves = [t.detach().requires_grad_() for t in data.leaves]
        outs = fast(backend, recompute=recompute)(data, leaves)
        first = torch.autograd.grad(outs, leaves, data.cotangents, create_graph=True)
        found.append(torch.autograd.grad(sum((g * g).sum() for g in first), leaves))
    for a, b in zip(*found, strict=True):
        same(backend, a, b)


@pytest.mark.sampled(4, "interpreted")
@pytest.mark.parametrize("compiler", ["aot_eager", "aot_eager_decomp_partition"])
def test_in_a_compiled_graph(compiler: str, backend: str) -> None:
    """The partitioners of the joint graph choose what is kept: the default one, and the one that inductor takes."""
    torch._dynamo.reset()
    layer = cnnlstm_fast.LSTM(16, 32, 2, bidirectional=True, dropout=0.5, backend=backend)
    x = torch.randn(20, 8, 16, requires_grad=True)
    want = gradients(lambda: layer(x), [x, *layer.parameters()])
    layer.recompute = True
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    for a, b in zip(gradients(lambda: compiled(x), [x, *layer.parameters()]), want, strict=True):
        same(backend, a, b)
    if platform.libc_ver()[0] == "glibc":
        compiled(x)  # the second call with the same weights keeps them packed
        mask_and_states = 4 * (20 * 8 * 64 + 2 * 4 * 8 * 32)
        assert allocated(lambda: compiled(x)) < mask_and_states + 30_000


@pytest.mark.sampled(2, "interpreted")
def test_opcheck(backend: str) -> None:
    """Of the operator that is told to fill nothing although a gradient is wanted."""
    case = Case(layers=2, bidirectional=True)
    data = make(case).to(torch.float32)
    x, hx, weights = data.view([t.requires_grad_() for t in data.leaves])
    tensors = (x, *hx, weights, None, data.lengths, None, None)
    flags = (case.bidirectional, False, False)
    torch.library.opcheck(torch.ops.cnnlstm_fast.lstm.default, (*tensors, *flags, backend))


def test_no_effect_without_gradient(backend: str) -> None:
    data = make(Case(layers=2)).to(torch.float32)
    require(backend, data)
    for name, tensor in results(fast(backend), data, backward=False).items():
        assert torch.equal(results(fast(backend, recompute=True), data, backward=False)[name], tensor)


def test_an_edit_before_the_backward_pass_is_noticed(backend: str) -> None:
    layer = cnnlstm_fast.LSTM(4, 8, backend=backend, recompute=True)
    output = layer(torch.randn(5, 3, 4))[0]
    with torch.no_grad():
        layer.weight_ih_l0.mul_(1.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


# What is kept


@pytest.mark.parametrize("case", CASES, ids=str)
def test_only_the_arguments_are_kept(case: Case, backend: str) -> None:
    case = case._replace(states=True)
    data = make(case).to(torch.float32)
    require(backend, data)
    leaves = [t.requires_grad_() for t in data.leaves]
    (x, hx, weights), options = arguments(data, leaves)
    if case.kind == "packed":
        held = [x.data, x.batch_sizes, *weights]
        states = sum(t.nbytes for t in hx)  # sorted copies
    else:
        held, states = [x, *hx, *weights], 0
    held += [t for t in (data.lengths, data.reset) if t is not None]
    run = lambda: functional.lstm(x, hx, weights, **options, backend=backend, recompute=True)  # noqa: E731
    assert saved(run, held) == states


def test_the_dropout_mask_is_kept(backend: str) -> None:
    layer = cnnlstm_fast.LSTM(4, 8, 3, dropout=0.5, backend=backend, recompute=True)
    x, states = torch.randn(5, 3, 4), (torch.randn(3, 3, 8), torch.randn(3, 3, 8))
    assert saved(lambda: layer(x, states), [x, *states, *layer.parameters()]) == 4 * 2 * 5 * 3 * 8


@pytest.mark.sampled(3)
@glibc
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(50, 16, 32, 128, 1, 1), (20, 8, 128, 64, 2, 2)], ids=str)
def test_no_more_than_pytorch_and_at_most_half(
    shape: tuple[int, ...], dtype: torch.dtype, packed: bool
) -> None:
    made, x = layers(shape, dtype, packed)
    theirs, ours, recomputed = (kept(layer, x) for layer in made.values())
    for most, all_kept, least in zip(theirs, ours, recomputed, strict=True):
        assert all_kept <= most and 2 * least <= most


@glibc
def test_at_most_half_of_pytorch_under_autocast() -> None:
    """Where both keep the weights and the input in bfloat16."""
    made, x = layers((50, 16, 32, 128, 1, 1), torch.float32, False)
    with torch.autocast("cpu"):
        theirs, ours, recomputed = (kept(layer, x) for layer in made.values())
    for most, all_kept, least in zip(theirs, ours, recomputed, strict=True):
        assert all_kept <= most and 2 * least <= most


# The layer's attribute


def test_attribute_and_its_copies() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, recompute=True)
    assert layer.recompute and not cnnlstm_fast.LSTM(4, 8).recompute
    assert copy.deepcopy(layer).recompute and pickle.loads(pickle.dumps(layer)).recompute
    plain = cnnlstm_fast.revert(layer)
    assert type(plain) is nn.LSTM and not hasattr(plain, "recompute")


def test_optimize() -> None:
    model = nn.ModuleList([nn.LSTM(4, 8), nn.LSTM(4, 8)])
    assert [m.recompute for m in cnnlstm_fast.optimize(model, recompute=True)] == [True, True]
    assert [m.recompute for m in cnnlstm_fast.optimize(model)] == [False, False]
    model[0].recompute = True
    x, states = torch.randn(5, 3, 4), (torch.randn(1, 3, 8), torch.randn(1, 3, 8))
    bytes_kept = [saved(lambda m=m: m(x, states), [x, *states, *m.parameters()]) for m in model]
    assert bytes_kept[0] == 0 < bytes_kept[1]
