"""The operator: opcheck, its gradients and double gradients, and its place in compiled and exported graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import EXACT, Case, Data, fast, make, require, results
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence

import cnnlstm_fast
from cnnlstm_fast import BACKENDS
from cnnlstm_fast.contract import bound, relative_error

LSTM = torch.ops.cnnlstm_fast.lstm.default
BACKWARD = torch.ops.cnnlstm_fast.lstm_backward.default

OP_CASES = [
    Case(T=4, B=3, I=5, H=6),
    Case(T=4, B=3, I=5, H=6, layers=2, bidirectional=True, proj=2, cells=True),
    Case(T=1, B=1, I=5, H=6, bias=False),
    Case(T=4, B=3, I=5, H=6, layers=2, kind="packed"),
    Case(T=4, B=3, I=5, H=6, layers=2, bidirectional=True, kind="lengths+reset"),
]


def operands(case: Case, dtype: torch.dtype, grad: bool) -> tuple[Data, list[Tensor], list[Any]]:
    """The data, the differentiable tensors, and the operator's tensor arguments."""
    data = make(case, dtype).to(dtype)
    leaves = [t.requires_grad_(grad) for t in data.leaves]
    x, hx, weights = data.view(leaves)
    lengths, batch_sizes = data.lengths, None
    if case.kind == "packed":
        packed = pack_padded_sequence(x.detach(), lengths, enforce_sorted=False)
        x, batch_sizes, lengths = packed.data.requires_grad_(grad), packed.batch_sizes, None
        leaves[0] = x
    return data, leaves, [x, *hx, weights, batch_sizes, lengths, data.reset]


@pytest.fixture(params=EXACT)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.sampled(7, "interpreted")
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_opcheck_of_forward(case: Case, grad: bool, dropout: bool, backend: str) -> None:
    data, _, tensors = operands(case, torch.float32, grad)
    require(backend, data)
    mask = None
    if dropout:
        D = 2 if case.bidirectional else 1
        mask = torch.ones(case.layers - 1, *tensors[0].shape[:-1], D * (case.proj or case.H)) * 2
    torch.library.opcheck(LSTM, (*tensors, mask, case.bidirectional, grad, case.cells, backend))


@pytest.mark.sampled(4, "interpreted")
@pytest.mark.parametrize("needs", [(True, True), (False, True), (True, False)], ids=str)
@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_opcheck_of_backward(case: Case, needs: tuple[bool, bool], backend: str) -> None:
    data, _, tensors = operands(case, torch.float32, False)
    require(backend, data)
    outs = LSTM(*tensors, None, case.bidirectional, True, case.cells, backend)
    grads = [torch.randn_like(outs[0]), None, torch.randn_like(outs[2]), None]
    if case.cells:
        grads[3] = torch.randn_like(outs[3])
    arguments = (*grads, *tensors, None, outs[0], *outs[3:], case.bidirectional, *needs, backend)
    # autograd of backward is compared with the reference below: its formula detaches what it was not asked for
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(BACKWARD, arguments, test_utils=checks)


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_gradcheck_of_the_operator(case: Case) -> None:
    """In float64, through the registered formulas and not through the reference's own autograd."""
    case = case._replace(T=min(case.T, 2), B=2, I=2, H=3)
    _, leaves, tensors = operands(case, torch.float64, True)

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        x, h0, c0, *weights = leaves
        outs = LSTM(x, h0, c0, weights, *tensors[4:], None, case.bidirectional, True, case.cells, "reference")
        return outs[: 4 if case.cells else 3]

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


def double_backward(run: Any, data: Data) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in data.leaves]
    outs = run(data, leaves)
    first = torch.autograd.grad(outs, leaves, data.cotangents, create_graph=True)
    return list(torch.autograd.grad(sum((g * g).sum() for g in first), leaves))


@pytest.mark.parametrize(
    "case",
    [Case(H=8, layers=2, bidirectional=True), Case(H=8, kind="lengths", cells=True), Case(kind="packed")],
)
def test_double_backward_equals_the_references(case: Case, backend: str) -> None:
    data = make(case, torch.float32)
    there = data.to(torch.float32)
    require(backend, there)
    exact = double_backward(fast("reference"), data)
    eager = double_backward(fast("reference"), there)
    got = double_backward(fast(backend), there)
    for name, g, e, x in zip(data.names, got, eager, exact, strict=True):
        assert relative_error(g, x) <= bound(relative_error(e, x), torch.float32), name


def test_double_backward_of_the_input_alone(backend: str) -> None:
    """A gradient penalty: frozen weights, the gradient of the input's gradient."""
    data = make(Case(H=8, layers=2), torch.float32).to(torch.float32)
    require(backend, data)

    def penalty(name: str) -> Tensor:
        leaves = [data.leaves[0].clone().requires_grad_(), *data.leaves[1:]]
        output = fast(name)(data, leaves)[0]
        (g,) = torch.autograd.grad(output.sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(g.square().sum(), leaves[0])[0]

    torch.testing.assert_close(penalty(backend), penalty("reference"))


def test_gates_and_hidden_carry_no_gradient(backend: str) -> None:
    case = Case(layers=2)
    data, _, tensors = operands(case, torch.float32, True)
    require(backend, data)
    outs = LSTM(*tensors, None, False, True, False, backend)
    assert outs[0].requires_grad and not outs[4].requires_grad and not outs[5].requires_grad


def test_an_unknown_backend_is_refused_by_the_operator() -> None:
    _, _, tensors = operands(Case(), torch.float32, False)
    with pytest.raises((RuntimeError, KeyError, ValueError), match="nonsense"):
        LSTM(*tensors, None, False, False, False, "nonsense")


class Tagger(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 16, **options)
        self.head = nn.Linear(16 * (2 if self.lstm.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.lstm, nn.Module)
        return self.head(self.lstm(self.conv(x).permute(2, 0, 1))[0])


SIZES = [(7, 3), (9, 3), (5, 4), (12, 2), (30, 5), (8, 6)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_compile_in_one_graph_for_all_sizes(training: bool, bidirectional: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = cnnlstm_fast.optimize(Tagger(num_layers=2, bidirectional=bidirectional)).train(training)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for T, B in SIZES:
        x = torch.randn(B, 4, T)
        with torch.set_grad_enabled(training):
            got, want = compiled(x), model(x)
        torch.testing.assert_close(got, want)
        if training:
            weights = list(model.parameters())
            grads = [torch.autograd.grad(y.square().sum(), weights) for y in (got, want)]
            torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 3


def test_compile_with_the_default_compiler() -> None:
    torch._dynamo.reset()
    model = cnnlstm_fast.optimize(Tagger()).eval()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        for T, B in ((7, 3), (9, 2), (1, 1)):
            x = torch.randn(B, 4, T)
            torch.testing.assert_close(compiled(x), model(x))


def test_compile_with_lengths_and_states() -> None:
    torch._dynamo.reset()
    layer = cnnlstm_fast.LSTM(4, 8, 2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for T, B in ((6, 3), (7, 4), (9, 2)):
        x, h, c = torch.randn(T, B, 4), torch.randn(2, B, 8), torch.randn(2, B, 8)
        lengths = torch.randint(0, T + 1, (B,))
        torch.testing.assert_close(compiled(x, (h, c), lengths=lengths), layer(x, (h, c), lengths=lengths))


def test_compile_with_dropout_runs() -> None:
    torch._dynamo.reset()
    layer = cnnlstm_fast.LSTM(4, 8, 2, dropout=0.5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 3, 4)
    a, b = compiled(x)[0], compiled(x)[0]
    assert not torch.equal(a, b) and a.isfinite().all()


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_batch_and_time(strict: bool) -> None:
    model = cnnlstm_fast.optimize(Tagger(num_layers=2, bidirectional=True)).eval()
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("time")}
    program = torch.export.export(model, (torch.randn(3, 4, 7),), dynamic_shapes=(dims,), strict=strict)
    exported = program.module()
    for B, T in ((3, 7), (1, 1), (5, 1), (1, 20), (4, 33)):
        x = torch.randn(B, 4, T)
        torch.testing.assert_close(exported(x), model(x))


def test_a_graph_holds_the_operator_once() -> None:
    model = cnnlstm_fast.optimize(Tagger(num_layers=3, bidirectional=True)).eval()
    program = torch.export.export(model, (torch.randn(3, 4, 7),))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(LSTM) == 1


def test_meta_tensors_go_through() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, 2, device="meta")
    output, (h, c) = layer(torch.zeros(5, 3, 4, device="meta"))
    assert (output.shape, h.shape, c.shape) == ((5, 3, 8), (2, 3, 8), (2, 3, 8))


def test_fake_shapes_equal_real_ones(backend: str) -> None:
    for case in OP_CASES:
        data, _, tensors = operands(case, torch.float32, False)
        require(backend, data)
        for flags in ((True, False), (False, True), (False, False)):
            real = LSTM(*tensors, None, case.bidirectional, *flags, backend)
            with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
                fake = LSTM(*tensors, None, case.bidirectional, *flags, backend)
            assert [t.dtype for t in real] == [t.dtype for t in fake]
            if not BACKENDS[backend].differentiable:
                assert [t.shape for t in real] == [t.shape for t in fake]
        assert results(fast(backend), data, backward=False)
