"""Every backend on every row of a suite by pytest-benchmark: pytest bench --benchmark-only [--suite core]

With --benchmark-disable only the gate runs, as a test. Each is measured by itself; the comparison with other libraries,
in turns, is ``python -m bench``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from cnnlstm_fast.recurrent.backends import BACKENDS

from .accuracy import check, why_not
from .cases import DTYPES, Case, calls
from .measure.jobs import build, fast_job


def measurable(backend: str) -> bool:
    """Kernels for GPUs run slowly on a CPU, where only tests run them, and that says nothing of how fast they are."""
    return backend not in ("cuda", "triton") or torch.cuda.is_available()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rows = [
        pytest.param(*call, backend, id=f"{call.case.name}-{call.mode}-{call.dtype}-{backend}")
        for call in calls(metafunc.config.getoption("--suite"))
        for backend in filter(measurable, BACKENDS)
        if not call.case.model and why_not(backend, *call) is None
    ]
    metafunc.parametrize(("case", "mode", "dtype", "backend"), rows)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_lstm(benchmark: Any, case: Case, mode: str, dtype: str, backend: str) -> None:
    rows = check(case, mode, dtype, backend)
    benchmark.group = f"{case.name} {mode}"
    benchmark.extra_info |= {
        "case": asdict(case),
        "mode": mode,
        "dtype": dtype,
        "backend": backend,
        "errors": {row.what: row.fast for row in rows},
    }
    job = fast_job(case, build(case, DTYPES[dtype]), mode, backend, amp=dtype == "amp")
    job()  # what only a first call does must not set how many rounds there will be
    benchmark(job)
