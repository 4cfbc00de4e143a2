"""The benchmark's page: what it says, that it is safe and complete, and that its tables sort and filter."""

from __future__ import annotations

import html
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from bench.cases import Case
from bench.report import page, plots, screen
from bench.report.record import OURS, PYTORCH, Measurement, Record, Row

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BASE = Case("base", 20, 8, 64, 128, 2, True, "someone's call")


def measured(candidate: str, median: float, precision: str = "f32", **more: object) -> Measurement:
    known = Measurement(
        *(candidate, "measured", "", precision),
        rounds=[median * (1 + 0.01 * k) for k in range(5)],
        calls=50,
        min_s=0.9 * median,
        median_s=median,
        p80_s=1.1 * median,
        setup_s=0.25,
        first_call_s=3 * median,
        peak_bytes=2_500_000,
        error=1e-6,
        limit=4e-6,
    )
    return replace(known, **more)


def make_row(
    case: Case, *candidates: Measurement, mode: str = "inference", lower_bound: float | None = 4e-4
) -> Row:
    return Row(case, mode, "f32", {m.candidate: m for m in candidates}, lower_bound)


def make_record(*rows: Row, **more: object) -> Record:
    known = Record(
        suite="core",
        datetime="2026-01-02T03:04:05+00:00",
        hardware={"cpu": "Test CPU", "cores": 4, "threads": 2, "gpus": [{"name": "Test GPU"}]},
        versions={"torch": "2.99", "cnnlstm_fast": "0.9", "cuda": None, "native": {"available": True}},
        commit={"id": "abc123", "dirty": True},
        roofline={"gemm_f32": 1.5e12, "l2_bytes": 2e6, "threads": 4, "copy": 0.0},
        rows=list(rows),
    )
    return replace(known, **more)


def family() -> list[Row]:
    """Three batch sizes: twice as fast as PyTorch, lost to a peer on the last."""
    return [
        make_row(
            replace(BASE, name=f"batch-{B}", B=B),
            measured(OURS, 1e-3 * B),
            measured(PYTORCH, 2e-3 * B),
            measured("rival", (4e-3 if B < 100 else 0.5e-3) * B),
        )
        for B in (8, 20, 100)
    ]


@pytest.fixture(scope="module")
def text() -> str:
    return page.render(make_record(*family()))


def words(text: str) -> str:
    """What a reader sees of the page, the plots aside."""
    bare = re.sub(r"<(style|script|svg).*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", bare)).split())


def test_tells_what_was_measured_on_what(text: str) -> None:
    said = words(text)
    for fact in ("Test CPU", "Test GPU", "cores: 4", "threads used: 2", "2.99", "abc123 (dirty)", "core:"):
        assert fact in said
    assert said.endswith("gemm_f32 1.50 TFLOP/s l2_bytes 2.00 MB threads 4")


def test_cards(text: str) -> None:
    said = words(text)
    assert "2.00 × over PyTorch" in said
    assert f"{math.prod((2.0, 2.0, 0.5)) ** (1 / 3):.2f} × over the best peer, geometric mean" in said
    assert "inference f32 , 3 calls" in said
    assert (
        "geometric mean of 3, 0 slower beyond noise" in said and "geometric mean of 3, 1 below 0.95" in said
    )
    assert "1 / 3 calls lost to the best peer" in said
    assert "0.4 % worst call" in said


def test_losses(text: str) -> None:
    table = text[text.index("<h2>Losses") : text.index("<h2>All calls")]
    assert words(table).endswith("batch-100 inference f32 rival 0.50 0.50 – 0.50")
    assert "Losses None." in words(page.render(make_record(*family()[:2])))


def test_figures_of_a_call(text: str) -> None:
    row = text[text.index('<tr data-name="batch-8 ') :]
    said = words(row[: row.index("</tr>")])
    assert said == (
        "batch-8 someone's call inference f32 7.20 8.00 8.80 16.0 pytorch 16.0 2.00 2.00 – 2.00 2.00 2.00 – 2.00"
        " 5.0 % 2.50 2.50 1.0e-06 / 4.0e-06"
    )


def test_whole_models_side_by_side(text: str) -> None:
    assert "Whole models" not in text
    whole = make_row(
        replace(BASE, name="whole", model="words"),
        measured(OURS, 1e-3),
        measured(PYTORCH, 2e-3, setup_s=1.0, peak_bytes=7_000_000),
        Measurement("rival", "error", "it broke"),
    )
    page_text = page.render(make_record(whole))
    table = page_text[page_text.index('id="models"') :]
    assert words(table[: table.index("</table>")]).endswith(
        "call cnnlstm_fast pytorch whole inference f32 1.00 0.253 s, 2.50 MB 2.00 1.01 s, 7.00 MB"
    )


def test_all_plots(text: str) -> None:
    titles = [section.title for section in plots.sections(make_record(*family()))]
    assert titles == [
        *("Speed-up per call", "Time against batch", "Share of the machine's limit", "Peak memory")
    ]
    assert text.count("<svg") == 4


def test_nothing_is_loaded(text: str) -> None:
    links = re.findall(r"""(?:\bsrc|href)\s*=\s*["']?([^"'\s>]+)|url\(["']?([^)"']+)|@import""", text)
    assert all(target.startswith("#") for pair in links for target in pair if target)
    assert not re.search(r"<(link|img|iframe)|<script\s|@import", text)


def test_text_is_escaped() -> None:
    evil = "<script>alert('x')</script>"
    bad = Measurement("peer", "error", evil)
    rows = [make_row(replace(BASE, name=evil, use=evil), measured(OURS, 1e-3), bad)]
    text = page.render(make_record(*rows, suite=evil, notes=[evil], missing={evil: evil}))
    assert evil not in text
    assert text.count("<script") == 1
    assert words(text).count(evil) >= 6


def test_failures_notes_and_missing_peers() -> None:
    failed = Measurement(OURS, "failed", "output: error 3e-2")
    broken = Measurement("rival", "error", "segmentation fault")
    rows = [
        make_row(replace(BASE, name=name), failed, measured(PYTORCH, 2e-3), broken) for name in ("one", "two")
    ]
    record = make_record(
        *rows, notes=["interrupted"], missing={"onnxruntime": "no module onnx: pip install onnx"}
    )
    text = page.render(record)
    said = words(text)
    assert "Note. interrupted" in said
    assert "Not installed onnxruntime: no module onnx: pip install onnx" in said
    box = words(text[text.index('<div class="failed">') : text.index("<h2>Losses")])
    ours = "cnnlstm_fast (failed): output: error 3e-2 one inference f32, two inference f32"
    assert box.startswith(f"Failed. {ours} rival (error): segmentation fault one")
    assert "No call was compared with a peer." in said
    assert "<svg" not in text


def test_empty_record() -> None:
    text = page.render(Record("quick", "2026-01-02", {}, {}, {}))
    assert "Nothing was measured." in words(text)
    assert "<svg" not in text and "<table" not in text and 'class="cards"' not in text


def test_without_peers() -> None:
    text = page.render(make_record(make_row(BASE, measured(OURS, 1e-3))))
    assert "No call was compared with a peer." in words(text)
    assert "40.0 %" in words(text)
    assert [
        section.title for section in plots.sections(make_record(make_row(BASE, measured(OURS, 1e-3))))
    ] == ["Share of the machine's limit"]


def test_a_call_beyond_the_limit_is_told_as_a_fault_of_the_limit() -> None:
    usual, beyond = measured(OURS, 1e-3), measured(OURS, 3.7e-4)
    record = make_record(make_row(BASE, usual), make_row(replace(BASE, name="beyond"), beyond))
    said = "\n".join(screen.summary(record))
    assert "the limit of beyond inference f32 is wrong" in said and "limit of base" not in said
    assert "108.1 % in beyond inference f32: its limit is wrong" in words(page.render(record))
    assert "wrong" not in words(page.render(make_record(make_row(BASE, measured(OURS, 3.9e-4)))))


def test_what_was_not_measured_is_a_dash() -> None:
    bare = Measurement(OURS, "measured", error=math.nan)
    text = page.render(
        make_record(make_row(BASE, bare, Measurement(PYTORCH, "unsupported"), lower_bound=None))
    )
    row = text[text.index('<tr data-name="base') :]
    row = row[: row.index("</tr>")]
    assert not re.search(r"\b(None|nan)\b", row)
    assert row.count('data-value=""') == 12


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (math.inf, "–"), (0.0, "0.00"), (0.01234, "0.0123"), (1.234, "1.23"), (123456.7, "123457")],
)
def test_three_digits(value: float | None, shown: str) -> None:
    assert page._figures(value) == shown


def test_families_differ_in_one_size_alone() -> None:
    rows = [
        make_row(replace(BASE, name=f"{T}-{B}", T=T, B=B), measured(OURS, 1e-3), measured(PYTORCH, 2e-3))
        for T, B in ((0, 8), (20, 8), (40, 8), (40, 9))
    ]
    # T = 0 has no place on a log axis; the same work under another name is no second point.
    rows.append(make_row(replace(BASE, name="again", use="another"), measured(OURS, 9e-3)))
    titles = {
        s.title: [title.replace("\u00a0", " ") for title, _ in s.plots]
        for s in plots.sections(make_record(*rows))
    }
    assert len(titles["Time against steps"]) == 1
    assert titles["Time against batch"] == ["inference f32: T 40, I 64, H 128, 2 layers, bidirectional"]
    assert "Time against hidden size" not in titles


def test_peers_of_other_precision_are_not_drawn() -> None:
    row = make_row(BASE, measured(OURS, 1e-3), measured("tiny", 1e-4, "int8"), measured("rival", 1e-2))
    assert set(plots._times(row)) == {OURS, "rival"}


def test_write_leaves_one_file_and_no_half_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "folder"
    assert page.write(make_record(*family()), folder) == folder / "index.html"
    before = (folder / "index.html").read_text(encoding="utf-8")
    assert before.rstrip().endswith("</html>")

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(page.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        page.write(make_record(), folder)
    assert [path.name for path in folder.iterdir()] == ["index.html"]
    assert (folder / "index.html").read_text(encoding="utf-8") == before


def in_browser(tmp_path: Path, text: str, script: str) -> Sequence[str]:
    """What the script leaves in ``told`` after it has used the page."""
    written = tmp_path / "page.html"
    tail = f"<script>const told = []; {script}; document.title = told.join('|');</script>"
    written.write_text(text.replace("</body>", tail + "</body>"), encoding="utf-8")
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", written.as_uri()),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    return html.unescape(title[1]).split("|")


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")
def test_tables_sort_and_filter_in_a_browser(tmp_path: Path) -> None:
    times = {"b": 9e-3, "none": None, "c": 100e-3, "a": 20e-3}
    rows = [
        make_row(replace(BASE, name=name), measured(OURS, 1e-3, median_s=time))
        for name, time in times.items()
    ]
    script = """
      const table = document.getElementById("calls"), head = table.tHead.rows[0].cells[4];
      const shown = () => [...table.tBodies[0].rows].filter(row => row.offsetHeight)
        .map(row => row.cells[0].dataset.value).join(" ");
      told.push(shown());
      for (let k = 0; k < 2; k++) { head.querySelector("button").click(); told.push(shown(), head.ariaSort); }
      table.tHead.rows[0].cells[0].click();
      told.push(shown(), head.ariaSort);
      const filter = document.querySelector("[aria-controls=calls]");
      filter.value = "F32 non"; filter.dispatchEvent(new Event("input")); told.push(shown());
    """
    assert in_browser(tmp_path, page.render(make_record(*rows)), script) == [
        "b none c a",
        *("b a c none", "ascending"),
        *("c a b none", "descending"),
        *("a b c none", "none"),
        "none",
    ]
