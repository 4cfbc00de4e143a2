"""What other processes do on this machine while something is measured."""

from __future__ import annotations

import os
import time
from pathlib import Path


def busy_seconds() -> float | None:
    """CPU seconds that all cores of this machine have been busy since boot, time stolen by a host included; None where
    the system does not report it."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, path.read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class OtherWork:
    """Begins to watch the work of other processes."""

    def __init__(self) -> None:
        self._start, self._own, self._busy = time.perf_counter(), time.process_time(), busy_seconds()

    def seconds(self) -> tuple[float, float]:
        """CPU seconds of other processes since then, and the seconds since then; no work where it is not known."""
        passed, busy = time.perf_counter() - self._start, busy_seconds()
        if busy is None or self._busy is None:
            return 0.0, passed
        return max(0.0, busy - self._busy - (time.process_time() - self._own)), passed
