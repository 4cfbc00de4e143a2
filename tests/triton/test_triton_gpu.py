"""The Triton kernels on a GPU: what is compiled when."""

from __future__ import annotations

import pytest
import torch
from test_gpu import ALGORITHMS, Algorithm, layer, step

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
