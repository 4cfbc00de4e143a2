"""Every backend on every row of a suite by pytest-benchmark: pytest bench --benchmark-only [--suite core]

With --benchmark-disable only the accuracy check runs, as a test. Each backend is timed separately; for the comparison
with other libraries in interleaved rounds see ``python -m bench``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from cnnlstm_fast.recurrent.backends import BACKENDS

from .accuracy import check_accuracy, unsupported_reason
from .cases import DTYPES, Case, calls
from .measure.jobs import build, fast_job


def measurable(backend: str) -> bool:
    """The CUDA and Triton kernels run on a CPU only for tests; their times there mean nothing."""
    return backend not in ("cuda", "triton") or torch.cuda.is_available()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = [
        pytest.param(*call, backend, id=f"{call.case.name}-{call.mode}-{call.dtype}-{backend}")
        for call in calls(metafunc.config.getoption("--suite"))
        for backend in filter(measurable, BACKENDS)
        if not call.case.model and unsupported_reason(backend, *call) is None
    ]
    metafunc.parametrize(("case", "mode", "dtype", "backend"), rows)


@pytest.mark.sampled(5)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_lstm(benchmark: Any, case: Case, mode: str, dtype: str, backend: str) -> None:
    rows = check_accuracy(case, mode, dtype, backend)
    benchmark.group = f"{case.name} {mode}"
    benchmark.extra_info |= {
        "case": asdict(case),
        "mode": mode,
        "dtype": dtype,
        "backend": backend,
        "errors": {row.what: row.fast for row in rows},
    }
    job = fast_job(case, build(case, DTYPES[dtype]), mode, backend, amp=dtype == "amp")
    job()  # warm-up: pytest-benchmark chooses the number of rounds by the first call
    benchmark(job)
