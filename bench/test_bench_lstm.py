"""Every case on every backend that takes it; a case is timed only after the gate has passed it.

With --benchmark-disable each runs once, as a test of the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from bench.cases import CASES, DTYPES, MODES, Case
from bench.gate import check, why_not
from bench.jobs import build, fast_job
from cnnlstm_fast.backends import BACKENDS


def _measurements() -> Iterator[Any]:
    for case in CASES.values():
        for mode in MODES:
            for dtype in case.dtypes:
                for backend in BACKENDS:
                    if why_not(backend, case, mode, dtype) is None:
                        yield pytest.param(
                            case, mode, dtype, backend, id=f"{case.name}-{mode}-{dtype}-{backend}"
                        )


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("case", "mode", "dtype", "backend"), list(_measurements()))
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
    job = fast_job(case, build(case, DTYPES[dtype]), mode, backend)
    job()  # what only a first call does must not set how many rounds there will be
    benchmark(job)
