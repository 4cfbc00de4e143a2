"""Products outside of the recurrence: by either library, and by the faster one of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers import Case, check_case, make

from cnnlstm_fast import _native
from cnnlstm_fast.recurrent import functional

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")

# Each has products of more than 2^23 operations, which is where a library is chosen.
CASES = [
    Case(T=40, B=16, I=70, H=96, layers=2, bidirectional=True),
    Case(T=30, B=24, I=200, H=64, proj=48, kind="lengths"),
    Case(T=1, B=64, I=512, H=160),  # h0's product, too, comes before the recurrence
    Case(T=12, B=8, I=2300, H=65, kind="packed"),
]


@pytest.fixture(params=["mkl", "onednn"])
def library(request: pytest.FixtureRequest) -> Iterator[str]:
    torch.ops.cnnlstm_fast.set_gemm_library(request.param)
    yield request.param
    torch.ops.cnnlstm_fast.set_gemm_library("auto")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backward", [True, False], ids=["training", "inference"])
def test_either_library(library: str, case: Case, backward: bool) -> None:
    assert torch.ops.cnnlstm_fast.gemm_library(False) == library
    check_case(case, "cpu", torch.float32, backward=backward)


def test_the_libraries_differ(library: str) -> None:
    """So that the test above does not compare one with itself: bits differ somewhere."""
    data = make(CASES[0], torch.float32, seed=0).to(torch.float32)
    found = []
    for name in ("mkl", library):
        torch.ops.cnnlstm_fast.set_gemm_library(name)
        x, hx, weights = data.view([t.clone().requires_grad_() for t in data.leaves])
        output = functional.lstm(x, hx, weights, num_layers=2, bidirectional=True, backend="cpu")[0]
        found.append(torch.autograd.grad(output.sum(), weights))
    same = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert same == (library == "mkl")


def test_a_library_is_chosen() -> None:
    ops = torch.ops.cnnlstm_fast
    assert {ops.gemm_library(transposed) for transposed in (False, True)} <= {"mkl", "onednn"}
    with pytest.raises(RuntimeError, match="expected auto, mkl or onednn, got blis"):
        ops.set_gemm_library("blis")
