"""The gate: nothing is timed whose numbers break the contract of ``cnnlstm_fast.contract``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from cnnlstm_fast.backends import BACKENDS
from cnnlstm_fast.contract import ErrorRow, bound, relative_error

from .cases import DTYPES, Case
from .jobs import build, fast_job, oracle_job, pytorch_job, runs_in_pytorch


def why_not(backend: str, case: Case, mode: str, dtype: str) -> str | None:
    """None, or why a backend is not among those that are timed on a case."""
    spec = case.spec(mode, dtype)
    reason = BACKENDS[backend].supports(spec)
    if reason is None and backend == "reference":
        others = [b.name for b in BACKENDS.values() if b.name != backend and b.supports(spec) is None]
        if others:
            return f"it is the oracle and the last resort, which {', '.join(others)} make unneeded here"
    return reason


def check(case: Case, mode: str, dtype: str, backend: str) -> list[ErrorRow]:
    """Runs the case as it is timed, and with states and their gradients if it is timed without.

    Raises:
        AssertionError: a result breaks the contract; the message gives the figures.
    """
    rows: list[ErrorRow] = []
    for states in sorted({case.states, True}):
        with _memory_full_of_nan():
            found = fast_job(case, build(case, DTYPES[dtype]), mode, backend, states).results()
        exact, eager = _exact(case, dtype, states), _eager_errors(case, mode, dtype, states)
        handed = " (states handed in)" if states and not case.states else ""
        for what, result in found.items():
            limit = bound(eager[what], DTYPES[dtype])
            rows.append(ErrorRow(what + handed, eager[what], relative_error(result, exact[what]), limit))
    failed = [row for row in rows if not row.ok]
    if failed:
        figures = "; ".join(
            f"{row.what}: error {row.fast:.2e}, limit {row.limit:.2e} (PyTorch's own {row.eager:.2e})"
            for row in failed
        )
        raise AssertionError(f"{backend} on {case.name}, {mode}, {dtype}, breaks the contract: {figures}")
    return rows


@lru_cache(maxsize=4)
def _exact(case: Case, dtype: str, states: bool) -> dict[str, Tensor]:
    """All float64 results; the outputs are those of inference, too."""
    return oracle_job(case, build(case, DTYPES[dtype]), "training", states).results()


@lru_cache(maxsize=4)
def _eager_errors(case: Case, mode: str, dtype: str, states: bool) -> dict[str, float]:
    """PyTorch's own errors, 0 where it cannot run the case."""
    exact = _exact(case, dtype, states)
    if not runs_in_pytorch(case):
        return dict.fromkeys(exact, 0.0)
    eager = pytorch_job(case, build(case, DTYPES[dtype]), mode, states).results()
    errors = {what: relative_error(result, exact[what]) for what, result in eager.items()}
    # An oracle that computes something else would make the limit a wide one.
    sane = math.sqrt(torch.finfo(DTYPES[dtype]).eps)
    for what, error in errors.items():
        if not error <= sane:
            call = f"{case.name}, {mode}, {dtype}"
            raise AssertionError(f"the oracle and PyTorch disagree on {call}: {what} by {error:.2e}")
    return errors


@contextmanager
def _memory_full_of_nan() -> Iterator[None]:
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
