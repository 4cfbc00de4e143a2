"""Measures calls in interleaved rounds, each candidate in its own process, after the accuracy check."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cnnlstm_fast.other_work import busy_seconds
from cnnlstm_fast.timing import orders

from ..accuracy import accuracy_errors, accuracy_failure, eager_errors
from ..cases import DTYPES, Call
from ..report.record import OURS, PYTORCH, Measurement, Row
from ..roofline.lower_bound import lower_bound
from ..roofline.peaks import Roofline
from .candidates import candidate
from .jobs import build, fast_job, oracle_job
from .process import WorkerFailed, WorkerProcess
from .worker import LONG_CALL

LEAST_ROUNDS, LEAST_LONG_ROUNDS, MOST_ROUNDS = 8, 5, 60
PROCESSES = 2
"""Processes of each candidate, which alternate from round to round. The time of the same call differs by up to 5 %
between processes, since their memory and stacks have other addresses; two of them bring this scatter into the
interval. A long call has one process: it differs less, and two would hold its data twice. So has a candidate whose
set-up is long."""
LONG_SETUP = 2.0  # seconds
TURN = 0.03  # seconds: long compared with the warm-up, short compared with drifts of the machine's speed
GPU_TURN = 0.004  # seconds: there is no thread to wake, and the caches are small beside the work
SETUP_LIMIT = 180.0  # seconds for set-up, first calls and results


def turn_of(device: str) -> float:
    """Seconds for which a candidate is timed before the next one's turn."""
    return GPU_TURN if device == "cuda" else TURN


class Worker(Protocol):
    def request(self, seconds: float, /, **request: Any) -> dict[str, Any]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    candidates: Sequence[str] = (OURS, PYTORCH)
    device: str = "cpu"
    seconds: float = 1.0  # for each candidate on each call
    threads: int = 1
    check_accuracy: bool = True  # against the oracle before timing; False where the tests cover it


class Runner:
    """Owns the workers of a run; a context manager that ends them.

    Args:
        launch: starts the worker of a candidate.
    """

    def __init__(
        self, plan: Plan, roofline: Roofline | None, launch: Callable[[str], Worker] | None = None
    ) -> None:
        self.plan, self.roofline = plan, roofline
        self._folder = tempfile.TemporaryDirectory(prefix="cnnlstm-bench-")
        self._launch = launch or self._process
        self._workers: dict[tuple[str, int], Worker] = {}
        self.missing: dict[str, str] = {}
        """Peers that are not installed, and the command that installs them."""
        for name in plan.candidates:
            absent = candidate(name).missing()
            if absent:
                self.missing[name] = f"no module {', '.join(absent)}: pip install {candidate(name).pip}"

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers.values():
            worker.close()
        self._folder.cleanup()

    def measure(self, call: Call) -> Row:
        """Sets up all candidates, checks their accuracy, times those that passed, and releases the call."""
        row = self._measure(call)
        for worker in self._workers.values():
            with suppress(WorkerFailed):  # the next request starts another
                worker.request(SETUP_LIMIT, do="release")
        return row

    def _measure(self, call: Call) -> Row:
        # before any candidate holds memory: float64 takes twice as much as a candidate
        exact = self._exact(call) if self.plan.check_accuracy else {}
        processes: dict[str, int] = {}
        found: dict[str, Measurement] = {}
        results: dict[str, Path] = {}
        slowest = 0.0
        for name in self.plan.candidates:
            peer = candidate(name)
            measurement = Measurement(name, "measured", precision=peer.precision or call.dtype)
            reason = peer.supports(*call, self.plan.device)
            if name in self.missing:
                found[name] = replace(measurement, status="missing", reason=self.missing[name])
            elif reason is not None:
                found[name] = replace(measurement, status="unsupported", reason=reason)
            else:
                path = Path(self._folder.name) / f"{len(results)}.pt" if self.plan.check_accuracy else None
                try:
                    prepared = self._prepare(name, 0, call, path)
                    once = prepared["call_s"] >= LONG_CALL or prepared["setup_s"] >= LONG_SETUP
                    processes[name] = 1 if once else PROCESSES
                    for process in range(1, processes[name]):
                        self._prepare(name, process, call, None)
                except WorkerFailed as error:
                    found[name] = replace(measurement, status="error", reason=str(error))
                    continue
                slowest = max(slowest, prepared.pop("call_s"))
                found[name] = replace(measurement, **prepared)
                if path is not None:
                    results[name] = path
        found |= self._checked(call, exact, {name: found[name] for name in results}, results)
        timed = {name: processes[name] for name, m in found.items() if m.status == "measured"}
        times, others = self._rounds(timed, slowest)
        for name, rounds in times.items():
            if isinstance(rounds, str):
                found[name] = replace(found[name], status="error", reason=rounds)
            else:
                found[name] = _with_times(found[name], rounds)
        bound = None if self.roofline is None else lower_bound(*call, self.roofline, self.plan.device)
        return Row(*call, found, bound, others)

    def _process(self, name: str) -> Worker:
        return WorkerProcess(name, self.plan.threads, Path(self._folder.name) / f"{name}.log")

    def _worker(self, name: str, process: int) -> Worker:
        if (name, process) not in self._workers:
            self._workers[name, process] = self._launch(name)
        return self._workers[name, process]

    def _prepare(self, name: str, process: int, call: Call, path: Path | None) -> dict[str, Any]:
        return self._worker(name, process).request(
            SETUP_LIMIT,
            do="prepare",
            case=asdict(call.case),
            mode=call.mode,
            dtype=call.dtype,
            device=self.plan.device,
            results=None if path is None else str(path),
        )

    def _checked(
        self,
        call: Call,
        exact: Mapping[str, Tensor],
        prepared: Mapping[str, Measurement],
        results: Mapping[str, Path],
    ) -> dict[str, Measurement]:
        """The measurements, each with its largest error relative to its limit; "failed" where one exceeds it."""
        loaded = {name: torch.load(path, map_location="cpu") for name, path in results.items()}
        checked: dict[str, Measurement] = {}
        try:
            eager = (
                eager_errors(loaded[PYTORCH], exact, call.dtype, bool(call.case.model))
                if PYTORCH in loaded
                else {}
            )
        except AssertionError as error:
            # Either PyTorch or the oracle is wrong: the reference in the row's dtype decides which
            checked[PYTORCH] = replace(prepared[PYTORCH], status="failed", reason=str(error))
            try:
                eager = eager_errors(self._plain(call), exact, call.dtype, bool(call.case.model))
            except AssertionError as error:
                return {name: replace(m, status="failed", reason=str(error)) for name, m in prepared.items()}
        for name, measurement in prepared.items():
            if name in checked:
                continue
            try:
                rows = accuracy_errors(
                    loaded[name], exact, eager, call.dtype, measurement.precision, bool(call.case.model)
                )
            except AssertionError as error:
                checked[name] = replace(measurement, status="failed", reason=str(error))
                continue
            worst = max(rows, key=lambda row: row.fast / row.limit)
            checked[name] = replace(measurement, error=worst.fast, limit=worst.limit)
            failure = accuracy_failure(rows)
            if failure:
                checked[name] = replace(checked[name], status="failed", reason=failure)
        return checked

    def _exact(self, call: Call) -> dict[str, Tensor]:
        case = replace(call.case, dropout=0.0)
        inputs = build(case, DTYPES[call.dtype], self.plan.device)
        found = oracle_job(case, inputs, call.mode).results()
        return {what: result.cpu() for what, result in found.items()}

    def _plain(self, call: Call) -> dict[str, Tensor]:
        """The reference's results in the row's dtype."""
        case = replace(call.case, dropout=0.0)
        inputs = build(case, DTYPES[call.dtype], self.plan.device)
        found = fast_job(case, inputs, call.mode, "reference", amp=call.dtype == "amp").results()
        return {what: result.cpu() for what, result in found.items()}

    def _rounds(
        self, processes: Mapping[str, int], slowest: float
    ) -> tuple[dict[str, list[list[float]] | str], float | None]:
        """Per candidate the times of all its calls, round by round, or the message with which it failed; and how many
        cores other processes used meanwhile.

        Args:
            processes: the candidates, with the number of processes of each.
            slowest: seconds of the slowest candidate's call.
        """
        times: dict[str, list[list[float]] | str] = {name: [] for name in processes}
        turn = turn_of(self.plan.device)
        count = round(self.plan.seconds / max(turn, slowest))
        start, used, busy = time.perf_counter(), time.process_time(), busy_seconds()
        own = 0.0
        least = LEAST_ROUNDS if slowest < LONG_CALL else LEAST_LONG_ROUNDS
        total = max(least, min(MOST_ROUNDS, count))
        for number, order in zip(range(total), orders(processes), strict=False):
            for name in order:
                rounds = times[name]
                if isinstance(rounds, str):
                    continue
                try:
                    worker = self._worker(name, number % processes[name])
                    answer = worker.request(SETUP_LIMIT, do="turn", seconds=turn)
                except WorkerFailed as error:
                    times[name] = str(error)
                else:
                    rounds.append(answer["times"])
                    own += answer["cpu_s"]
        if busy is None or not processes:
            return times, None
        own += time.process_time() - used
        return times, max(0.0, busy_seconds() - busy - own) / (time.perf_counter() - start)


def _with_times(measurement: Measurement, rounds: list[list[float]]) -> Measurement:
    every = np.concatenate([np.asarray(taken) for taken in rounds])
    return replace(
        measurement,
        rounds=[statistics.median(taken) for taken in rounds],
        calls=len(every),
        min_s=float(every.min()),
        median_s=float(np.median(every)),
        p80_s=float(np.quantile(every, 0.8)),
    )
