"""The process of one candidate: ``python -m bench.measure.worker NAME THREADS``.

It reads JSON requests from standard input, one a line, and answers each with a line: ``prepare`` a call, time it for a
``turn``, ``release`` it. What an engine prints is redirected to standard error, so that it cannot mix with the answers.
The parent stops the process (SIGSTOP) outside its turns: the spinning threads of an idle thread pool would take a core
from the candidate that is being timed.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cnnlstm_fast.timing import synchronizer, timed

from ..accuracy import nan_filled_memory
from ..cases import DTYPES, Case
from ..peers.base import Peer, Runnable
from .candidates import candidate
from .jobs import build

MOST_CALLS = 200  # in one turn
WARM_UP = 0.15  # of a turn's time, untimed: other candidates have evicted this one's data from the caches
LONG_CALL = 0.3  # seconds: on such a call cold caches have no visible effect, so it needs no warm-up


class Worker:
    """Serves the requests for one candidate.

    Args:
        make: of a case's inputs.
    """

    def __init__(self, peer: Peer, make: Callable[..., Any] = build) -> None:
        self.peer, self._make = peer, make
        self.job: Runnable | None = None
        self._call_s = self._pause = 0.0
        self._synchronize = synchronizer("cpu")

    def prepare(self, case: Case, mode: str, dtype: str, device: str, results: str | None) -> dict[str, Any]:
        """Sets up the call in place of the previous one, runs it, and saves its results if a path is given.

        Returns:
            setup_s, first_call_s, call_s (the second call's time) and peak_bytes, the peak memory without that of the
            inputs and of a whole model.
        """
        self.job = None
        self._pause = case.pause
        self._synchronize = synchronizer(device)
        inputs = self._make(case, DTYPES[dtype], device)
        peak = _gpu_peak() if device == "cuda" else _cpu_peak()
        start = time.perf_counter()
        # every implementation draws its masks differently: results are compared without dropout
        job = self.peer.prepare(replace(case, dropout=0.0), inputs, mode, dtype)
        setup_s = time.perf_counter() - start
        self.job = job
        first_call_s, self._call_s = self._time(), self._time()
        peak_bytes = peak()
        if results is not None:
            with self._nan_memory():
                torch.save(job.results(), results)
        if case.dropout and mode == "training":
            self.job = self.peer.prepare(case, inputs, mode, dtype)
            self._time()
        return {
            "setup_s": setup_s,
            "first_call_s": first_call_s,
            "call_s": self._call_s,
            "peak_bytes": peak_bytes,
        }

    def turn(self, seconds: float) -> dict[str, Any]:
        """Times calls for that long, at least one; preceded by untimed warm-up calls unless a call is long.

        Returns:
            ``times``: seconds of each call; ``cpu_s``: CPU time of all threads of this process in the whole turn.
        """
        start, used = time.perf_counter(), time.process_time()
        while self._call_s < LONG_CALL:
            self._time()
            if time.perf_counter() - start >= WARM_UP * seconds:
                break
        times: list[float] = []
        start = time.perf_counter()
        while not times or (time.perf_counter() - start < seconds and len(times) < MOST_CALLS):
            times.append(self._time())
        return {"times": times, "cpu_s": time.process_time() - used}

    def release(self) -> dict[str, Any]:
        """Frees the call and its memory, except reference cycles: collecting garbage takes seconds over all workers."""
        self.job = None
        _trim()
        return {}

    def _time(self) -> float:
        assert self.job is not None
        time.sleep(self._pause)
        return timed(self.job, self._synchronize)

    def _nan_memory(self) -> AbstractContextManager[None]:
        """Only for eager candidates: a compiled graph would be recompiled for it."""
        return nan_filled_memory() if not self.peer.slow_setup else nullcontext()


def answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request; an exception becomes ``error``, a sentence."""
    try:
        if request["do"] == "turn":
            return worker.turn(request["seconds"])
        if request["do"] == "release":
            return worker.release()
        case = Case(**{k: tuple(v) if isinstance(v, list) else v for k, v in request["case"].items()})
        return worker.prepare(case, request["mode"], request["dtype"], request["device"], request["results"])
    except Exception as error:  # whatever an engine raises is that engine's result
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"}


def _trim() -> None:
    """Returns freed memory to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _cpu_peak() -> Callable[[], int | None]:
    """Resets the peak memory of this process; the result returns the growth up to the new peak, in bytes."""
    gc.collect()
    _trim()  # allocations from memory that malloc has kept would not show
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        return lambda: None
    before = _status("VmRSS")
    return lambda: max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _gpu_peak() -> Callable[[], int | None]:
    """The same for the memory that PyTorch allocates on the GPU."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    return lambda: torch.cuda.max_memory_allocated() - before


def main(name: str, threads: str) -> None:
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG: a stopped process would outlive its parent
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")  # a peer's own warnings, such as of deprecations, do not matter here
    torch.set_num_threads(int(threads))
    worker = Worker(candidate(name))
    for module in worker.peer.modules:  # or the first row's set-up would pay for the import
        importlib.import_module(module)
    gc.freeze()  # keeps the garbage collector from scanning the imported modules before every call
    for line in sys.stdin:
        answers.write(json.dumps(answer(worker, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
