"""NaN and infinity come out of the CPU kernels where they come out of nn.LSTM, and nowhere else.

The reference is nn.LSTM in float64, the plain formula: oneDNN, which computes its float32 and bfloat16, has no float64.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import Case, Data, fast, make, nan_memory, pytorch, results
from torch import Tensor

from cnnlstm_fast import _native

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")

NAN, INF = float("nan"), float("inf")
T, I, H = 6, 8, 24  # even sizes: PyTorch's bfloat16 product of odd ones lets a NaN through to the next row
LENGTHS = [4, 6, 1, 2]
FED = 20  # the unit whose h the replaced elements of w_hh multiply

# Name of the leaf and the element that is replaced; the sequence 1 has all steps, the sequence 2 one.
PLACES = {
    "x": ("x", (2, 1, 3)),
    "first x": ("x", (0, 1, 3)),
    "last x": ("x", (T - 1, 1, 3)),
    "x of a short sequence, maybe beyond its length": ("x", (3, 2, 5)),
    "h0": ("h0", (0, 1, 5)),
    "c0": ("c0", (0, 1, 5)),
    "h0 of the last layer and direction": ("h0", (-1, 1, H - 1)),
    "c0 of the last layer and direction": ("c0", (-1, 1, H - 1)),
    **{f"{gate} of w_ih": ("weight 0", (k * H + 5, 3)) for k, gate in enumerate("ifgo")},
    **{f"{gate} of w_hh": ("weight 1", (k * H + 17, FED)) for k, gate in enumerate("ifgo")},
    "b_ih": ("weight 2", (2 * H,)),
    "b_hh": ("weight 3", (4 * H - 1,)),
}


@pytest.fixture(autouse=True)
def _nan_memory():
    with nan_memory():
        yield


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


# Few and many sequences take different ways through the kernel.
@pytest.fixture(params=[("padded", 3), ("padded", 20), ("lengths", 20), ("packed", 3)], ids=str)
def calls(request: pytest.FixtureRequest) -> tuple[str, int]:
    return request.param


def data_of(calls: tuple[str, int], dtype: torch.dtype, H: int = H) -> Data:
    kind, B = calls
    data = make(Case(T, B, I, H, layers=2, bidirectional=True, kind=kind), dtype)
    if kind != "padded":
        data = replace(data, lengths=torch.tensor([LENGTHS[b % 4] for b in range(B)]))
    return data


def got_and_exact(data: Data, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the CPU kernel finds, and nn.LSTM in float64: for lengths, of a packed sequence."""
    kind = "padded" if data.lengths is None else "packed"
    exact = replace(data, case=data.case._replace(kind=kind))
    return results(fast("cpu"), data.to(dtype)), results(pytorch, exact)


def place(data: Data, name: str, index: tuple[int, ...], value: float) -> None:
    data.leaves[data.names.index(name)][index] = value


def hold_from_zero(data: Data) -> None:
    """Holds the unit FED on the side of its c0: i is closed, f and o are open. An infinite weight makes a jump of the
    sign of what it multiplies, and that of an h near zero is a matter of rounding."""
    c0 = data.leaves[data.names.index("c0")][0, :, FED]
    c0[:] = torch.tensor(2.0, dtype=c0.dtype).copysign(c0)
    bias = data.leaves[data.names.index("weight 2")].view(4, H)
    bias[:, FED] = torch.tensor([-6.0, 6.0, 0.0, 6.0])


@pytest.mark.parametrize("where", PLACES)
def test_nan_appears_where_nn_lstm_has_it(where: str, calls: tuple[str, int], dtype: torch.dtype) -> None:
    data = data_of(calls, dtype)
    place(data, *PLACES[where], NAN)
    for name, (got, want) in both(*got_and_exact(data, dtype)):
        assert torch.equal(got.isnan(), want.isnan()), name


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("where", PLACES)
def test_infinity_saturates_as_in_nn_lstm(
    where: str, sign: int, calls: tuple[str, int], dtype: torch.dtype
) -> None:
    """A gradient that is 0 * inf = NaN there may be infinite here: sigmoid ends at 1.6e-38, not at 0."""
    data = data_of(calls, dtype)
    hold_from_zero(data)
    place(data, *PLACES[where], sign * INF)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for name, (got, want) in both(*got_and_exact(data, dtype)):
        if name.startswith("gradient"):
            assert torch.equal(got.isfinite(), want.isfinite()), name
        else:
            torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", ["x", "h0"])
@pytest.mark.parametrize("H", [1, 7, 17, 33])
def test_infinity_leaves_odd_sizes_alone(
    H: int, name: str, calls: tuple[str, int], dtype: torch.dtype
) -> None:
    """bfloat16 products read what lies beyond the last unit, too."""
    data = data_of(calls, dtype, H)
    place(data, name, (0, 1, 0), INF)
    got, want = got_and_exact(data, dtype)
    for name in ("output", "h_n", "c_n"):
        assert torch.equal(got[name].isfinite(), want[name].isfinite()), name


def both(got: dict[str, Tensor], want: dict[str, Tensor]) -> list[tuple[str, tuple[Tensor, Tensor]]]:
    assert got.keys() == want.keys()
    return [(name, (got[name], want[name])) for name in got]
