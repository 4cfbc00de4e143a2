"""The CPU kernels on drawn calls: shapes, strides, lengths, masks, options and threads, none of them chosen by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from helpers import (
    Case,
    Data,
    draw_data,
    fast,
    nan_memory,
    one_thread,
    oracle,
    pytorch,
    results,
    stored_shapes,
)
from hypothesis import given, note
from hypothesis import strategies as st

from cnnlstm_fast import _native
from cnnlstm_fast.contract import Result, bound, compare

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")

SIZES = st.integers(1, 20) | st.integers(1, 100)
# Mostly more than the machine has cores, since each team of them splits a layer in another way.
THREADS = st.integers(1, 8)
LAYOUTS = sorted(stored_shapes(Case()))


class Call(NamedTuple):
    case: Case
    lengths: list[int] | None
    threads: int
    seed: int


@st.composite
def calls(draw: st.DrawFn) -> Call:
    layers = draw(st.integers(1, 3))
    # Many steps at once only in a single layer: the time goes into the oracle's steps.
    T, B = draw(st.integers(0, 20 // layers)), draw(st.integers(0, 8) | st.integers(0, 40))
    I, H = draw(SIZES), draw(SIZES)
    kinds = ["padded", "lengths", "reset", "lengths+reset"] + ["packed"] * (T > 0 and B > 0)
    kind = draw(st.sampled_from(kinds))
    case = Case(
        T,
        B,
        I,
        H,
        layers=layers,
        bidirectional=draw(st.booleans()),
        bias=draw(st.booleans()),
        proj=draw(st.just(0) | st.integers(1, H - 1)) if H > 1 else 0,
        kind=kind,
        states=draw(st.booleans()),
        cells=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
    )
    lengths = None
    if kind == "packed" or "lengths" in kind:
        shortest = 1 if kind == "packed" else 0
        lengths = draw(st.lists(st.integers(shortest, T), min_size=B, max_size=B))
    return Call(case, lengths, draw(THREADS), draw(st.integers(0, 1 << 31)))


def limit(eager_error: float, dtype: torch.dtype) -> float:
    """Twice the contract's, so that chance cannot break it.

    Of 4,724 results of the smallest shapes, whose few numbers scatter most, none was above 0.7 of the contract's
    limit over 32 draws. A wrong index, a skipped step or memory that was not written is off by far more.
    """
    return 2.0 * bound(eager_error, dtype)


def compute(call: Call, data: Data, training: bool) -> dict[str, torch.Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(call.threads)
    try:
        with nan_memory():
            return results(fast("cpu"), data, training)
    finally:
        torch.set_num_threads(before)


@pytest.mark.drawn
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# PyTorch's own kernels warn of what they do not do fast.
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@given(call=calls())
def test_drawn_call(call: Call, dtype: torch.dtype, training: bool) -> None:
    def draw(k: int) -> Iterator[Result]:
        data = draw_data(call.case, dtype, call.seed + k)
        if call.lengths is not None:
            data = replace(data, lengths=torch.tensor(call.lengths, dtype=torch.int64))
        there = data.to(dtype)
        with torch.set_grad_enabled(training):
            got = compute(call, there, training)
            with one_thread():
                eager, exact = results(pytorch, there, training), results(oracle, data, training)
        for name in exact:
            assert got[name].dtype == dtype, name
            yield Result(name, dtype, got[name], eager[name], exact[name])

    failed = [row for row in compare(draw, limit=limit) if not row.ok]
    for row in failed:
        note(f"{row.what}: error {row.fast:.2e}, limit {row.limit:.2e}")
    assert not failed
