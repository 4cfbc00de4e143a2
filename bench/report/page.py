"""The HTML page of a run: cards, losses, tables that sort and filter, plots, hardware and versions."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.ticker import EngFormatter

from cnnlstm_fast.pages import template

from ..cases import SUITES
from . import plots
from .record import BEHIND, OURS, PYTORCH, Measurement, Ratio, Record, Row, geometric_mean, usable

UNKNOWN = "–"
UNITS = {"gemm_": "FLOP/s", "read_": "B/s", "copy": "B/s", "_bytes": "B", "_latency": "s", "_barrier": "s"}


@dataclass(frozen=True)
class Failure:
    """A failure of a candidate, and the calls on which it occurred."""

    candidate: str
    status: str
    reason: str
    calls: list[str]


def write(record: Record, folder: Path) -> Path:
    """Writes ``index.html``, a self-contained page, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    unfinished = folder / ".index.html.unfinished"
    try:
        unfinished.write_text(render(record), encoding="utf-8")
        os.replace(unfinished, page)
    finally:
        unfinished.unlink(missing_ok=True)
    return page


def render(record: Record) -> str:
    """The page as self-contained HTML."""
    shares = [row.share for row in record.rows if row.share]
    return template(Path(__file__).with_name("page.html.j2")).render(
        record=record,
        facts=_facts(record),
        failures=_failures(record),
        groups=[group for group in record.groups() if group.pytorch or group.best],
        behind=BEHIND,
        mean=_mean,
        models=[row for row in record.rows if row.case.model],
        names=list(dict.fromkeys(name for row in record.rows for name in row.measured)),
        losses=record.losses(),
        compared=sum(usable(row.vs_best) is not None for row in record.rows),
        worst_share=min(shares, default=None),
        mean_share=geometric_mean(shares),
        sections=plots.sections(record),
        pytorch=_pytorch,
        allowance=_allowance,
        known=_known,
        ms=_ms,
        mb=_mb,
        figures=_figures,
        percent=_percent,
        times=_times,
        sci=_sci,
        roofline={name: _peak(name, value) for name, value in record.roofline.items() if value},
        colors={"fast": plots.FAST},
    )


def _facts(record: Record) -> dict[str, str]:
    """The hardware, the versions and the commit that the times belong to."""
    hardware, versions, commit = record.hardware, record.versions, record.commit
    gpus = ", ".join(gpu["name"] for gpu in hardware.get("gpus") or [])
    told = {"torch", "cnnlstm_fast", "pytest_benchmark"}
    others = [f"{k} {v}" for k, v in versions.items() if isinstance(v, str) and k not in told]
    switches = [f"{name}={value}" for name, value in (versions.get("switches") or {}).items()]
    found = {
        "Suite": ": ".join(filter(None, (record.suite, SUITES.get(record.suite)))),
        "Date": record.datetime.replace("T", " "),
        "GPU": gpus,
        "CPU": f"{hardware.get('cpu') or UNKNOWN}, cores: {hardware.get('cores') or UNKNOWN}, "
        f"threads used: {hardware.get('threads') or UNKNOWN}",
        "PyTorch": versions.get("torch") or UNKNOWN,
        "cnnlstm_fast": versions.get("cnnlstm_fast") or UNKNOWN,
        "Commit": f"{commit.get('id') or UNKNOWN}{' (dirty)' if commit.get('dirty') else ''}",
        "Other versions": ", ".join(others),
        "Switches set": ", ".join(switches),
    }
    return {name: value for name, value in found.items() if value}


def _failures(record: Record) -> list[Failure]:
    """Ours first; calls on which a candidate fails for the same reason are one entry."""
    calls: dict[tuple[str, str, str], list[str]] = {}
    for row, m in sorted(record.failed, key=lambda found: found[1].candidate != OURS):
        calls.setdefault((m.candidate, m.status, m.reason), []).append(row.name)
    return [Failure(*what, names) for what, names in calls.items()]


def _mean(ratios: Iterable[Ratio]) -> float:
    """NaN where no call was compared."""
    return geometric_mean([ratio.value for ratio in ratios])


def _pytorch(row: Row) -> Measurement:
    return row.candidates.get(PYTORCH) or Measurement(PYTORCH, "missing")


def _allowance(m: Measurement) -> float | None:
    """The error as a share of its limit."""
    return m.error / m.limit if m.error is not None and m.limit else None


def _known(x: float | None) -> bool:
    return x is not None and math.isfinite(x)


def _figures(x: float | None) -> str:
    """Three significant digits without an exponent."""
    if x is None or not math.isfinite(x):
        return UNKNOWN
    decimals = 2 if x == 0 else min(max(0, 2 - math.floor(math.log10(abs(x)))), 6)
    return f"{x:.{decimals}f}"


def _ms(seconds: float | None) -> str:
    return _figures(None if seconds is None else 1e3 * seconds)


def _mb(count: float | None) -> str:
    return _figures(None if count is None else count / 1e6)


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def _times(ratio: float | None) -> str:
    return UNKNOWN if ratio is None or not math.isfinite(ratio) else f"{ratio:.2f}"


def _sci(x: float | None) -> str:
    return UNKNOWN if x is None or not math.isfinite(x) else f"{x:.1e}"


def _peak(name: str, value: float) -> str:
    """With its unit, see ``peaks.Roofline``: 1.5e12 of gemm_f32 is 1.50 TFLOP/s."""
    unit = next((unit for part, unit in UNITS.items() if part in name), None)
    return f"{value:g}" if unit is None else EngFormatter(unit, places=2)(value)
