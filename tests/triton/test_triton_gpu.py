"""The Triton kernels on a GPU: what is compiled when."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_gpu import ALGORITHMS, ROOT, Algorithm, layer, step

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "algorithm", [algorithm for algorithm in ALGORITHMS if algorithm.backend == "triton"], ids=str
)
def test_a_new_length_or_batch_compiles_nothing(algorithm: Algorithm) -> None:
    from cnnlstm_fast.recurrent.backends import triton as backend

    backend.kernels()
    from cnnlstm_fast.kernels import recurrence

    kernels = (
        recurrence.forward_kernel,
        recurrence.forward_streamed_kernel,
        recurrence.backward_kernel,
        recurrence.backward_streamed_kernel,
    )

    def compiled() -> list[int]:
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    made, x = layer(algorithm)
    step(made, x)
    before = compiled()
    for T, fewer in ((1, 0), (16, 1), (17, 0), (32, 2)):
        step(made, x.new_zeros((T, x.size(1) - fewer, x.size(2))))
    assert compiled() == before


WAITING = """
import sys, time, torch, triton
from cnnlstm_fast.recurrent.backends import triton as backend
backend.kernels()
from cnnlstm_fast.kernels.barrier import wait

@triton.jit
def waiting(arrivals):
    wait(arrivals, 2, 1)

# its only program has arrived once, and never will again
arrivals = torch.ones(1, dtype=torch.int32, device="cuda")
start = time.perf_counter()
waiting[(1,)](arrivals)
try:
    torch.cuda.synchronize()
except RuntimeError as error:
    print(time.perf_counter() - start, str(error).splitlines()[0], file=sys.stderr)
"""


def test_an_endless_wait_ends_with_an_error(tmp_path: Path) -> None:
    """In a separate process, which cannot use the GPU afterwards."""
    script = tmp_path / "waiting.py"  # Triton reads a kernel's source from its file
    script.write_text(WAITING)
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "a program waited for the others for too long" in done.stdout  # the kernel's own message
    seconds, error = done.stderr.splitlines()[-1].split(maxsplit=1)
    assert "CUDA error" in error and 0.1 < float(seconds) < 30, done.stderr
    assert torch.ones(3, device="cuda").sum() == 3  # other processes can still use it
