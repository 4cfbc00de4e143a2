"""The gate: nothing is timed whose numbers break the contract of ``cnnlstm_fast.contract``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from cnnlstm_fast.contract import APPROXIMATE, ErrorRow, bound, relative_error
from cnnlstm_fast.recurrent.backends import BACKENDS

from .cases import DTYPES, Case
from .measure.jobs import build, fast_job, oracle_job, pytorch_job, runs_in_pytorch

COMPUTED_IN = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "amp": torch.bfloat16,
}
"""The dtype whose errors a row of that dtype may have."""
COARSE = {"tf32": 5e-3, "int8": APPROXIMATE}
"""The largest error of what computes in less than the row's dtype, and is compared for orientation only."""


def judge(
    found: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    eager: Mapping[str, float],
    dtype: str,
    precision: str,
) -> list[ErrorRow]:
    """The errors of all results of one candidate, beside PyTorch's own (0 where it cannot run the call).

    Raises:
        AssertionError: a result is missing; the message names it.
    """
    missing = sorted(exact.keys() - found.keys())
    assert not missing, f"no result for {', '.join(missing)}"
    rows = []
    for what, ref in exact.items():
        own = eager.get(what, 0.0)
        limit = COARSE.get(precision) or bound(own, COMPUTED_IN[dtype])
        rows.append(ErrorRow(what, own, relative_error(found[what], ref), limit))
    return rows


def complaint(rows: list[ErrorRow]) -> str | None:
    """None, or the figures of the results that break the contract."""
    failed = [row for row in rows if not row.ok]
    return (
        "; ".join(
            f"{row.what}: error {row.fast:.2e}, limit {row.limit:.2e} (PyTorch's own {row.eager:.2e})"
            for row in failed
        )
        or None
    )


def why_not(backend: str, case: Case, mode: str, dtype: str) -> str | None:
    """None, or why a backend is not among those that pytest-benchmark times on a case."""
    spec = case.spec(mode, dtype)
    reason = BACKENDS[backend].supports(spec)
    if reason is None and backend == "reference":
        others = [b.name for b in BACKENDS.values() if b.name != backend and b.supports(spec) is None]
        if others:
            return f"it is the oracle and the last resort, which {', '.join(others)} make unneeded here"
    return reason


def check(case: Case, mode: str, dtype: str, backend: str) -> list[ErrorRow]:
    """Runs a backend on the case as it is timed, and with states and their gradients if it is timed without.

    Raises:
        AssertionError: a result breaks the contract; the message gives the figures.
    """
    case = replace(case, dropout=0.0)  # masks are drawn differently everywhere
    precision = "int8" if BACKENDS[backend].approximate else dtype
    rows: list[ErrorRow] = []
    for states in sorted({case.states, True}):
        with memory_full_of_nan():
            job = fast_job(case, build(case, DTYPES[dtype]), mode, backend, states, dtype == "amp")
            found = job.results()
        exact, eager = _exact(case, dtype, states), _eager_errors(case, mode, dtype, states)
        exact = {what: exact[what] for what in found}
        handed = " (states handed in)" if states and not case.states else ""
        for row in judge(found, exact, eager, dtype, precision):
            rows.append(ErrorRow(row.what + handed, row.eager, row.fast, row.limit))
    wrong = complaint(rows)
    if wrong:
        raise AssertionError(f"{backend} on {case.name}, {mode}, {dtype}, breaks the contract: {wrong}")
    return rows


@lru_cache(maxsize=4)
def _exact(case: Case, dtype: str, states: bool) -> dict[str, Tensor]:
    """All float64 results; the outputs are those of inference, too."""
    return oracle_job(case, build(case, DTYPES[dtype]), "training", states).results()


@lru_cache(maxsize=4)
def _eager_errors(case: Case, mode: str, dtype: str, states: bool) -> dict[str, float]:
    """PyTorch's own errors, none where it cannot run the case."""
    if not runs_in_pytorch(case):
        return {}
    job = pytorch_job(case, build(case, DTYPES[dtype]), mode, states, dtype == "amp")
    try:
        return eager_errors(job.results(), _exact(case, dtype, states), dtype)
    except AssertionError as error:
        raise AssertionError(f"{case.name}, {mode}, {dtype}: {error}") from error


def eager_errors(
    eager: Mapping[str, Tensor], exact: Mapping[str, Tensor], dtype: str, whole_model: bool = False
) -> dict[str, float]:
    """PyTorch's own errors.

    Args:
        whole_model: the first convolutions' gradients jump with every ReLU and maximum that a rounding turns over.

    Raises:
        AssertionError: the oracle computes something else, which would make every limit a wide one.
    """
    errors = {what: relative_error(result, exact[what]) for what, result in eager.items()}
    sane = 0.5 if whole_model else math.sqrt(torch.finfo(COMPUTED_IN[dtype]).eps)
    for what, error in errors.items():
        assert error <= sane, f"the oracle and PyTorch disagree: {what} by {error:.2e}"
    return errors


@contextmanager
def memory_full_of_nan() -> Iterator[None]:
    """Fresh tensors hold NaN, so that a kernel that leaves a part of its outputs unwritten is found out."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
