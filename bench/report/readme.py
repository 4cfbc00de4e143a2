"""``python -m bench.report.readme``: writes the README's performance tables, from the committed results."""

from __future__ import annotations

from pathlib import Path

from .record import PYTORCH, Record, Row, geometric_mean, load

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- speed: written by `python -m bench.report.readme` -->", "<!-- end of speed -->"


def rendered(text: str, records: dict[str, Record]) -> str:
    """The README's text with the part between the markers replaced.

    Args:
        records: by path relative to the checkout, in the order of their tables.

    Raises:
        ValueError: the text lacks the markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(
            f"README.md: expected one {BEGIN!r} and one {END!r}; put them where the tables belong."
        )
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    parts = [_section(path, record) for path, record in records.items()]
    return f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}"


def committed() -> dict[str, Record]:
    """The runs under ``bench/results`` that the README shows: models.json and core.json of each hardware."""
    paths = [path for name in ("models.json", "core.json") for path in sorted(RESULTS.glob(f"*/{name}"))]
    return {str(path.relative_to(ROOT)): load(path) for path in paths}


def _section(path: str, record: Record) -> str:
    columns = list(dict.fromkeys((row.mode, row.dtype) for row in record.rows))
    rows: dict[str, dict[tuple[str, str], Row]] = {}
    for row in record.rows:
        rows.setdefault(_title(row), {})[row.mode, row.dtype] = row
    hardware = record.hardware
    device = " + ".join([hardware["cpu"], *(gpu["name"] for gpu in hardware.get("gpus", []))])
    head = (
        f"{device}, {hardware['threads']} threads, PyTorch {record.versions['torch']}, {record.datetime[:10]}, "
        f"commit {(record.commit.get('id') or 'none')[:7]} ([all figures]({path})):"
    )
    kind = "whole model (batch)" if record.rows[0].case.model else "LSTM (T, B, I, H, layers, directions)"
    lines = [
        f"| {kind} | " + " | ".join(" ".join(c) for c in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for title, cells in rows.items():
        found = [_cell(cells.get(column)) for column in columns]
        if any(cell.strip("- ") for cell in found):
            lines.append(f"| {title} | " + " | ".join(found) + " |")
    lines.append("| **geometric mean** | " + " | ".join(f"**{_mean(record, c)}**" for c in columns) + " |")
    slower = [_losses("PyTorch", record, PYTORCH), _losses("the fastest other library", record, None)]
    return "\n".join([head, "", *lines, "", *slower])


def _losses(name: str, record: Record, peer: str | None) -> str:
    rows = record.losses(peer)
    named = ", ".join(row.name for row in rows)
    return (
        f"Slower than {name} beyond noise: {len(rows)} of {len(record.rows)} rows{': ' * bool(rows)}{named}."
    )


def _title(row: Row) -> str:
    c = row.case
    if c.model:
        return f"{c.use}: {c.model} ({c.B})"
    return f"{c.use} ({c.T}, {c.B}, {c.I}, {c.H}, {c.layers}, {c.directions})"


def _cell(row: Row | None) -> str:
    """The speed relative to PyTorch, and relative to the best peer where that is another one."""
    if row is None or row.vs_pytorch is None:
        return "-"
    best = row.vs_best
    also = f" / {best.value:.2f}" if best is not None and row.best_peer != PYTORCH else ""
    return f"{row.vs_pytorch.value:.2f}{also}"


def _mean(record: Record, column: tuple[str, str]) -> str:
    rows = [row for row in record.rows if (row.mode, row.dtype) == column]
    means = [
        geometric_mean([r.value for r in ratios if r is not None])
        for ratios in ([row.vs_pytorch for row in rows], [row.vs_best for row in rows])
    ]
    return " / ".join(f"{mean:.2f}" for mean in means)


if __name__ == "__main__":
    README.write_text(rendered(README.read_text(encoding="utf-8"), committed()), encoding="utf-8")
