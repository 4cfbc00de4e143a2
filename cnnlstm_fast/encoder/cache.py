"""Plans and choices on disk, so that the next process need neither capture nor measure.

One JSON file for each fingerprint. It holds no code: a graph is a list of the names of operators. A file that is
damaged or foreign is ignored with a warning, and replaced.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

from .files import folder, write
from .plan import Plan
from .record import Record

FORMAT = 1


def load(key: str) -> tuple[Plan, Record] | None:
    """What was stored under the key, or None."""
    path = folder() / f"{key}.json"
    try:
        data = json.loads(path.read_text())
        if data["format"] != FORMAT or data["key"] != key:
            raise ValueError("it is of another version")
        plan, record = Plan.from_json(data["plan"]), Record.from_json(data["record"])
        if len(plan.regions) != len(record.regions):
            raise ValueError("its parts do not fit together")
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged file leads to
        warnings.warn(
            f"cnnlstm_fast: {path} is not used, since it is damaged ({type(error).__name__}: {error}); "
            f"the model is measured again.",
            stacklevel=4,
        )
        return None
    record.cached = True
    return plan, record


def store(key: str, plan: Plan, record: Record) -> str | None:
    """Writes the file; returns None, or why it could not be written."""
    data: dict[str, Any] = {"format": FORMAT, "key": key, "plan": plan.to_json(), "record": record.to_json()}
    reason = write(f"{key}.json", json.dumps(data).encode())
    return None if reason is None else f"the choice could not be stored in {folder()}: {reason}"
