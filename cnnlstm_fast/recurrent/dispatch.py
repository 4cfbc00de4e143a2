"""Which backend runs a call, and why."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

from .backends import BACKENDS, Backend
from .canonical import CallKey, LSTMSpec, validate
from .known_calls import forget_known

Function = TypeVar("Function", bound=Callable[..., Any])


class Choice(NamedTuple):
    """A backend with the reason for it, and the reason against each one that ``auto`` skipped."""

    backend: Backend
    reason: str
    rejected: dict[str, str]


class Plan(NamedTuple):
    """What is computed once for all calls with the same key."""

    spec: LSTMSpec
    choice: Choice


def select(spec: LSTMSpec, backend: str = "auto") -> Choice:
    """Selects the named backend, or for ``auto`` the first of BACKENDS that supports the call and is not known to be
    slower than a later one.

    Raises:
        ValueError: no backend has that name.
        RuntimeError: the named backend does not support the call.
    """
    if backend != "auto":
        return _named(spec, backend)
    rejected: dict[str, str] = {}
    able: list[Backend] = []
    for candidate in BACKENDS.values():
        reason = candidate.supports(spec)
        if reason is None and candidate.approximate:
            reason = "it is approximate, and runs only where it is named"
        if reason is None:
            able.append(candidate)
            speed = candidate.measured_speed(spec)
            if speed is None or not speed.slow:
                why = "the first in order that is not known to be slower" if speed is None else speed.reason
                return Choice(candidate, why, rejected)
            reason = speed.reason
        rejected[candidate.name] = reason
    if not able:
        raise RuntimeError(f"no backend takes the call {spec}: {_list(rejected)}.")
    del rejected[able[0].name]
    return Choice(able[0], "all that take the call are slow", rejected)


def _named(spec: LSTMSpec, name: str) -> Choice:
    if name not in BACKENDS:
        able = [b.name for b in BACKENDS.values() if b.supports(spec) is None]
        raise ValueError(
            f"backend: expected 'auto' or one of {', '.join(BACKENDS)} (able to take this call: {', '.join(able)}), "
            f"got {name!r}."
        )
    reason = BACKENDS[name].supports(spec)
    if reason is not None:
        able = [b.name for b in BACKENDS.values() if b.supports(spec) is None]
        raise RuntimeError(
            f"backend: {name!r} cannot take this call: {reason}; use 'auto' or one of {', '.join(able)}."
        )
    return Choice(BACKENDS[name], "named by the caller", {})


def _list(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def plan(key: CallKey) -> Plan:
    spec = validate(key)
    return Plan(spec, select(spec, key.backend))


_caches: list[Any] = []


def cached(plan_of: Function) -> Function:
    """Keeps the plans that a function has made, until ``forget_plans()``."""
    kept = lru_cache(maxsize=4096)(plan_of)
    _caches.append(kept)
    return cast(Function, kept)


def forget_plans() -> None:
    """Has every later call choose its backend anew."""
    for kept in _caches:
        kept.cache_clear()
    forget_known()


cached_plan = cached(plan)
