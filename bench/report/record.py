"""The record of a benchmark run, which tables, pages and comparisons are made from.

On disk it is pytest-benchmark's JSON, which that project's tools can read: an entry of ``benchmarks`` is one candidate
on one call, its ``stats`` are over the rounds, and ``extra_info`` holds what the format has no field for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cnnlstm_fast.timing import Ratio, median_ratio, paired_ratio

from ..cases import Case

OURS = "cnnlstm_fast"
PYTORCH = "pytorch"
BUSY = 0.2  # cores
BEHIND = 0.95
"""Below this ratio to the best peer a row counts as behind."""


@dataclass(frozen=True)
class Measurement:
    """One candidate on one call; times in seconds. What was not measured is None or empty."""

    candidate: str
    status: str  # measured | failed (the accuracy check) | unsupported | missing | error
    reason: str = ""
    precision: str = ""  # of the products, such as f32, tf32, bf16, int8
    rounds: list[float] = field(default_factory=list)  # each the median of its calls; index k is round k
    calls: int = 0
    min_s: float | None = None
    median_s: float | None = None
    p80_s: float | None = None
    setup_s: float | None = None  # building, compiling, packing, converting
    first_call_s: float | None = None
    peak_bytes: int | None = None  # the peak during set-up and calls, beyond what was in use before
    error: float | None = None  # relative to float64, of the result that is closest to its limit
    limit: float | None = None  # of that result's error

    @property
    def ready_s(self) -> float | None:
        """Seconds until the first result."""
        return None if self.setup_s is None or self.first_call_s is None else self.setup_s + self.first_call_s


@dataclass(frozen=True)
class Row:
    """One call, (case, mode, dtype), with all its candidates."""

    case: Case
    mode: str
    dtype: str
    candidates: dict[str, Measurement]
    lower_bound_s: float | None = None  # the least time under the machine's roofline
    others: float | None = None  # cores that other work on the machine used while this was timed

    @property
    def busy(self) -> bool:
        """Other processes used the CPU: threads that wait for each other then take many times as long."""
        return self.others is not None and self.others > BUSY

    @property
    def name(self) -> str:
        return f"{self.case.name} {self.mode} {self.dtype}"

    @property
    def ours(self) -> Measurement:
        return self.candidates[OURS]

    @property
    def measured(self) -> dict[str, Measurement]:
        return {name: m for name, m in self.candidates.items() if m.status == "measured"}

    @property
    def share(self) -> float | None:
        """The lower bound / our median time: 1 is the machine's limit."""
        return self.lower_bound_s / self.ours.median_s if self.lower_bound_s and self.ours.median_s else None

    @property
    def limit_is_wrong(self) -> bool:
        """Whether the call took less time than the machine's limit allows, beyond what its measurement scatters."""
        return self.share is not None and self.share > 1.05

    @cached_property
    def best_peer(self) -> str | None:
        """The fastest of the peers that compute in the row's own precision, by the ratio to ours."""
        peers = [name for name, m in self.measured.items() if name != OURS and m.precision == self.dtype]
        if OURS not in self.measured or not peers:
            return None
        return min(peers, key=lambda name: median_ratio(self.measured[name].rounds, self.ours.rounds))

    @cached_property
    def vs_pytorch(self) -> Ratio | None:
        return self.ratio(PYTORCH)

    @cached_property
    def vs_best(self) -> Ratio | None:
        return None if self.best_peer is None else self.ratio(self.best_peer)

    def ratio(self, peer: str) -> Ratio | None:
        both = self.measured
        if OURS not in both or peer not in both:
            return None
        return paired_ratio(both[peer].rounds, both[OURS].rounds)


@dataclass(frozen=True)
class Group:
    """The rows of one mode and dtype."""

    name: str
    rows: list[Row]

    @property
    def pytorch(self) -> list[Ratio]:
        return [ratio for row in self.rows if (ratio := usable(row.vs_pytorch))]

    @property
    def best(self) -> list[Ratio]:
        return [ratio for row in self.rows if (ratio := usable(row.vs_best))]

    @property
    def slower(self) -> int:
        """Rows slower than PyTorch beyond noise."""
        return sum(ratio.loss for ratio in self.pytorch)

    @property
    def behind(self) -> int:
        """Rows below ``BEHIND`` of the best peer's speed."""
        return sum(ratio.value < BEHIND for ratio in self.best)


@dataclass
class Record:
    """A whole run."""

    suite: str
    datetime: str
    hardware: dict[str, Any]
    versions: dict[str, Any]
    commit: dict[str, Any]
    roofline: dict[str, float] = field(default_factory=dict)  # fields of ``peaks.Roofline``
    missing: dict[str, str] = field(default_factory=dict)  # peers that are not installed: how to install them
    notes: list[str] = field(default_factory=list)  # such as: interrupted, dropped for lack of time
    rows: list[Row] = field(default_factory=list)

    def losses(self, peer: str | None = None) -> list[Row]:
        """Rows in which we are slower beyond noise than the peer, or than the best one."""
        ratios = ((row, row.vs_best if peer is None else row.ratio(peer)) for row in self.rows)
        return [row for row, ratio in ratios if ratio is not None and ratio.loss]

    def groups(self) -> list[Group]:
        """The rows by mode and dtype, in the order of the rows."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(f"{row.mode} {row.dtype}", []).append(row)
        return [Group(name, rows) for name, rows in groups.items()]

    @property
    def disturbance(self) -> str | None:
        """A sentence where other processes used the CPU."""
        busy = [row for row in self.rows if row.busy]
        if not busy:
            return None
        cores = max(row.others or 0.0 for row in busy)
        return (
            f"Other work used up to {cores:.1f} cores while {len(busy)} of {len(self.rows)} rows were timed: their "
            "figures are unreliable. Measure again on an idle machine."
        )

    @property
    def failed(self) -> list[tuple[Row, Measurement]]:
        bad = ("failed", "error")
        return [(row, m) for row in self.rows for m in row.candidates.values() if m.status in bad]


def usable(ratio: Ratio | None) -> Ratio | None:
    """The ratio if it is finite and positive, else None."""
    return ratio if ratio and all(0 < x < math.inf for x in (ratio.value, ratio.low, ratio.high)) else None


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def save(record: Record, path: Path) -> None:
    """Writes the file atomically."""
    head = asdict(record) | {"rows": []}
    document = {
        "machine_info": head.pop("hardware") | {"versions": head.pop("versions")},
        "commit_info": head.pop("commit"),
        "datetime": record.datetime,
        "version": record.versions.get("pytest_benchmark"),
        "benchmarks": [entry for number, row in enumerate(record.rows) for entry in _entries(number, row)],
        "cnnlstm_fast": {key: head[key] for key in ("suite", "roofline", "missing", "notes")},
    }
    write_whole(path, json.dumps(document, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Writes the file atomically: readers never see a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def load(path: Path) -> Record:
    """Reads a file that ``save`` wrote; ValueError for any other."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        own = document["cnnlstm_fast"]
        machine = dict(document["machine_info"])
        rows: dict[int, Row] = {}
        for entry in document["benchmarks"]:
            info = entry["extra_info"]
            case = dict(info["case"])
            case = Case(**{k: tuple(v) if isinstance(v, list) else v for k, v in case.items()})
            row = rows.setdefault(
                info["row"], Row(case, info["mode"], info["dtype"], {}, info["lower_bound_s"], info["others"])
            )
            row.candidates[info["measurement"]["candidate"]] = Measurement(**info["measurement"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a file written by `cnnlstm-fast bench --json`, got something else ({error!r})."
        ) from error
    return Record(
        own["suite"],
        document["datetime"],
        {k: v for k, v in machine.items() if k != "versions"},
        machine["versions"],
        document["commit_info"],
        own["roofline"],
        own["missing"],
        own["notes"],
        list(rows.values()),
    )


def _entries(number: int, row: Row) -> list[dict[str, Any]]:
    """pytest-benchmark's entries of a row; ``data`` are the medians of the rounds."""
    found = []
    for m in row.candidates.values():
        params = {"case": row.case.name, "mode": row.mode, "dtype": row.dtype, "candidate": m.candidate}
        name = "-".join(params.values())
        data = np.asarray(m.rounds or [math.nan])
        q1, median, q3 = (float(np.quantile(data, q)) for q in (0.25, 0.5, 0.75))
        found.append(
            {
                "group": row.name,
                "name": name,
                "fullname": f"bench::{name}",
                "params": params,
                "param": name,
                "extra_info": {
                    "row": number,
                    "case": asdict(row.case),
                    "mode": row.mode,
                    "dtype": row.dtype,
                    "lower_bound_s": row.lower_bound_s,
                    "others": row.others,
                    "measurement": asdict(m),
                },
                "options": {},
                "stats": {
                    "min": float(data.min()),
                    "max": float(data.max()),
                    "mean": float(data.mean()),
                    "stddev": float(data.std()),
                    "median": median,
                    "iqr": q3 - q1,
                    "q1": q1,
                    "q3": q3,
                    "rounds": len(m.rounds),
                    "iterations": 1,
                },
            }
        )
    return found
