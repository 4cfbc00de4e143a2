"""The settings of the precision of float32 products: as Python and the compiled operator read them, and what they do to
an LSTM on a CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from helpers import float32_products

import cnnlstm_fast
from cnnlstm_fast import _native
from cnnlstm_fast.recurrent.backends import cuda_plan
from cnnlstm_fast.recurrent.precision import allows_tf32, reduced_by_onednn

SETTINGS = (
    *[
        f"torch.backends.{switch} = {value!r}"
        for switch in (
            "fp32_precision",
            "cudnn.fp32_precision",
            "cudnn.rnn.fp32_precision",
            "cudnn.conv.fp32_precision",
            "cuda.matmul.fp32_precision",
        )
        for value in ("none", "ieee", "tf32")
    ],
    *[
        f"torch.backends.{switch} = {value}"
        for switch in ("cudnn.allow_tf32", "cuda.matmul.allow_tf32")
        for value in (False, True)
    ],
    *[f"torch.set_float32_matmul_precision({value!r})" for value in ("highest", "high", "medium")],
)

# Some defaults cannot be set again, so that each setting comes first in a process of its own, all others after it.
READ = """
import os, sys, torch
from cnnlstm_fast.recurrent.precision import allows_tf32
settings = sys.argv[1:]
for first in settings:
    if os.fork() == 0:
        for setting in (first, *settings):
            exec(setting)
            {read}
        sys.stdout.flush()
        os._exit(0)
    assert os.wait()[1] == 0, first
"""


def readings(read: str) -> Iterator[list[list[str]]]:
    """What that code prints in each process, one line a setting."""
    script = [sys.executable, "-c", READ.format(read=read), *SETTINGS]
    done = subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    count = 1 + len(SETTINGS)
    assert len(lines) == len(SETTINGS) * count
    return (lines[i : i + count] for i in range(0, len(lines), count))


@pytest.mark.skipif(not _native.notes.get("cuda"), reason="needs the CUDA part")
def test_the_compiled_operator_reads_the_same() -> None:
    for found in readings("print(allows_tf32(), torch.ops.cnnlstm_fast.cuda_wants_tf32())"):
        assert all(python == compiled for python, compiled in found)
        assert {python for python, _ in found} == {"True", "False"}


def test_the_switches_of_single_products_are_others() -> None:
    for found in readings("print(allows_tf32(), 'matmul' in setting)"):
        before = "True"  # by default
        for reading, single in found:
            assert single == "False" or reading == before
            before = reading


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_both_backends_obey_it_in_float32_alone(precision: str) -> None:
    pytest.importorskip("triton")
    from cnnlstm_fast.recurrent.backends.triton import kernels

    kernels()
    from cnnlstm_fast.kernels.precision import products

    with float32_products(precision):
        tf32 = precision == "tf32"
        assert allows_tf32() == tf32
        assert products(torch.float32) == ("tf32" if tf32 else "tf32x3")
        assert cuda_plan.compute_type(torch.float32) == ("tf32" if tf32 else "float32")
        assert products(torch.bfloat16) == "tf32" and cuda_plan.compute_type(torch.bfloat16) == "bfloat16"


@contextmanager
def onednn(**settings: str) -> Iterator[None]:
    """Sets torch.backends.mkldnn.NAME.fp32_precision."""
    before = {name: getattr(torch.backends.mkldnn, name).fp32_precision for name in settings}
    try:
        for name, value in settings.items():
            getattr(torch.backends.mkldnn, name).fp32_precision = value
        yield
    finally:
        for name, value in before.items():
            getattr(torch.backends.mkldnn, name).fp32_precision = value


def test_what_permits_onednn_less_than_float32() -> None:
    assert reduced_by_onednn() == {}
    with onednn(rnn="bf16"):
        assert reduced_by_onednn() == {"torch.backends.mkldnn.rnn.fp32_precision": "bf16"}
    with onednn(rnn="ieee", matmul="tf32"):
        assert reduced_by_onednn() == {"torch.backends.mkldnn.matmul.fp32_precision": "tf32"}
    assert reduced_by_onednn() == {}


INHERITED = """
import torch
from cnnlstm_fast.recurrent.precision import reduced_by_onednn
torch.backends.OUTER = "bf16"
assert set(reduced_by_onednn().values()) == {"bf16"} and len(reduced_by_onednn()) == 2, reduced_by_onednn()
torch.backends.mkldnn.rnn.fp32_precision = "ieee"
assert list(reduced_by_onednn()) == ["torch.backends.mkldnn.matmul.fp32_precision"], reduced_by_onednn()
"""


@pytest.mark.parametrize("outer", ["fp32_precision", "mkldnn.fp32_precision"])
def test_outer_settings_hold_where_an_inner_one_is_not_set(outer: str) -> None:
    subprocess.run([sys.executable, "-c", INHERITED.replace("OUTER", outer)], check=True)


def test_pytorchs_lstm_does_not_heed_the_setting_of_its_name() -> None:
    """Neither does the backend ``cpu``, then. Should this fail on a later PyTorch, it has a precision to follow."""
    plain, x = torch.nn.LSTM(64, 64), torch.randn(20, 16, 64)
    expected = plain(x)[0]
    with onednn(rnn="bf16"):
        assert torch.equal(plain(x)[0], expected)


def test_explain_tells_of_a_setting_that_is_not_heeded() -> None:
    layer, x = cnnlstm_fast.LSTM(64, 64, backend="cpu"), torch.randn(20, 16, 64)
    expected = layer(x)[0]
    with onednn(rnn="bf16", matmul="tf32"):
        text = cnnlstm_fast.explain(layer, x)
        assert torch.equal(layer(x)[0], expected)
        assert "is not heeded" not in cnnlstm_fast.explain(layer.bfloat16(), x.bfloat16())
        aten = cnnlstm_fast.LSTM(64, 64, backend="aten")
        assert "is not heeded" not in cnnlstm_fast.explain(aten, x)
    for name, value in (("rnn", "bf16"), ("matmul", "tf32")):
        assert f"{name}.fp32_precision = {value!r} is not heeded: its products are in float32" in text
    assert "is not heeded" not in cnnlstm_fast.explain(cnnlstm_fast.LSTM(64, 64, backend="cpu"), x)
