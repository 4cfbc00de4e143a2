"""The user's words for how a model is run around its LSTMs: of ``optimize`` and of ``torch.compile``'s options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .engines import ENGINES

Progress = Callable[[str], Any]


@dataclass(frozen=True)
class How:
    """What ``optimize`` was asked for.

    ``deadline``: by ``time.monotonic``; ``share``: of the model's call that the module takes, which is measured for
    about so long a part of the time; ``around``: the structure of the model that it is in, without which it was
    captured.
    """

    encoder: str
    precision: str | None
    deadline: float
    progress: Progress
    share: float = 1.0
    around: str = ""


def check_options(encoder: Any, precision: Any) -> None:
    """Refuses what names no engine or precision.

    Raises:
        ValueError: no engine or precision has that name.
        RuntimeError: the named engine is not installed.
    """
    if encoder != "auto" and encoder not in ENGINES:
        raise ValueError(f"encoder: expected 'auto' or one of {', '.join(ENGINES)}, got {encoder!r}.")
    if precision not in (None, "bf16"):
        raise ValueError(f"precision: expected None or 'bf16', got {precision!r}.")
    missing = None if encoder == "auto" else ENGINES[encoder].missing()
    if missing is not None:
        raise RuntimeError(f"encoder: {encoder!r} is {missing}; or use 'auto'.")
