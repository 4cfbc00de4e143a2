"""The plots of the page as <svg> elements: one figure per mode and dtype, or per family of calls."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from cnnlstm_fast.pages import FAST, INK, STYLE, svg, tidy

from ..cases import Case
from .record import OURS, PYTORCH, Ratio, Record, Row, usable

EAGER = "#6b7178"
OTHERS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#7a4f9a", "#56b4e9")
"""The palette of Okabe and Ito, which is safe for colour-blind readers."""
MARKERS = ("D", "^", "v", "<", ">")
LEGENDS = {
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
}
WIDTH, ROW = 4.6, 0.165  # inches: width of a plot with a line for every call, and height of such a line
FAMILIES = 6  # plots at most for each of B, T and H
RIVALS = 3  # lines at most in such a plot, in addition to ours and PyTorch's
SIZES = {"B": "batch", "T": "steps", "I": "input size", "H": "hidden size"}
LABELS = {"name", "use", "suites", "modes", "dtypes", "gpu_only"}
"""Fields of a case that do not change the computation."""
Look = tuple[str, str]  # colour and marker


@dataclass(frozen=True)
class Section:
    """Plots of one kind under one heading: (title, <svg> element)."""

    title: str
    text: str
    plots: list[tuple[str, str]]
    least: str = "25rem"  # the least width of a plot; narrower ones are stacked


@matplotlib.rc_context(STYLE | LEGENDS)
def sections(record: Record) -> list[Section]:
    """The sections that have at least one plot."""
    groups, looks = record.groups(), _looks(record.rows)
    found = [
        Section(
            "Speed-up per call",
            "Another's time / ours with its 95 % interval; right of 1 we are faster. "
            "No diamond: no other peer was faster than PyTorch.",
            [(group.name, svg) for group in groups if (svg := _speedups(group.rows))],
        ),
        *(
            Section(
                f"Time against {SIZES[size]}",
                f"Median time of calls that differ in {size} alone; "
                f"at most {FAMILIES} families, and {RIVALS} peers in addition to PyTorch.",
                _scaling(record.rows, size, looks),
                least="17rem",
            )
            for size in ("B", "T", "H")
        ),
        Section(
            "Share of the machine's limit",
            "The lower bound of the call's time / our median time.",
            [(group.name, svg) for group in groups if (svg := _shares(group.rows))],
        ),
        Section(
            "Peak memory",
            "Each dot is a call; below the line we use less.",
            [("cnnlstm_fast against PyTorch", svg)] if (svg := _memory(record.rows)) else [],
        ),
    ]
    return [section for section in found if section.plots]


def _speedups(rows: Sequence[Row]) -> str:
    """A line per call, the largest speed-up on top: a dot against PyTorch, a diamond against a faster peer."""
    series: dict[str, list[Ratio | None]] = {"PyTorch": [], "the best other peer": []}
    names = []
    for row in sorted(rows, key=_speedup, reverse=True):
        pytorch = usable(row.vs_pytorch)
        best = None if row.best_peer == PYTORCH else usable(row.vs_best)
        if pytorch or best:
            names.append(row.case.name)
            series["PyTorch"].append(pytorch)
            series["the best other peer"].append(best)
    if not names:
        return ""
    figure, axes = _lines(names)
    ends = [1.0]
    for (label, ratios), color, marker in zip(series.items(), (EAGER, OTHERS[0]), "oD", strict=True):
        known = [(-k, ratio) for k, ratio in enumerate(ratios) if ratio]
        if known:
            shift = 0.16 if label == "PyTorch" else -0.16
            lines, values = [y + shift for y, _ in known], [r.value for _, r in known]
            axes.hlines(lines, [r.low for _, r in known], [r.high for _, r in known], color)
            axes.scatter(
                values, lines, 13, color, marker=marker, linewidths=0, zorder=3, label=f"against {label}"
            )
            ends += [end for _, r in known for end in (r.low, r.high)]
    axes.axvline(1.0, color=INK, linewidth=0.9)
    _log(axes.xaxis, ends)
    axes.set_xlabel("other's time / ours")
    figure.legend(loc="outside upper left", ncols=2)
    return svg(figure)


def _speedup(row: Row) -> float:
    ratio = usable(row.vs_pytorch) or usable(row.vs_best)
    return ratio.value if ratio else 0.0


def _shares(rows: Sequence[Row]) -> str:
    """A bar per call, the largest share on top."""
    shares = sorted(((row.share, row.case.name) for row in rows if row.share), reverse=True)
    if not shares:
        return ""
    figure, axes = _lines([name for _, name in shares])
    axes.barh([-k for k in range(len(shares))], [100 * share for share, _ in shares], 0.6, color=FAST)
    axes.set_xlim(0, max(100, 105 * shares[0][0]))
    axes.set_xlabel("share of the limit, %")
    return svg(figure)


def _memory(rows: Iterable[Row]) -> str:
    """A dot per call, on symlog axes, since a peak may be 0."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        peaks = [row.measured[name].peak_bytes for name in (PYTORCH, OURS) if name in row.measured]
        if len(peaks) == 2 and None not in peaks:
            points.setdefault(row.mode, []).append((peaks[0] / 1e6, peaks[1] / 1e6))  # type: ignore[operator]
    flat = [x for pairs in points.values() for pair in pairs for x in pair]
    positive = [x for x in flat if x > 0]
    if not positive:
        return ""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    top = 2 * max(positive)
    axes.plot([0, top], [0, top], color=INK, linewidth=0.9)
    for (mode, pairs), color, marker in zip(points.items(), (FAST, *OTHERS), ("o", *MARKERS), strict=False):
        xs, ys = zip(*pairs, strict=True)
        axes.scatter(xs, ys, 18, color, marker=marker, alpha=0.7, label=mode)
    bottom = 0 if min(flat) == 0 else min(positive) / 2
    for axis, scale, limits in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim),
        (axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        scale("symlog", linthresh=min(positive))
        limits(bottom, top)
        axis.set_major_formatter(_plain)
        axis.set_minor_locator(NullLocator())
    axes.set_xlabel("PyTorch, MB")
    axes.set_ylabel("cnnlstm_fast, MB")
    tidy(axes, "both")
    figure.legend(loc="outside upper left", ncols=2)
    return svg(figure)


def _scaling(rows: Iterable[Row], size: str, looks: Mapping[str, Look]) -> list[tuple[str, str]]:
    """The families with the most calls; those of equal size alternate between modes and dtypes."""
    families: dict[tuple[object, ...], dict[int, Row]] = {}
    for row in rows:
        x = getattr(row.case, size)
        if x > 0 and _times(row):
            # Two cases may be the same computation under two names: the first one counts.
            families.setdefault((row.mode, row.dtype, *_work(row.case, but=size)), {}).setdefault(x, row)
    seen: Counter[tuple[object, ...]] = Counter()
    ranked = []
    for (mode, dtype, *_), family in families.items():
        if len(family) > 1:
            kind = (mode, dtype, len(family))
            ranked.append((-len(family), seen[kind], family))
            seen[kind] += 1
    ranked.sort(key=lambda entry: entry[:2])
    return [(_title(family, size), _curves(family, size, looks)) for *_, family in ranked[:FAMILIES]]


def _work(case: Case, but: str) -> tuple[object, ...]:
    fields = (field.name for field in dataclasses.fields(case))
    return tuple(getattr(case, name) for name in fields if name not in LABELS | {but})


def _times(row: Row) -> dict[str, float]:
    """Median milliseconds of ours, PyTorch, and the peers that compute in the row's own precision."""
    return {
        name: 1e3 * m.median_s
        for name, m in row.measured.items()
        if m.median_s and (name in (OURS, PYTORCH) or m.precision == row.dtype)
    }


def _title(family: Mapping[int, Row], size: str) -> str:
    row = next(iter(family.values()))
    case = row.case
    parts = [f"{name} {getattr(case, name)}" for name in SIZES if name != size and getattr(case, name)]
    parts += [f"{case.layers} layer{'s' if case.layers > 1 else ''}"] if case.layers else []
    odd = ("bidirectional", "packed", "lengths", "strided", "states", "resets", "dropout")
    parts += [name for name in odd if getattr(case, name)]
    parts += [f"projection {case.proj_size}"] if case.proj_size else []
    return f"{case.model or row.mode} {row.dtype}: " + ", ".join(
        part.replace(" ", "\u00a0") for part in parts
    )


def _looks(rows: Iterable[Row]) -> dict[str, Look]:
    """The colour and marker of every candidate, the same in all plots."""
    others = sorted({name for row in rows for name in _times(row)} - {OURS, PYTORCH})
    looks = {name: (OTHERS[k % len(OTHERS)], MARKERS[k % len(MARKERS)]) for k, name in enumerate(others)}
    return {OURS: (FAST, "o"), PYTORCH: (EAGER, "s"), **looks}


def _curves(family: Mapping[int, Row], size: str, looks: Mapping[str, Look]) -> str:
    """A line per candidate over B, T or H, on log-log axes."""
    curves: dict[str, dict[int, float]] = {}
    for x, row in sorted(family.items()):
        for name, time in _times(row).items():
            curves.setdefault(name, {})[x] = time
    figure = Figure(figsize=(3.6, 2.7), layout="constrained")
    axes = figure.subplots()
    for name in _drawn(curves):
        color, marker = looks[name]
        xs, times = zip(*curves[name].items(), strict=True)
        top = 3 if name == OURS else 2
        axes.plot(xs, times, color=color, marker=marker, markersize=4, linewidth=1.3, label=name, zorder=top)
    _log(axes.yaxis, [t for name in _drawn(curves) for t in curves[name].values()])
    axes.set_xscale("log")
    axes.set_xticks(_apart(sorted(family)))
    axes.xaxis.set_major_formatter(_plain)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{SIZES[size]} ({size})")
    axes.set_ylabel("milliseconds")
    tidy(axes, "both")
    figure.legend(loc="outside upper left", ncols=2)
    return svg(figure)


def _drawn(curves: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Ours, PyTorch, and ``RIVALS`` others: those with the most points, of equals the fastest."""
    others = sorted(
        set(curves) - {OURS, PYTORCH},
        key=lambda name: (-len(curves[name]), sum(curves[name].values()), name),
    )
    return [name for name in (OURS, PYTORCH) if name in curves] + sorted(others[:RIVALS])


def _apart(values: Sequence[int]) -> list[int]:
    """The values whose labels do not overlap on a log axis."""
    gap = 0.07 * math.log(values[-1] / values[0])
    kept = [values[0]]
    for x in values[1:]:
        if math.log(x / kept[-1]) > gap:
            kept.append(x)
    return kept


def _lines(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with a labelled line for every call, the first on top."""
    figure = Figure(figsize=(WIDTH, 0.75 + ROW * max(len(names), 2)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks([-k for k in range(len(names))], names, fontsize=7.5)
    axes.set_ylim(-len(names) + 0.2, 0.8)
    axes.tick_params(axis="y", length=0)
    tidy(axes, "both")
    return figure, axes


def _log(axis: Axis, values: Sequence[float]) -> None:
    """A log axis around the values, wide enough to have ticks."""
    low, high = min(values) / 1.2, max(values) * 1.2
    if high < 4 * low:
        middle = math.sqrt(low * high)
        low, high = middle / 2, middle * 2
    set_scale, set_limits = (
        (axis.axes.set_xscale, axis.axes.set_xlim)
        if axis.axis_name == "x"  # type: ignore[attr-defined]
        else (axis.axes.set_yscale, axis.axes.set_ylim)
    )
    set_scale("log")
    set_limits(low, high)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,), numticks=12))
    axis.set_major_formatter(_plain)
    axis.set_minor_formatter(NullFormatter())


_plain = FuncFormatter(lambda x, _: f"{x:,.6g}")
