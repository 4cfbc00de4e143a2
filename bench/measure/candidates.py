"""The candidates by name: this package, "cnnlstm_fast" or "cnnlstm_fast:BACKEND", and the peers."""

from __future__ import annotations

from functools import partial

from cnnlstm_fast.recurrent.backends import BACKENDS

from ..cases import Case
from ..peers import PEERS
from ..peers.base import Peer, Runnable
from ..report.record import OURS
from .jobs import Inputs, ModelInputs, fast_job


def candidate(name: str) -> Peer:
    """The candidate of that name; ValueError with the known names for any other."""
    family, _, backend = name.partition(":")
    if family == OURS and (not backend or backend in BACKENDS):
        return _ours(name, backend or "auto")
    if name in PEERS:
        return PEERS[name]
    known = [OURS, *(f"{OURS}:{backend}" for backend in BACKENDS), *PEERS]
    raise ValueError(f"peer: expected one of {', '.join(known)}, got {name!r}.")


def _ours(name: str, backend: str) -> Peer:
    def supports(case: Case, mode: str, dtype: str, device: str) -> str | None:
        if backend == "auto":
            return None
        if not case.layers:
            return "there is no LSTM in it"
        return BACKENDS[backend].supports(case.spec(mode, dtype, device))

    return Peer(
        name,
        f"this package, backend {backend}",
        modules=(),
        pip="cnnlstm-fast",
        supports=supports,
        prepare=partial(_prepare, backend),
        precision="int8" if backend in BACKENDS and BACKENDS[backend].approximate else None,
    )


def _prepare(backend: str, case: Case, inputs: Inputs | ModelInputs, mode: str, dtype: str) -> Runnable:
    return fast_job(case, inputs, mode, backend, amp=dtype == "amp")
