"""The output of a run on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .record import BEHIND, PYTORCH, Measurement, Ratio, Record, Row, geometric_mean


def duration(seconds: float | None) -> str:
    """Three significant digits with a unit."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:#.3g} {unit}"
    return f"{seconds * 1e6:#.3g} us"


def ratio(found: Ratio | None) -> str:
    if found is None:
        return "-"
    color = "red" if found.loss else "green" if found.low > 1.0 else "default"
    return f"[{color}]{found.value:.2f}x[/] [dim]{found.low:.2f}-{found.high:.2f}[/]"


def line(row: Row) -> str:
    """One row in a line, as progress of the run."""
    ours = row.ours
    if ours.status != "measured":
        color = "red" if ours.status in ("failed", "error") else "yellow"
        return f"[{color}]{escape(row.name)}: {ours.status}: {escape(ours.reason)}[/]"
    best = f", best peer {row.best_peer} {ratio(row.vs_best)}" if row.best_peer else ""
    failed = [m for m in row.candidates.values() if m is not ours and m.status in ("failed", "error")]
    also = "".join(f"\n  [red]{m.candidate}: {m.status}: {escape(m.reason)}[/]" for m in failed)
    busy = f" [yellow](other work on the machine: {row.others:.1f} cores)[/]" if row.busy else ""
    return f"{row.name}: {duration(ours.median_s)}, PyTorch {ratio(row.vs_pytorch)}{best}{busy}{also}"


def show(console: Console, record: Record) -> None:
    """Prints the tables, the means, the losses, the failures and the missing peers."""
    console.print(_rows(record))
    models = [row for row in record.rows if row.case.model]
    if models:
        console.print(_side_by_side("Median time of a call", models, lambda m: duration(m.median_s)))
        console.print(_side_by_side("Set-up until the first result", models, lambda m: duration(m.ready_s)))
        console.print(_side_by_side("Memory added at the peak", models, _memory))
    if len(models) < len(record.rows):
        console.print(_setup([row for row in record.rows if not row.case.model]))
    for text in summary(record):
        console.print(text)


def summary(record: Record) -> Iterator[str]:
    """The lines below the tables."""
    for group in record.groups():
        means = [
            f"{geometric_mean([ratio.value for ratio in ratios]):.2f}x {name} ({len(ratios)} rows, {lost})"
            for name, ratios, lost in (
                ("PyTorch", group.pytorch, f"{group.slower} slower beyond noise"),
                ("the best peer", group.best, f"{group.behind} below {BEHIND}"),
            )
            if ratios
        ]
        if means:
            yield f"{group.name}: geometric mean {', '.join(means)}"
    shares = {row.name: row.share for row in record.rows if row.share is not None}
    if shares:
        worst = min(shares, key=shares.__getitem__)
        mean = geometric_mean(list(shares.values()))
        yield f"share of the machine's limit: geometric mean {mean:.0%}, worst {shares[worst]:.0%} in {worst}"
    for row in record.rows:
        if row.limit_is_wrong:
            yield f"[yellow]the limit of {row.name} is wrong: the call took {1 / row.share:.0%} of that time[/]"
    losses = record.losses()
    yield f"losses against the best peer: {len(losses)} of {sum(row.vs_best is not None for row in record.rows)} rows"
    for row in losses:
        yield f"  {row.name}: {ratio(row.vs_best)} {row.best_peer}"
    only_pytorch = [row for row in record.losses(PYTORCH) if row not in losses]
    for row in only_pytorch:
        yield f"  {row.name}: {ratio(row.vs_pytorch)} PyTorch"
    for name, reason in record.missing.items():
        yield f"[yellow]missing peer {name}: {escape(reason)}[/]"
    for note in record.notes:
        yield f"[yellow]{escape(note)}[/]"
    for row, m in record.failed:
        yield f"[bold red]{m.status.upper()} {escape(row.name)}, {m.candidate}: {escape(m.reason)}[/]"


def _rows(record: Record) -> Table:
    table = _table("Times of one call", "call")
    for name in (
        "ours: min",
        "median",
        "80 %",
        "PyTorch",
        "best peer",
        "",
        "x PyTorch",
        "x best",
        "limit",
        "memory",
    ):
        table.add_column(name, justify="left" if name == "best peer" else "right", no_wrap=True)
    for row in record.rows:
        ours, pytorch = row.ours, row.candidates.get(PYTORCH)
        if ours.status != "measured":
            table.add_row(row.name, f"[red]{ours.status}[/]", *["-"] * 9)
            continue
        best = row.measured.get(row.best_peer or "")
        table.add_row(
            row.name,
            *map(duration, (ours.min_s, ours.median_s, ours.p80_s)),
            _time(pytorch),
            *(("-", "-") if best is None else (best.candidate, duration(best.median_s))),
            ratio(row.vs_pytorch),
            ratio(row.vs_best),
            "-" if row.share is None else f"{row.share:.0%}",
            _memory(ours),
        )
    return table


def _side_by_side(title: str, rows: list[Row], text: Callable[[Measurement], str]) -> Table:
    """A column for each candidate that was measured."""
    table = _table(title, "call")
    names = dict.fromkeys(name for row in rows for name in row.measured)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name, *(text(row.measured[name]) if name in row.measured else "-" for name in names)
        )
    return table


def _setup(all_rows: list[Row]) -> Table:
    """Set-up and first call of each candidate, in the row where they take the longest."""
    table = _table("Set-up and first call, in the row where they take the longest", "candidate")
    for name in ("set-up", "first call", "a call", "call"):
        table.add_column(name, justify="left" if name == "call" else "right")
    names = dict.fromkeys(name for row in all_rows for name in row.measured)
    for name in names:
        rows = [(row, row.measured[name]) for row in all_rows if name in row.measured]
        row, m = max(rows, key=lambda pair: pair[1].ready_s or 0.0)
        table.add_row(name, *map(duration, (m.setup_s, m.first_call_s, m.median_s)), row.name)
    return table


def _table(title: str, first: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    return table


def _time(m: Measurement | None) -> str:
    if m is None or m.status in ("unsupported", "missing"):
        return "-"
    return duration(m.median_s) if m.status == "measured" else f"[red]{m.status}[/]"


def _memory(m: Measurement) -> str:
    return "-" if m.peak_bytes is None else f"{m.peak_bytes / 1e6:.1f} MB"
