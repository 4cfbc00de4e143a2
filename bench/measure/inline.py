"""A candidate in this process, for calls on a GPU: there no idle thread takes a core from the candidate that is timed,
and the inputs, whose random numbers take longer than the calls, are made once for all candidates."""

from __future__ import annotations

import gc
from functools import lru_cache
from typing import Any

from .candidates import candidate
from .jobs import build
from .process import WorkerFailed
from .worker import Worker, answer

_build = lru_cache(maxsize=1)(build)


class Inline:
    """Answers as ``WorkerProcess`` does."""

    def __init__(self, name: str) -> None:
        self.worker = Worker(candidate(name), _build)
        gc.freeze()  # each set-up collects garbage: without this it would scan all imported modules

    def request(self, seconds: float, /, **request: Any) -> dict[str, Any]:
        """The answer; ``seconds`` is no limit here.

        Raises:
            WorkerFailed: an error.
        """
        found = answer(self.worker, request)
        if "error" in found:
            raise WorkerFailed(found["error"])
        # the caller counts the time of its own process
        return found | {"cpu_s": 0.0} if "cpu_s" in found else found

    def close(self) -> None:
        self.worker.release()
        _build.cache_clear()
