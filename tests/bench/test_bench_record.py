"""Results: what they say of themselves, on disk and against older ones."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from bench.cases import CASES
from bench.report import readme
from bench.report import screen as table
from bench.report.compare import changes
from bench.report.record import (
    OURS,
    PYTORCH,
    Measurement,
    Record,
    Row,
    geometric_mean,
    load,
    save,
)

RNG = np.random.default_rng(0)


def measured(name: str, seconds: float, precision: str = "f32", **more: Any) -> Measurement:
    """Twenty rounds with a scatter of one percent."""
    rounds = (seconds * (1 + 0.01 * RNG.standard_normal(20))).tolist()
    return Measurement(
        name, "measured", "", precision, rounds, 200, min(rounds), seconds, 1.1 * seconds, **more
    )


def row(name: str = "packed", ours: float = 1e-3, pytorch: float = 2e-3, **others: float) -> Row:
    found = [measured(OURS, ours), measured(PYTORCH, pytorch)]
    found += [measured(peer, seconds) for peer, seconds in others.items()]
    return Row(CASES[name], "inference", "f32", {m.candidate: m for m in found}, 0.5e-3)


def record(*rows: Row) -> Record:
    return Record(
        "quick",
        "2026-01-02T03:04:05+00:00",
        {"cpu": "A CPU", "threads": 2, "gpus": []},
        {"torch": "2.13.0", "pytest_benchmark": "5.0.0"},
        {"id": "0123456789ab", "dirty": False},
        {"f32_flops": 1e11},
        {"openvino": "pip install openvino"},
        [],
        list(rows),
    )


def test_a_row_knows_its_best_peer_and_its_share() -> None:
    found = row(fast_peer=0.8e-3, slow_peer=5e-3)
    assert found.best_peer == "fast_peer" and found.vs_best.loss
    assert found.vs_pytorch.value == pytest.approx(2.0, rel=0.02)
    assert found.share == 0.5
    coarse = replace(measured("int8_peer", 1e-4), precision="int8")
    assert replace(found, candidates=found.candidates | {"int8_peer": coarse}).best_peer == "fast_peer"
    failed = replace(found.candidates["fast_peer"], status="failed")
    assert replace(found, candidates=found.candidates | {"fast_peer": failed}).best_peer == PYTORCH
    assert geometric_mean([1.0, 4.0]) == 2.0


def test_losses_are_those_beyond_noise() -> None:
    found = record(row(fast_peer=0.5e-3), row("crnn-b1", 1e-3, 1e-3), row("word-b1", 2e-3, 1e-3))
    assert [r.case.name for r in found.losses()] == ["packed", "word-b1"]
    assert [r.case.name for r in found.losses(PYTORCH)] == ["word-b1"]


def test_groups_count_what_is_slower_and_what_is_behind() -> None:
    training = replace(row("crnn-b1", 2e-3, 1e-3), mode="training")
    first, second = record(row(fast_peer=0.5e-3), training, row("word-b1", 1e-3, 0.97e-3)).groups()
    assert (first.name, len(first.rows), first.slower, first.behind) == ("inference f32", 2, 1, 1)
    assert (second.name, len(second.rows), second.slower, second.behind) == ("training f32", 1, 1, 1)


def test_the_time_until_the_first_result() -> None:
    assert measured(OURS, 1e-3, setup_s=0.5, first_call_s=0.25).ready_s == 0.75
    assert measured(OURS, 1e-3).ready_s is None


def test_whole_models_are_shown_side_by_side() -> None:
    facts = {"setup_s": 0.5, "first_call_s": 0.25, "peak_bytes": 3_000_000}
    found = {name: measured(name, 1e-3, **facts) for name in (OURS, PYTORCH, "openvino")}
    missing = {"onnxruntime": Measurement("onnxruntime", "missing", "not there")}
    whole = Row(CASES["model-words-b1"], "inference", "f32", found | missing)
    console = Console(width=170, record=True, file=io.StringIO())
    table.show(console, record(whole))
    text = console.export_text()
    assert "Set-up and first call" not in text and "onnxruntime" not in text
    for title, cell in (
        ("Median time of a call", "1.00 ms"),
        ("Set-up until the first result", "750. ms"),
        ("Memory added at the peak", "3.0 MB"),
    ):
        shown = text[text.index(title) :].splitlines()
        assert shown[2].split() == ["call", OURS, PYTORCH, "openvino"]
        assert shown[4].count(cell) == 3, title


def test_results_of_earlier_versions_are_read() -> None:
    old = readme.committed()
    assert old and all(found.rows and found.groups() for found in old.values())


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    unsupported = Measurement("openvino", "unsupported", "it has no such thing")
    one = row(fast_peer=0.8e-3)
    before = record(replace(one, candidates=one.candidates | {"openvino": unsupported}), row("crnn-b1"))
    path = tmp_path / "made" / "results.json"
    save(before, path)
    assert load(path) == before
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_the_file_has_pytest_benchmarks_form(tmp_path: Path) -> None:
    save(record(row()), tmp_path / "results.json")
    document = json.loads((tmp_path / "results.json").read_text())
    assert {"machine_info", "commit_info", "benchmarks", "datetime", "version"} <= document.keys()
    for entry in document["benchmarks"]:
        assert {"group", "name", "fullname", "params", "extra_info", "stats", "options"} <= entry.keys()
        assert {"min", "max", "mean", "median", "stddev", "iqr", "rounds"} <= entry["stats"].keys()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cnnlstm_fast": {}}', '{"benchmarks": 3}'])
def test_a_file_of_something_else_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"other\.json: expected a file written by `cnnlstm-fast bench --json`"
    ):
        load(path)


def test_compare_finds_what_became_slower() -> None:
    old = record(row(), row("crnn-b1"), row("word-b1"))
    new = record(row(ours=1.2e-3), row("crnn-b1", ours=2e-3, pytorch=4e-3), row("word-b1", ours=0.7e-3))
    found = {change.name.split()[0]: change for change in changes(new, old)}
    assert found["packed"].regressed and found["packed"].factor == pytest.approx(1 / 1.2, rel=0.02)
    assert not found["crnn-b1"].regressed  # the whole machine is slower
    assert found["word-b1"].improved and not found["word-b1"].regressed


def test_compare_takes_noise_for_noise() -> None:
    assert not any(
        c.regressed or c.improved for _ in range(20) for c in changes(record(row()), record(row()))
    )


def test_compare_refuses_what_cannot_be_compared() -> None:
    old = record(row())
    other = replace(old, hardware=old.hardware | {"cpu": "B CPU"})
    with pytest.raises(ValueError, match="expected a run of the same CPU, got B CPU there and A CPU here"):
        changes(old, other)
    with pytest.raises(ValueError, match="same PyTorch"):
        changes(old, replace(old, versions={"torch": "2.11.0"}))
    with pytest.raises(ValueError, match="got none"):
        changes(old, record(row("crnn-b1")))


def test_summary_names_means_losses_failures_and_what_is_missing() -> None:
    failed = replace(measured("fast_peer", 1.0), status="failed", reason="output: error 1e-1")
    one = row("packed", 2e-3, 1e-3)
    found = record(replace(one, candidates=one.candidates | {"fast_peer": failed}), row("crnn-b1"))
    text = "\n".join(table.summary(found))
    assert re.search(r"geometric mean (0\.9|1\.0)\dx PyTorch \(2 rows, 1 slower beyond noise\)", text)
    assert "the best peer (2 rows, 1 below 0.95)" in text
    assert "losses against the best peer: 1 of 2 rows" in text and "packed inference f32" in text
    assert "worst 25%" in text and "missing peer openvino: pip install openvino" in text
    assert "FAILED packed inference f32, fast_peer: output: error 1e-1" in text


def test_other_work_is_told() -> None:
    disturbed = replace(row("crnn-b1"), others=1.25)
    assert record(row()).disturbance is None
    told = "Other work used up to 1.2 cores while 1 of 2 rows were timed"
    assert (record(row(), disturbed).disturbance or "").startswith(told)
    assert "other work on the machine: 1.2 cores" in table.line(disturbed)


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5, "1.50 s"), (0.0123, "12.3 ms"), (3.2e-5, "32.0 us"), (None, "-")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert table.duration(seconds) == text


def test_readme_tells_what_was_committed() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.committed(), "there are results to tell of"
    assert readme.rendered(text, readme.committed()) == text, "run: python -m bench.report.readme"


def test_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one"):
        readme.rendered("# title", {})
