"""Which instructions multiply: seen in the results, or counted, so that a faster way that is never taken fails."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import cnnlstm_fast
from cnnlstm_fast import _native

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")

CPU = _native.facts()["cpu"] if _native.available else {"isas": [], "active_isa": "", "features": {}}
AMX = CPU["active_isa"] == "avx512" and torch.cpu._is_amx_tile_supported()
DOT_PRODUCTS = CPU["active_isa"] == "avx512" and CPU["features"]["avx512_bf16"]

# (T, B, I, H): unpacked weights, packed ones, and more rows than one tile
SIZES = [(1, 1, 32, 32), (30, 4, 64, 32), (30, 40, 64, 64), (9, 16, 33, 50)]
training = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])


def flushes(T: int, B: int, I: int, H: int, training: bool) -> bool:
    """Whether sums of products of bf16 that are no normal float32 come out as zeros: the dot products of AVX-512 and
    AMX flush them (Intel SDM, VDPBF16PS and TDPBF16PS), while FMA in float32 keeps them."""
    layer = cnnlstm_fast.LSTM(I, H, bias=False, backend="cpu", dtype=torch.bfloat16)
    x = torch.full((T, B, I), 2.0**-68, dtype=torch.bfloat16)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(2.0**-66)
    with torch.set_grad_enabled(training):
        cells = [layer(x)[1][1] for _ in range(3)]  # the weights are packed from the second call on
    assert all(torch.equal(c, cells[0]) for c in cells)
    return not cells[0].any()


FLUSHED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_cpu_microkernels import SIZES, flushes, uses
import torch
print([flushes(*size, training) for size in SIZES for training in (False, True)])
print(uses())
"""


def uses() -> int:
    return torch.ops.cnnlstm_fast.microkernel_uses()


@training
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bfloat16_takes_dot_products_exactly_where_they_are(
    size: tuple[int, int, int, int], training: bool
) -> None:
    assert flushes(*size, training) == DOT_PRODUCTS


@pytest.mark.parametrize("isa", [isa for isa in CPU["isas"] if isa != "avx512"])
def test_lower_instruction_sets_take_neither_dot_products_nor_the_matrix_engine(isa: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FLUSHED, os.path.dirname(__file__)],
        env={
            **os.environ,
            "CNNLSTM_CPU_ISA": isa,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.stdout.split("\n")[:2] == [str([False] * 2 * len(SIZES)), "0"], done.stderr[-2000:]


# Rows of a step, below and above what one tile holds.
@pytest.mark.parametrize("B", [1, 8, 16, 40])
@training
def test_bfloat16_takes_the_matrix_engine_exactly_where_it_is(B: int, training: bool) -> None:
    layer, x = cnnlstm_fast.LSTM(64, 64, backend="cpu", dtype=torch.bfloat16), torch.randn(30, B, 64)
    before = uses()
    with torch.set_grad_enabled(training):
        output = layer(x.bfloat16())[0]
    forward = uses()
    if training:
        output.sum().backward()
    assert (forward > before) == AMX
    assert (uses() > forward) == (AMX and training and B > 2)  # the input's product has 30 rows, a step B


@pytest.mark.skipif(not AMX, reason="the CPU has no AMX, or CNNLSTM_CPU_ISA names less")
@pytest.mark.parametrize("B", [1, 8, 16, 40])
def test_the_matrix_engine_takes_layers_apart_of_each_other(B: int) -> None:
    """A stack of two layers and directions: each of them takes it."""
    layer = cnnlstm_fast.LSTM(64, 64, 2, bidirectional=True, backend="cpu", dtype=torch.bfloat16)
    before = uses()
    with torch.no_grad():
        layer(torch.randn(30, B, 64).bfloat16())
    assert uses() - before >= 2


@pytest.mark.parametrize(("B", "takes"), [(4, False), (64, AMX)])
def test_int8_takes_the_matrix_engine_for_many_rows(B: int, takes: bool) -> None:
    """From 8 rows of 8 KB in all on (csrc/cpu/forward.h)."""
    layer, x = cnnlstm_fast.LSTM(256, 256, backend="cpu-int8"), torch.randn(4, B, 256)
    before = uses()
    with torch.no_grad():
        layer(x[:1] if B == 4 else x)
    assert (uses() > before) == takes


def test_float32_never_takes_the_matrix_engine() -> None:
    layer, x = cnnlstm_fast.LSTM(64, 64, backend="cpu"), torch.randn(30, 40, 64)
    before = uses()
    layer(x)[0].sum().backward()
    assert uses() == before
