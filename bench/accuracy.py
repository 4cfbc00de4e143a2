"""The accuracy check: only results within the error contract of ``cnnlstm_fast.contract`` are timed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from cnnlstm_fast.contract import APPROXIMATE, ErrorRow, bound, is_gradient, norm, relative_error
from cnnlstm_fast.recurrent.backends import BACKENDS

from .cases import DTYPES, Case
from .measure.jobs import build, fast_job, oracle_job, pytorch_job, runs_in_pytorch

COMPUTE_DTYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "amp": torch.bfloat16,
}
"""The dtype that a row computes in, which sets its error limit."""
REDUCED_PRECISION_LIMITS = {"tf32": 5e-3, "int8": APPROXIMATE}
"""Error limits of candidates that compute in less than the row's dtype; they are shown for orientation only."""
FLIPS = 5e-2
"""The least error limit of a whole model's gradients: they jump where rounding flips a ReLU or a max-pooling choice, in
one implementation and not in another. Measured: up to 1e-2, where 5e-6 was the error without a flip."""


def accuracy_errors(
    found: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    eager: Mapping[str, float],
    dtype: str,
    precision: str,
    whole_model: bool = False,
) -> list[ErrorRow]:
    """The errors of all results of one candidate, with PyTorch's own errors (0 where it cannot run the call) and the
    limits.

    Args:
        whole_model: allow for ``FLIPS``.

    Raises:
        AssertionError: a result is missing; the message names it.
    """
    missing = sorted(exact.keys() - found.keys())
    assert not missing, f"no result for {', '.join(missing)}"
    rows = []
    total = _of_gradients(exact)
    for what, ref in exact.items():
        own = eager.get(what, 0.0)
        limit = REDUCED_PRECISION_LIMITS.get(precision) or bound(own, COMPUTE_DTYPES[dtype])
        if whole_model and is_gradient(what):
            limit = max(limit, FLIPS)
        rows.append(
            ErrorRow(what, own, relative_error(found[what], ref, total if is_gradient(what) else 0.0), limit)
        )
    return rows


def _of_gradients(exact: Mapping[str, Tensor]) -> float:
    """The norm of all gradients together."""
    return math.hypot(*(norm(ref) for what, ref in exact.items() if is_gradient(what)))


def accuracy_failure(rows: list[ErrorRow]) -> str | None:
    """None, or the results whose error exceeds the limit, with the figures."""
    failed = [row for row in rows if not row.ok]
    return (
        "; ".join(
            f"{row.what}: error {row.fast:.2e}, limit {row.limit:.2e} (PyTorch's own {row.eager:.2e})"
            for row in failed
        )
        or None
    )


def unsupported_reason(backend: str, case: Case, mode: str, dtype: str) -> str | None:
    """None, or why pytest-benchmark does not time a backend on a case."""
    spec = case.spec(mode, dtype)
    reason = BACKENDS[backend].supports(spec)
    if reason is None and backend == "reference":
        others = [b.name for b in BACKENDS.values() if b.name != backend and b.supports(spec) is None]
        if others:
            return f"the reference is timed only where no other backend can run the call: {', '.join(others)} can"
    return reason


def check_accuracy(case: Case, mode: str, dtype: str, backend: str) -> list[ErrorRow]:
    """Runs a backend on the case as it is timed, and also with initial states if it is timed without.

    Raises:
        AssertionError: an error exceeds its limit; the message gives the figures.
    """
    case = replace(case, dropout=0.0)  # every implementation draws its masks differently
    precision = "int8" if BACKENDS[backend].approximate else dtype
    rows: list[ErrorRow] = []
    for states in sorted({case.states, True}):
        with nan_filled_memory():
            job = fast_job(case, build(case, DTYPES[dtype]), mode, backend, states, dtype == "amp")
            found = job.results()
        exact, eager = _exact(case, dtype, states), _eager_errors(case, mode, dtype, states)
        exact = {what: exact[what] for what in found}
        suffix = " (with initial states)" if states and not case.states else ""
        for row in accuracy_errors(found, exact, eager, dtype, precision):
            rows.append(ErrorRow(row.what + suffix, row.eager, row.fast, row.limit))
    failure = accuracy_failure(rows)
    if failure:
        raise AssertionError(f"{backend} on {case.name}, {mode}, {dtype}: accuracy check failed: {failure}")
    return rows


@lru_cache(maxsize=4)
def _exact(case: Case, dtype: str, states: bool) -> dict[str, Tensor]:
    """All float64 results; the outputs also serve for inference."""
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
        whole_model: allow for ``FLIPS``.

    Raises:
        AssertionError: PyTorch's results are far from the oracle's: one of the two is wrong, and limits from such
            errors would accept anything.
    """
    total = _of_gradients(exact)
    errors = {
        what: relative_error(result, exact[what], total if is_gradient(what) else 0.0)
        for what, result in eager.items()
    }
    plausible = 0.5 if whole_model else math.sqrt(torch.finfo(COMPUTE_DTYPES[dtype]).eps)
    for what, error in errors.items():
        assert error <= plausible, f"the oracle and PyTorch disagree: {what} by {error:.2e}"
    return errors


@contextmanager
def nan_filled_memory() -> Iterator[None]:
    """Fills new tensors with NaN, which exposes a kernel that leaves a part of its outputs unwritten."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
