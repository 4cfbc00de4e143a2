"""Plans and choices on disk, so that the next process need neither capture nor measure.

One JSON file for each fingerprint. It holds no code: a graph is a list of the names of operators. A file that is
damaged or foreign is ignored with a warning, and replaced.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from .files import folder, write
from .plan import Plan
from .record import Record

FORMAT = 3
Stored = TypeVar("Stored")


def load(key: str) -> tuple[Plan, Record] | None:
    """The plan and the choice that were stored under the key, or None."""
    found = load_json(key, _plan_and_record)
    if found is not None:
        found[1].cached = True
    return found


def store(key: str, plan: Plan, record: Record) -> str | None:
    """Writes the file; returns None, or why it could not be written."""
    return store_json(key, {"plan": plan.to_json(), "record": record.to_json()})


def _plan_and_record(data: dict[str, Any]) -> tuple[Plan, Record]:
    plan, record = Plan.from_json(data["plan"]), Record.from_json(data["record"])
    if len(plan.regions) != len(record.regions):
        raise ValueError("its parts do not fit together")
    return plan, record


def load_json(key: str, parse: Callable[[dict[str, Any]], Stored]) -> Stored | None:
    """What ``parse`` makes of the data that were stored under the key, or None; it may raise any exception."""
    path = folder() / f"{key}.json"
    try:
        data = json.loads(path.read_text())
        if data.pop("format") != FORMAT or data.pop("key") != key:
            raise ValueError("it is of another version")
        return parse(data)
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged file leads to
        warnings.warn(
            f"cnnlstm_fast: {path} is not used, since it is damaged ({type(error).__name__}: {error}); "
            f"the model is measured again.",
            stacklevel=4,
        )
        return None


def store_json(key: str, data: dict[str, Any]) -> str | None:
    """Writes the file; returns None, or why it could not be written."""
    text = json.dumps({"format": FORMAT, "key": key, **data})
    reason = write(f"{key}.json", text.encode())
    return None if reason is None else f"the choice could not be stored in {folder()}: {reason}"
