"""nn.LSTMCell and its fast class: the same numbers by the contract, the drop-in contract, the choice of the backend."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import check, one_thread
from test_pickles import modules_named
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import cnnlstm_fast
from cnnlstm_fast import BACKENDS, explain, optimize, revert, verify
from cnnlstm_fast.contract import bound, relative_error
from cnnlstm_fast.recurrent import cell as steps
from cnnlstm_fast.recurrent import dispatch
from cnnlstm_fast.recurrent.backends import measured
from cnnlstm_fast.recurrent.backends.base import MeasuredSpeed
from cnnlstm_fast.recurrent.canonical import LSTMSpec, validate
from cnnlstm_fast.recurrent.class_swap import is_fast
from cnnlstm_fast.recurrent.dispatch import select

I, H = 5, 8
ON_CPU = ["auto", "cpu", "aten", "reference"]
States = tuple[Tensor, Tensor]


def plain_copy(cell: Any) -> nn.LSTMCell:
    p = cell.weight_ih
    plain = nn.LSTMCell(cell.input_size, cell.hidden_size, cell.bias, p.device, p.dtype)
    plain.load_state_dict(cell.state_dict())
    return plain


def states(*batch: int, width: int = H, dtype: torch.dtype = torch.float32) -> States:
    return torch.randn(*batch, width, dtype=dtype), torch.randn(*batch, width, dtype=dtype)


def unroll(cell: nn.Module, x: Tensor, hx: States | None) -> dict[str, Tensor]:
    """States and all gradients of a loop over x (T, B, I) or (T, I) whose loss depends on every step."""
    given = [x, *(hx or ())]
    leaves = [t.detach().clone().requires_grad_() for t in given]
    at = None if hx is None else (leaves[1], leaves[2])
    every = []
    for step in leaves[0]:
        at = cell(step, at)
        every += at
    loss = torch.stack([(k + 1) * t.sin().sum() for k, t in enumerate(every)]).sum()
    grads = torch.autograd.grad(loss, [*leaves, *cell.parameters()])
    names = [*("x", "h", "c")[: len(leaves)], *[name for name, _ in cell.named_parameters()]]
    found = {"h": every[-2], "c": every[-1]} | {
        f"gradient of {name}": g for name, g in zip(names, grads, strict=True)
    }
    return {name: t.detach() for name, t in found.items()}


def check_by_contract(
    make: Any, T: int, batch: tuple[int, ...], dtype: torch.dtype, given: bool = True
) -> None:
    def draw(k: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        cell = make()
        x, plain = torch.randn(T, *batch, cell.input_size, dtype=dtype), plain_copy(cell)
        hx = states(*batch, width=cell.hidden_size, dtype=dtype) if given else None
        exact = copy.deepcopy(plain).double()
        in_float64 = None if hx is None else (hx[0].double(), hx[1].double())
        with one_thread():
            return unroll(cell, x, hx), unroll(plain, x, hx), unroll(exact, x.double(), in_float64)

    check(draw, dtype, 4)


# numbers


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("batch", [(3,), (1,), ()], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("backend", ON_CPU)
def test_loop_by_the_contract(backend: str, bias: bool, batch: tuple[int, ...], given: bool) -> None:
    check_by_contract(
        lambda: cnnlstm_fast.LSTMCell(I, H, bias, backend=backend), 4, batch, torch.float32, given
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_loop_in_other_dtypes(backend: str, dtype: torch.dtype) -> None:
    if backend == "cpu" and dtype == torch.float64:
        with pytest.raises(RuntimeError, match="backend: 'cpu' cannot take this call"):
            cnnlstm_fast.LSTMCell(I, H, dtype=dtype, backend=backend)(torch.randn(3, I, dtype=dtype))
        return
    check_by_contract(lambda: cnnlstm_fast.LSTMCell(I, H, dtype=dtype, backend=backend), 4, (3,), dtype)


@pytest.mark.parametrize("B, size", [(1, 130), (9, 67), (40, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_larger_sizes_by_the_contract(dtype: torch.dtype, B: int, size: int) -> None:
    check_by_contract(
        lambda: cnnlstm_fast.LSTMCell(size + 3, size, dtype=dtype, backend="cpu"), 3, (B,), dtype
    )


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gpu_backends_refuse_or_run(backend: str) -> None:
    """On the CPU they are interpreted or emulated, where the tests have that."""
    cell = cnnlstm_fast.LSTMCell(I, H, backend=backend)
    reason = BACKENDS[backend].supports(validate(cell.key(torch.randn(3, I))))
    if reason is None:
        check_by_contract(lambda: cnnlstm_fast.LSTMCell(I, H, backend=backend), 2, (3,), torch.float32)
    else:
        with pytest.raises(RuntimeError, match=f"backend: '{backend}' cannot take this call"):
            cell(torch.randn(3, I))


def test_int8_is_approximate_and_runs_where_it_is_named() -> None:
    cell = cnnlstm_fast.LSTMCell(64, 64, backend="cpu-int8")
    x, hx = torch.randn(3, 64), states(3, width=64)
    with torch.no_grad():
        error = relative_error(
            cell(x, hx)[0], plain_copy(cell).double()(x.double(), [t.double() for t in hx])[0]
        )
    assert 1e-5 < error < 0.03


def test_results_are_those_of_one_step_of_the_lstm() -> None:
    layer = cnnlstm_fast.LSTM(I, H, backend="cpu")
    cell = cnnlstm_fast.LSTMCell(I, H, backend="cpu")
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x, (h, c) = torch.randn(3, I), states(3)
    with torch.no_grad():
        _, want = layer(x[None], (h[None], c[None]))
        torch.testing.assert_close(cell(x, (h, c)), (want[0][0], want[1][0]), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["cpu", "aten", "reference"])
def test_an_empty_batch(backend: str) -> None:
    cell = cnnlstm_fast.LSTMCell(I, H, backend=backend)
    assert [t.shape for t in cell(torch.randn(0, I))] == [(0, H), (0, H)]


@pytest.mark.parametrize("layout", ["expanded", "slice", "transposed"])
def test_strided_input(layout: str) -> None:
    cell = cnnlstm_fast.LSTMCell(I, H, backend="cpu")
    x = {
        "expanded": torch.randn(1, I).expand(3, I),
        "slice": torch.randn(3, 2 * I)[:, ::2],
        "transposed": torch.randn(I, 3).t(),
    }[layout]
    h = torch.randn(H, 3).t()
    torch.testing.assert_close(cell(x, (h, h)), plain_copy(cell)(x, (h, h)))
    torch.testing.assert_close(unroll(cell, x[None], (h, h)), unroll(plain_copy(cell), x[None], (h, h)))


@pytest.mark.parametrize("backend", ["cpu", "aten"])
def test_states_may_be_edited_in_place_between_steps(backend: str) -> None:
    """As recurrent policies do at the end of an episode."""
    cell = cnnlstm_fast.LSTMCell(I, H, backend=backend)
    x, keep = torch.randn(4, 3, I), torch.tensor([[1.0], [0.0], [1.0]])

    def grads(cell: nn.Module) -> Any:
        h, c = states_of_zeros = torch.zeros(3, H), torch.zeros(3, H)
        for step in x:
            h, c = cell(step, (h, c))
            h *= keep
            c = c * keep
        assert states_of_zeros[0].sum() == 0
        return torch.autograd.grad((h + c).sin().sum(), list(cell.parameters()))

    torch.testing.assert_close(grads(cell), grads(plain_copy(cell)))


@pytest.mark.parametrize("backend", ON_CPU)
def test_frozen_parts(backend: str) -> None:
    x, hx = torch.randn(3, I), states(3)
    cell = cnnlstm_fast.LSTMCell(I, H, backend=backend)
    cell.weight_hh.requires_grad_(False)
    (h, _), (want, _) = cell(x, hx), plain_copy(cell)(x, hx)
    h.sum().backward()
    assert cell.weight_hh.grad is None and cell.weight_ih.grad is not None
    cell.requires_grad_(False)
    assert not cell(x, hx)[0].requires_grad
    x.requires_grad_()
    (got,) = torch.autograd.grad(cell(x, hx)[0].sum(), x)
    torch.testing.assert_close(got, torch.autograd.grad(plain_copy(cell)(x, hx)[0].sum(), x)[0])
    torch.testing.assert_close(h, want)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("batch", [(2,), ()], ids=str)
def test_gradcheck_and_gradgradcheck(backend: str, batch: tuple[int, ...]) -> None:
    cell = cnnlstm_fast.LSTMCell(2, 3, dtype=torch.float64, backend=backend)
    given = [torch.randn(*batch, n, dtype=torch.float64, requires_grad=True) for n in (2, 3, 3)]
    names = [name for name, _ in cell.named_parameters()]

    def call(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> States:
        return torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), (x, (h, c)))

    inputs = (*given, *cell.parameters())
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_double_backward_of_the_cpu_kernel() -> None:
    """Through x and the states, too, which autograd sees in another layout than the operator."""
    cell = cnnlstm_fast.LSTMCell(I, H, backend="cpu")
    found = []
    for each in (cell, plain_copy(cell)):
        torch.manual_seed(0)
        leaves = [torch.randn(3, n).requires_grad_() for n in (I, H, H)]
        h, c = each(leaves[0], (leaves[1], leaves[2]))
        first = torch.autograd.grad((h * c).sum(), [*leaves, *each.parameters()], create_graph=True)
        found.append(torch.autograd.grad(sum(g.sin().sum() for g in first), [*leaves, *each.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


# the drop-in contract


@pytest.mark.parametrize("arguments", [(4, 8), (4, 8, False)], ids=str)
def test_parameters_attributes_and_files(arguments: tuple[Any, ...]) -> None:
    torch.manual_seed(1)
    ours = cnnlstm_fast.LSTMCell(*arguments)
    torch.manual_seed(1)
    theirs = nn.LSTMCell(*arguments)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for (name, p), (their_name, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == their_name and torch.equal(p, q)
    for name in ("input_size", "hidden_size", "bias", "training"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, nn.LSTMCell) and isinstance(ours, nn.RNNCellBase)
    assert isinstance(ours, cnnlstm_fast.LSTMCell) and not isinstance(theirs, cnnlstm_fast.LSTMCell)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)


class Named(nn.LSTMCell):
    """A user's subclass."""

    def __init__(self, width: int) -> None:
        super().__init__(I, width)
        self.calls = 0

    def forward(self, x: Tensor, hx: Any = None) -> States:
        self.calls += 1
        h, c = super().forward(2 * x, hx)
        return h + 1, c


class Decoder(nn.Module):
    def __init__(self, cell: nn.Module | None = None) -> None:
        super().__init__()
        self.cell = cell or nn.LSTMCell(I, H)
        self.rnn = nn.LSTM(H, H)

    def forward(self, x: Tensor) -> Tensor:
        hx, every = None, []
        for step in x:
            hx = self.cell(step, hx)
            every.append(hx[0])
        return self.rnn(torch.stack(every))[0]


def test_optimize_and_revert() -> None:
    model = Decoder()
    before, names = list(model.named_parameters()), set(vars(model.cell))
    x = torch.randn(4, 3, I)
    want = model(x)
    optimize(model, backend="cpu", recompute=True)
    assert is_fast(model.cell) and type(model.cell) is cnnlstm_fast.LSTMCell and model.cell.backend == "cpu"
    assert model.rnn.recompute and not hasattr(model.cell, "recompute")
    assert all(p is q for (_, p), (_, q) in zip(before, model.named_parameters(), strict=True))
    torch.testing.assert_close(model(x), want)
    revert(model)
    assert type(model.cell) is nn.LSTMCell and set(vars(model.cell)) == names
    torch.testing.assert_close(model(x), want, rtol=0, atol=0)


def test_a_subclass_keeps_its_own_ways() -> None:
    cell = Named(H)
    x = torch.randn(3, I)
    want = cell(x)
    optimize(cell, backend="cpu")
    assert isinstance(cell, Named) and cell.__class__ is Named and is_fast(cell)
    torch.testing.assert_close(cell(x), want)
    assert cell.calls == 2
    for copied in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert is_fast(copied) and type(copied) is type(cell)
        torch.testing.assert_close(copied(x), want)
    assert type(revert(cell)) is Named


class FromOurs(cnnlstm_fast.LSTMCell):
    """A user's subclass of the fast cell."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: cnnlstm_fast.LSTMCell(I, H, backend="cpu"),
        lambda: optimize(nn.LSTMCell(I, H)),
        lambda: FromOurs(I, H),
    ],
)
def test_copies_and_files(make: Any) -> None:
    cell = make()
    x, hx = torch.randn(3, I), states(3)
    file = io.BytesIO()
    torch.save(cell, file)
    file.seek(0)
    for copied in (
        copy.deepcopy(cell),
        pickle.loads(pickle.dumps(cell)),
        torch.load(file, weights_only=False),
    ):
        assert type(copied) is type(cell) and copied.backend == cell.backend
        assert copied.weight_ih is not cell.weight_ih
        torch.testing.assert_close(copied(x, hx), cell(x, hx), rtol=0, atol=0)


def test_a_pickle_names_the_package_and_no_module_of_it() -> None:
    cell = cnnlstm_fast.LSTMCell(I, H)
    assert modules_named(cell) - modules_named(nn.LSTMCell(I, H)) == {"cnnlstm_fast"}


def in_place(cell: Any) -> None:
    with torch.no_grad():
        cell.weight_ih.mul_(1.5)


def by_data(cell: Any) -> None:
    cell.weight_hh.data.add_(0.1)


def by_assigned_data(cell: Any) -> None:
    cell.weight_hh.data = torch.randn(4 * H, H)


def by_replacement(cell: Any) -> None:
    cell.weight_ih = nn.Parameter(torch.randn(4 * H, I))


def by_numpy(cell: Any) -> None:
    cell.bias_ih.detach().numpy()[:] += 0.5


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("edit", [in_place, by_data, by_assigned_data, by_replacement, by_numpy])
def test_results_follow_the_weights(edit: Any, grad: bool) -> None:
    cell = cnnlstm_fast.LSTMCell(I, H, backend="cpu")
    x, hx = torch.randn(3, I), states(3)
    with torch.set_grad_enabled(grad):
        before = cell(x, hx)[0].detach()
        edit(cell)
        after = cell(x, hx)[0].detach()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, plain_copy(cell)(x, hx)[0].detach())


def test_an_edit_between_forward_and_backward_is_noticed() -> None:
    cell = cnnlstm_fast.LSTMCell(I, H, backend="cpu")
    for edited in (cell.weight_ih, *(given := (torch.randn(3, I), states(3)))[1], given[0]):
        h, _ = cell(*given)
        with torch.no_grad():
            edited.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            h.sum().backward()


def test_dtype_by_to_and_back() -> None:
    cell = cnnlstm_fast.LSTMCell(I, H)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32):
        cell.to(dtype)
        x, plain = torch.randn(3, I, dtype=dtype), plain_copy(cell)
        exact = copy.deepcopy(plain).double()(x.double())[0]
        h = cell(x)[0]
        assert h.dtype == dtype
        assert relative_error(h, exact) <= bound(relative_error(plain(x)[0], exact), dtype)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "make",
    [
        lambda m: parametrizations.weight_norm(m, "weight_hh"),
        lambda m: parametrize.register_parametrization(m, "weight_ih", Doubled()),
    ],
    ids=["weight_norm", "custom"],
)
def test_parametrizations(make: Any, when: str) -> None:
    plain = nn.LSTMCell(I, H)
    cell = copy.deepcopy(plain)
    make(plain)
    if when == "before":
        make(cell)
    optimize(cell, backend="cpu")
    if when == "after":
        make(cell)
    assert is_fast(cell) and list(cell.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, I)
    torch.testing.assert_close(unroll(cell, x, None), unroll(plain, x, None))
    torch.testing.assert_close(copy.deepcopy(cell)(x[0]), cell(x[0]))
    parametrize.remove_parametrizations(cell, next(iter(cell.parametrizations)))
    torch.testing.assert_close(cell(x[0]), plain(x[0]))
    assert type(revert(cell)) is nn.LSTMCell


def test_functional_call() -> None:
    cell = cnnlstm_fast.LSTMCell(I, H, backend="cpu")
    x = torch.randn(3, I)
    other = {k: torch.randn_like(v).requires_grad_() for k, v in cell.named_parameters()}
    plain = plain_copy(cell)
    plain.load_state_dict(other)
    h, want = torch.func.functional_call(cell, other, (x,))[0], plain(x)[0]
    torch.testing.assert_close(h, want)
    torch.testing.assert_close(
        torch.autograd.grad(h.sum(), list(other.values())),
        torch.autograd.grad(want.sum(), list(plain.parameters())),
    )


@pytest.mark.parametrize("of_states", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("of_input", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_autocast(backend: str, of_input: torch.dtype, of_states: torch.dtype | None) -> None:
    cell = cnnlstm_fast.LSTMCell(64, 64, backend=backend)
    plain = plain_copy(cell)
    x = torch.randn(8, 64).to(of_input)
    hx = None if of_states is None else states(8, width=64, dtype=of_states)
    exact = copy.deepcopy(plain).double()
    want = exact(x.double(), None if hx is None else (hx[0].double(), hx[1].double()))
    (want[0] + want[1]).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        got, eager = cell(x, hx), plain(x, hx)
        with torch.autocast("cpu", enabled=False):
            assert cell(x.float())[0].dtype == torch.float32
    assert [t.dtype for t in got] == [t.dtype for t in eager]
    (got[0] + got[1]).sum().backward()
    (eager[0] + eager[1]).sum().backward()
    for g, e, ref in zip(got, eager, want, strict=True):
        assert relative_error(g, ref) <= bound(relative_error(e, ref), torch.bfloat16)
    for p, q, ref in zip(cell.parameters(), plain.parameters(), exact.parameters(), strict=True):
        assert p.grad.dtype == q.grad.dtype == torch.float32
        limit = bound(relative_error(q.grad, ref.grad), torch.bfloat16)
        assert relative_error(p.grad, ref.grad) <= limit


def test_autocast_leaves_float64_alone() -> None:
    cell = cnnlstm_fast.LSTMCell(I, H, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert cell(torch.randn(3, I, dtype=torch.float64))[0].dtype == torch.float64


def test_inference_mode() -> None:
    cell = cnnlstm_fast.LSTMCell(I, H, backend="cpu")
    x = torch.randn(3, I)
    with torch.inference_mode():
        h, c = cell(x)
        assert h.is_inference() and c.is_inference()
    torch.testing.assert_close((h, c), plain_copy(cell)(x))


def test_hooks() -> None:
    cell, called = nn.LSTMCell(I, H), []
    cell.register_forward_pre_hook(lambda m, args: called.append("pre"))
    cell.register_forward_hook(lambda m, args, out: called.append("forward"))
    optimize(cell)(torch.randn(3, I))
    assert called == ["pre", "forward"]


# compiled and exported


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("batch", [(3,), ()], ids=str)
def test_compile_in_one_graph(backend: str, batch: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    cell = cnnlstm_fast.LSTMCell(I, H, backend=backend)

    def loop(x: Tensor, h: Tensor, c: Tensor) -> States:
        assert isinstance(cell, nn.LSTMCell)
        for step in x:
            h, c = cell(step, (h, c))
        return h, c

    compiled = torch.compile(loop, fullgraph=True, backend="aot_eager")
    x, (h, c) = torch.randn(2, *batch, I), states(*batch)
    torch.testing.assert_close(compiled(x, h, c), loop(x, h, c))
    (got,) = torch.autograd.grad(compiled(x, h, c)[0].sum(), cell.weight_hh)
    torch.testing.assert_close(got, torch.autograd.grad(loop(x, h, c)[0].sum(), cell.weight_hh)[0])


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_export_with_a_varying_batch(backend: str) -> None:
    cell = optimize(Decoder().cell, backend=backend)
    x, hx = torch.randn(3, I), states(3)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = ({0: batch}, ({0: batch}, {0: batch}))
    program = torch.export.export(cell, (x, hx), dynamic_shapes=shapes, strict=True)
    for B in (3, 7):
        x, hx = torch.randn(B, I), states(B)
        torch.testing.assert_close(program.module()(x, hx), cell(x, hx))


# errors


X = torch.zeros(3, I)
WRONG: list[tuple[Any, Any, type[Exception], str]] = [
    (torch.zeros(2, 3, I), None, ValueError, r"input: expected rank 2, \(B, I\), or rank 1"),
    ([1.0], None, TypeError, "input: expected a Tensor, got list"),
    (torch.zeros(3, 4), None, ValueError, f"input: expected {I} features in its last dimension"),
    (X.long(), None, ValueError, "input: expected a floating dtype, got int64"),
    (X.double(), None, ValueError, "input: expected the weights' dtype float32, got float64"),
    (X.to("meta"), None, RuntimeError, "input: expected the weights' device cpu, got meta"),
    (X, torch.zeros(3, H), TypeError, r"hx: expected a pair of tensors \(h0, c0\)"),
    (X, states(), ValueError, "h0: expected rank 2, as the input is batched"),
    (X[0], (torch.zeros(H), torch.zeros(1, H)), ValueError, "c0: expected rank 1, as the input is unbatched"),
    (X, states(2), ValueError, r"h0: expected shape \(3, 8\) \(batch, hidden_size\), got \(2, 8\)"),
    (X, (torch.zeros(3, H), torch.zeros(3, H).double()), ValueError, "c0: expected the input's dtype"),
]


@pytest.mark.parametrize("x, hx, error, text", WRONG)
@pytest.mark.parametrize("backend", ["auto", "aten"])
def test_errors_are_one_clear_sentence(x: Any, hx: Any, error: type, text: str, backend: str) -> None:
    cell = cnnlstm_fast.LSTMCell(I, H, backend=backend)
    with pytest.raises(error, match=text) as caught:
        cell(x, hx)
    assert len(str(caught.value).splitlines()) == 1


def test_wrong_weights() -> None:
    cell = cnnlstm_fast.LSTMCell(I, H)
    cell.weight_hh.data = torch.zeros(4 * H, H + 1)
    with pytest.raises(ValueError, match=r"w_hh of layer 0, direction 0: expected shape \(32, 8\)"):
        cell(torch.zeros(3, I))
    with pytest.raises(ValueError, match="backend: expected 'auto' or one of"):
        cnnlstm_fast.LSTMCell(I, H, backend="fastest")(torch.zeros(3, I))


# choice, explain and verify


def spec(**fields: Any) -> LSTMSpec:
    return validate(cnnlstm_fast.LSTMCell(64, 64).key(torch.randn(4, 64)))._replace(**fields)


@pytest.fixture
def slow_in_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table says that ours trains slowly."""

    def speed(spec: LSTMSpec, *args: Any) -> MeasuredSpeed:
        return MeasuredSpeed(spec.grad, "as planted")

    monkeypatch.setattr("cnnlstm_fast.recurrent.backends.measured.measured_speed", speed)
    dispatch.forget_plans()
    yield
    dispatch.forget_plans()


def test_auto_trains_with_pytorchs_own_cell_where_that_is_faster(slow_in_training: None) -> None:
    cell = cnnlstm_fast.LSTMCell(I, H)
    x = torch.randn(3, I)
    assert "EagerLSTM" not in str(cell(x)[0].grad_fn)
    assert "EagerLSTM" in str(cnnlstm_fast.LSTMCell(I, H, backend="cpu")(x)[0].grad_fn)
    with torch.no_grad():
        assert select(validate(cell.key(x))).backend.name == "cpu"
    text = explain(cell, x)
    assert "cell\n  backend:  cpu" in text and "grad cell\n  backend:  aten" in text and "as planted" in text
    assert "grad" not in explain(cell.eval(), x)


def test_without_measurements_cells_are_trained_by_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "TABLES", tmp_path)
    measured.shipped.cache_clear()
    try:
        choice = select(spec(grad=True))
        assert choice.backend.name == "aten" and "not known" in choice.rejected["cpu"]
        assert select(spec(grad=False)).backend.name == "cpu"
        assert "backend:  aten" in explain(cnnlstm_fast.LSTMCell(I, H))  # of an unknown batch
    finally:
        measured.shipped.cache_clear()


def test_traced_and_autocast_cells_are_pytorchs_own() -> None:
    choice = select(spec(tracing=True, T=None, B=None))
    assert choice.backend.name == "aten" and "compiler" in choice.rejected["cpu"]
    choice = select(spec(autocast=True, dtype=torch.bfloat16))
    assert choice.backend.name == "aten" and "autocast" in choice.rejected["cpu"]


def test_the_kinds_of_cells_are_their_own() -> None:
    assert measured.kind(spec(grad=True)) == "float32 training cell"
    assert measured.kind(spec(cell=False, grad=False)) == "float32 inference D=1"
    assert "for a cell torch.lstm_cell" in BACKENDS["aten"].summary


def test_a_large_bfloat16_cell_may_train_with_pytorch() -> None:
    """oneDNN's wrong gradients are those of its LSTM."""
    large = spec(dtype=torch.bfloat16, grad=True, hidden_size=1024)
    assert BACKENDS["aten"].supports(large) is None
    assert BACKENDS["aten"].supports(large._replace(cell=False)) is not None


def test_explain_names_cells() -> None:
    model = Decoder()
    assert explain(model).count("not optimized") == 2
    text = explain(optimize(model), torch.randn(4, 3, I))
    assert "cell: LSTMCell(5, 8)" in text and "T=1 B=3 I=5 H=8 L=1 cell" in text
    assert "any T and B" in explain(model)


def test_verify_covers_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Decoder()
    x = torch.randn(4, 3, I)
    with one_thread():
        report = verify(optimize(model, backend="cpu"), x, seconds=0.0)
        assert report.ok and any(row.what == "gradient of cell.weight_hh" for row in report.errors)
        monkeypatch.setattr(
            steps, "run_step", lambda x, h, c, *rest: (1.01 * torch.tanh(h), c) if not rest[-2] else (h, c)
        )
        assert not verify(model, x, seconds=0.0).ok
