"""The oracle itself, against torch.nn.LSTM in float64 and, where that cannot go, against its own definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import Case, make, oracle, pytorch, results
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from cnnlstm_fast.recurrent import functional, reference

COMBINATIONS = [
    Case(T=5, B=3, I=4, H=6, layers=layers, bidirectional=bi, bias=bias, proj=proj, kind=kind, states=states)
    for layers, bi, bias, proj, kind, states in itertools.product(
        (1, 2, 3), (False, True), (True, False), (0, 2), ("padded", "packed"), (True, False)
    )
]


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", COMBINATIONS, ids=str)
def test_equals_nn_lstm_in_float64(case: Case) -> None:
    data = make(case)
    assert_same(results(oracle, data), results(pytorch, data))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("packed", [None, "sorted", "unsorted"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_equals_the_nn_lstm_module(
    batch_first: bool, packed: str | None, bidirectional: bool, proj_size: int
) -> None:
    """The same through the public function, whose layouts the other tests take for granted."""
    torch.manual_seed(0)
    layer = nn.LSTM(
        4,
        6,
        2,
        batch_first=batch_first,
        bidirectional=bidirectional,
        proj_size=proj_size,
        dtype=torch.float64,
    )
    x = torch.randn(3, 5, 4, dtype=torch.float64).requires_grad_()
    lengths = {"sorted": [5, 3, 2], "unsorted": [2, 5, 3], None: None}[packed]
    if not batch_first:
        lengths = None if lengths is None else [3, 1, 2, 3, 1] if packed == "unsorted" else [3, 3, 2, 1, 1]
    options = dict(num_layers=2, bidirectional=bidirectional, proj_size=proj_size, batch_first=batch_first)

    found = []
    for call in (
        layer,
        lambda x: functional.lstm(x, None, layer._flat_weights, **options, backend="reference"),
    ):
        given = x
        if packed:
            given = pack_padded_sequence(x, torch.tensor(lengths), batch_first, packed == "sorted")
        output, (h, c) = call(given)
        rows = output.data if packed else output
        grads = torch.autograd.grad((rows.sin().sum() + h.cos().sum() + c.sum()), [x, *layer.parameters()])
        found.append([rows, h, c, *grads])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("proj", [0, 2])
def test_packed_rows_equal_padded_with_lengths(bidirectional: bool, proj: int) -> None:
    data = make(Case(T=6, B=4, layers=2, bidirectional=bidirectional, proj=proj, kind="packed", cells=True))
    x, hx, weights = data.view(data.leaves)
    packed = pack_padded_sequence(x, data.lengths, enforce_sorted=False)
    order = packed.sorted_indices
    rows, h, c, cells = reference.lstm(
        packed.data,
        hx[0][:, order],
        hx[1][:, order],
        weights,
        packed.batch_sizes,
        bidirectional=bidirectional,
    )
    want = oracle(data, data.leaves)
    torch.testing.assert_close(h, want[1][:, order])
    torch.testing.assert_close(c, want[2][:, order])
    torch.testing.assert_close(rows, pack_padded_sequence(want[0], data.lengths, enforce_sorted=False).data)
    for k in range(cells.size(0)):
        expected = pack_padded_sequence(want[3][k], data.lengths, enforce_sorted=False).data
        torch.testing.assert_close(cells[k], expected)


def test_lengths_of_zero_keep_the_state_and_give_zeros() -> None:
    data = make(Case(T=4, B=3, layers=2, bidirectional=True, kind="lengths", cells=True))
    output, h, c, cells = oracle(data, data.leaves)
    assert data.lengths[-1] == 0
    assert not output[:, -1].any() and not cells[:, :, -1].any()
    _, (h0, c0), _ = data.view(data.leaves)
    assert torch.equal(h[:, -1], h0[:, -1]) and torch.equal(c[:, -1], c0[:, -1])


def test_what_lies_beyond_a_length_does_not_matter() -> None:
    data = make(Case(T=5, B=3, kind="lengths", bidirectional=True))
    want = oracle(data, data.leaves)
    for b, n in enumerate(data.lengths.tolist()):
        data.leaves[0][n:, b] = float("nan")
    for got, expected in zip(oracle(data, data.leaves), want, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("backwards", [False, True])
def test_reset_equals_the_segments_one_by_one(backwards: bool) -> None:
    """One sequence, cut before each reset, every later segment starting from zeros in its direction's order."""
    case = Case(T=9, B=1, I=3, H=4, bidirectional=True)
    data = make(case)
    x, (h0, c0), weights = data.view(data.leaves)
    reset = torch.zeros(9, 1, dtype=torch.bool)
    reset[[2, 3, 7]] = True
    direction = int(backwards)
    w = weights[4 * direction : 4 * direction + 4]
    output = reference.lstm(x, h0, c0, weights, reset=reset, bidirectional=True)
    order = list(reversed(range(9))) if backwards else list(range(9))
    h, c = h0[direction : direction + 1], c0[direction : direction + 1]
    for t in order:
        if reset[t]:
            h, c = torch.zeros_like(h), torch.zeros_like(c)
        out, h, c = torch.lstm(x[t : t + 1], (h, c), w, True, 1, 0.0, False, False, False)
        torch.testing.assert_close(output[0][t, :, 4 * direction : 4 * direction + 4], out[0])
        torch.testing.assert_close(output[3][direction, t], c[0])
    torch.testing.assert_close(output[1][direction], h[0])


def test_reset_at_step_zero_drops_even_a_nan_state() -> None:
    data = make(Case(T=3, B=2))
    x, (h0, c0), weights = data.view(data.leaves)
    reset = torch.zeros(3, 2, dtype=torch.bool)
    reset[0, 0] = True
    h0[:, 0] = float("nan")
    output = reference.lstm(x, h0, c0, weights, reset=reset)[0]
    zeros = torch.zeros_like(c0[:, :1])
    want = reference.lstm(x[:, :1], zeros, zeros, weights)[0]
    torch.testing.assert_close(output[:, :1], want)
    assert output.isfinite().all()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_mask_by_hand(bidirectional: bool) -> None:
    case = Case(T=4, B=2, layers=3, bidirectional=bidirectional)
    data = make(case)
    x, (h0, c0), weights = data.view(data.leaves)
    directions = 2 if bidirectional else 1
    mask = (torch.rand(2, 4, 2, directions * 4) < 0.5).double() * 2
    output, h, _, _ = reference.lstm(x, h0, c0, weights, dropout_mask=mask, bidirectional=bidirectional)
    count = 4 * directions
    for layer in range(3):
        s = slice(layer * directions, (layer + 1) * directions)
        x = x if layer == 0 else x * mask[layer - 1]
        w = weights[layer * count : (layer + 1) * count]
        x, layer_h, _ = torch.lstm(x, (h0[s], c0[s]), w, True, 1, 0.0, False, bidirectional, False)
        torch.testing.assert_close(h[s], layer_h)
    torch.testing.assert_close(output, x)


@pytest.mark.parametrize("proj", [0, 2])
def test_cells_of_every_step_equal_step_by_step_runs(proj: int) -> None:
    case = Case(T=5, B=2, layers=1, proj=proj, cells=True)
    data = make(case)
    x, state, weights = data.view(data.leaves)
    cells = oracle(data, data.leaves)[3]
    for t in range(5):
        _, *state = torch.lstm(x[t : t + 1], state, weights, True, 1, 0.0, False, False, False)
        torch.testing.assert_close(cells[:, t], state[1])


@pytest.mark.parametrize(
    "case", [Case(T=0, layers=2, bidirectional=True), Case(B=0, layers=2, proj=2)], ids=str
)
def test_nothing_to_do(case: Case) -> None:
    data = make(case)
    found = results(oracle, data)
    _, (h0, c0), _ = data.view(data.leaves)
    P, D = case.proj or case.H, 2 if case.bidirectional else 1
    assert found["output"].shape == (case.T, case.B, D * P)
    assert torch.equal(found["h_n"], h0) and torch.equal(found["c_n"], c0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_keeps_its_dtype_and_is_near(dtype: torch.dtype) -> None:
    data = make(Case(layers=2, bidirectional=True, kind="lengths+reset", cells=True), dtype)
    exact = results(oracle, data)
    for name, got in results(oracle, data.to(dtype)).items():
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), exact[name], rtol=0.1, atol=20 * torch.finfo(dtype).eps)
