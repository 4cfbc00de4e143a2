"""The switch of TF32 as Python and the compiled operator read it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from helpers import float32_products

from cnnlstm_fast import _native
from cnnlstm_fast.recurrent.backends import cuda_plan
from cnnlstm_fast.recurrent.precision import allows_tf32

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
