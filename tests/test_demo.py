"""The demo: its data, its model, its proof, its page, and the whole of it."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

import numpy as np

from cnnlstm_fast import explain, optimize
from cnnlstm_fast.demo import data, measure, model, proof, report, run, train
from cnnlstm_fast.verify import ErrorRow, Report

TINY = {"channels": 4, "hidden": 8}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are tiny: on a busy machine a second thread costs them far more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def split() -> tuple[data.Scans, data.Scans]:
    return data.load_split(seed=0)


@pytest.fixture(scope="module")
def strings(split: tuple[data.Scans, data.Scans]) -> data.Strings:
    return data.compose(split[1], 40, np.random.default_rng(0))


@pytest.fixture(scope="module")
def result(strings: data.Strings) -> report.Result:
    """A small one: an untrained model that misreads everything."""
    torch.manual_seed(0)
    eager = model.NumberReader(**TINY).eval()
    fast = optimize(model.NumberReader(**TINY).eval())
    fast.load_state_dict(eager.state_dict())
    found = proof.prove(eager, fast, strings)
    return report.Result(
        held_out=strings,
        recipe=train.Recipe(steps=2),
        scans=(1437, 360),
        curve=[train.Point(1, 0.5, 3.0, 0.0), train.Point(2, 1.0, 2.0, 0.0)],
        proof=found,
        timings=measure.measure(eager, fast, strings, seconds=0.0),
        explanation=explain(fast),
        device=torch.device("cpu"),
        seed=0,
        goal=0.95,
        failures=found.failures(0.95),
    )


def test_split_shares_no_scan(split: tuple[data.Scans, data.Scans]) -> None:
    training, held_out = (set(part.ids.tolist()) for part in split)
    assert not training & held_out
    assert training | held_out == set(range(1797))
    assert set(split[1].digits.tolist()) == set(range(10))


def test_strings_of_a_split_are_written_with_its_scans_alone(
    split: tuple[data.Scans, data.Scans], strings: data.Strings
) -> None:
    digit_of = dict(zip(split[1].ids.tolist(), split[1].digits.tolist(), strict=True))
    assert strings.digits.tolist() == [digit_of[scan] for scan in strings.scan_ids.tolist()]


@pytest.mark.parametrize("distort", [False, True])
def test_strings_are_as_long_and_as_wide_as_they_say(
    split: tuple[data.Scans, data.Scans], distort: bool
) -> None:
    strings = data.compose(split[0], 30, np.random.default_rng(1), distort=distort, length=(2, 5))
    assert strings.pictures.shape == (30, 1, data.HEIGHT, int(strings.widths.max()))
    assert strings.pictures.min() >= 0 and strings.pictures.max() <= 1
    assert set(strings.lengths.tolist()) == {2, 3, 4, 5}
    assert [len(text) for text in strings.texts] == strings.lengths.tolist()
    for picture, width, count in zip(strings.pictures, strings.widths, strings.lengths, strict=True):
        assert picture[0, :, int(width) - data.MARGIN :].sum() == 0
        least, most = (count * data.DRAWN + (count - 1) * gap + 2 * data.MARGIN for gap in data.GAP)
        assert least <= width <= most
        assert picture.sum() > 5 * count, "there should be ink for every digit"


def test_a_part_holds_the_same_strings(strings: data.Strings) -> None:
    parts = list(strings.batches(7))
    assert [len(part) for part in parts] == [7, 7, 7, 7, 7, 5]
    assert [text for part in parts for text in part.texts] == strings.texts
    for start, part in zip(range(0, 40, 7), parts, strict=True):
        width = int(part.widths.max())
        assert part.pictures.shape[-1] == width
        assert torch.equal(part.pictures, strings.pictures[start : start + 7, :, :, :width])


def test_composing_repeats_with_the_same_seed(split: tuple[data.Scans, data.Scans]) -> None:
    a, b = (data.compose(split[0], 5, np.random.default_rng(3), distort=True) for _ in range(2))
    assert a.texts == b.texts and torch.equal(a.pictures, b.pictures)


def test_model_is_plain_pytorch() -> None:
    source = Path(model.__file__).read_text(encoding="utf-8")
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import would be one of ours"
            imported.append(node.module or "")
    assert {name.split(".")[0] for name in imported} == {"__future__", "torch"}
    assert "cnnlstm" not in source


@pytest.mark.parametrize(
    ("classes", "steps", "text"),
    [
        ([0, 0, 0], 3, ""),
        ([1, 1, 1], 3, "0"),
        ([1, 0, 1], 3, "00"),
        ([2, 2, 0, 3, 10], 5, "129"),
        ([0, 5, 5, 0, 0, 5, 6, 6], 8, "445"),
        ([4, 0, 7, 7], 2, "3"),  # what lies beyond the string's own steps does not count
        ([4, 4], 0, ""),
    ],
)
def test_decoder(classes: list[int], steps: int, text: str) -> None:
    log_probs = torch.nn.functional.one_hot(torch.tensor(classes), 11).float()[:, None]
    assert model.decode(log_probs, torch.tensor([steps])) == [text]


def test_decoder_keeps_the_strings_of_a_batch_apart() -> None:
    log_probs = torch.nn.functional.one_hot(torch.tensor([[1, 2], [0, 2], [4, 0]]), 11).float()
    assert model.decode(log_probs, torch.tensor([3, 1])) == ["03", "1"]


def test_share_right_counts_whole_strings() -> None:
    assert train.share_right(["12", "3", "", "45"], ["12", "4", "1", "45"]) == 0.5


def test_a_short_training_lowers_the_loss(
    split: tuple[data.Scans, data.Scans], strings: data.Strings
) -> None:
    torch.manual_seed(0)
    seen: list[int] = []
    points = train.train(
        model.NumberReader(**TINY),
        split[0],
        strings,
        np.random.default_rng(0),
        train.Recipe(steps=24, batch=8, check_every=8),
        lambda step, point: seen.append(step),
    )
    assert [point.step for point in points] == [8, 16, 24]
    assert seen == list(range(1, 25))
    assert points[-1].loss < 0.7 * points[0].loss


def test_proof_names_what_does_not_hold() -> None:
    fine, bad = ErrorRow("output 0", 1e-7, 1e-7, 1e-6), ErrorRow("gradient of x", 1e-7, 1e-5, 1e-6)
    good = proof.Proof(["1", "2"], ["1", "2"], ["1", "2"], Report([fine]))
    assert good.failures(0.95) == []
    misread = replace(good, eager=["1", "3"], fast=["1", "3"])
    assert len(misread.failures(0.95)) == 1 and "50.0 %" in misread.failures(0.95)[0]
    assert "1 of 2" in replace(good, fast=["1", "3"]).failures(0.95)[0]
    assert "gradient of x" in replace(good, report=Report([fine, bad])).failures(0.95)[0]


@pytest.mark.parametrize(
    ("eager", "fast", "verdict", "noisy"),
    [
        ([4.0] * 9, [2.0] * 9, "faster", False),
        ([2.0] * 9, [4.0] * 9, "slower", False),
        ([1.0, 2.0] * 5, [2.0, 1.0] * 5, "no difference", True),
    ],
)
def test_timing_verdict(eager: list[float], fast: list[float], verdict: str, noisy: bool) -> None:
    timing = measure.Timing("a job", eager, fast)
    assert timing.verdict == verdict and timing.noisy == noisy
    assert timing.speedup.low <= timing.speedup.value <= timing.speedup.high


def test_measuring_leaves_the_models_as_they_were(strings: data.Strings) -> None:
    eager, fast = model.NumberReader(**TINY), optimize(model.NumberReader(**TINY))
    before = [p.detach().clone() for m in (eager, fast) for p in m.parameters()]
    timings = measure.measure(eager, fast, strings, seconds=0.0)
    assert len(timings) == 5 and all(t.eager_ms > 0 and t.fast_ms > 0 for t in timings)
    after = [p for m in (eager, fast) for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_page_is_self_contained(result: report.Result, tmp_path: Path) -> None:
    report.write(result, tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    loaded = re.findall(r"""(?:src|href|srcset|data|action)\s*=\s*["']([^"']*)""", page)
    loaded += re.findall(r"url\(\s*[\"']?([^)\"']*)", page)
    assert loaded and all(target.startswith(("data:image/png;base64,", "#")) for target in loaded)
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import", page)
    assert set(re.findall(r"https?://[^\s\"'<>]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }, "names of namespaces are no references"


def test_page_tells_what_was_read_and_what_failed(result: report.Result) -> None:
    page = report.render(result)
    assert all(text in page for text in result.held_out.texts), "every misread string is shown"
    assert all(timing.what in page for timing in result.timings)
    assert "Failed." in page and "less than the 95 % asked for" in page
    assert "output 0" in page and "gradient of lstm.weight_hh_l1_reverse" in page
    good = replace(
        result, proof=replace(result.proof, eager=result.proof.truth, fast=result.proof.truth), failures=[]
    )
    assert "misread</span>" not in report.render(good) and "Failed." not in report.render(good)


def test_an_interrupted_page_leaves_the_old_one(
    result: report.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "report.html"
    page.write_text("old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(report.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        report.write(result, page)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"] and page.read_text() == "old"


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return parser.parse_args(argv)


def test_a_missing_extra_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else find(name, *rest)
    )
    assert run.run(parse("--output", str(tmp_path / "report.html"))) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "The demo needs scikit-learn: pip install cnnlstm-fast[demo]\n"


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--output", "no/such/folder/report.html"], "there is no folder"),
        (["--output", "."], "is a folder"),
        (["--seed", "-1"], "--seed"),
        (["--device", "toaster"], "--device"),
    ],
)
def test_what_cannot_work_is_said_before_the_training(
    argv: list[str],
    part: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run.run(parse(*argv)) == 1
    said = capsys.readouterr()
    assert said.out == "" and part in said.err and said.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_interrupt_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "training_step", interrupt)
    assert run.run(parse("--output", str(tmp_path / "report.html"))) == 130
    assert capsys.readouterr().err == "Stopped before the end: no report was written.\n"
    assert not list(tmp_path.iterdir())


def test_a_goal_that_is_missed_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "HELD_OUT", 20)
    page = tmp_path / "report.html"
    assert run.demo(page, recipe=train.Recipe(steps=1, batch=2), seconds=0.0) == 1
    said = capsys.readouterr()
    assert "Failed: The trained model reads" in said.err
    assert "speed-up" in said.out and "step    1 of 1" in said.out
    assert page.exists(), "the page shows the failure"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_main_job(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    command = [sys.executable, "-m", "cnnlstm_fast", "demo", "--output", str(page), "--device", "cpu"]
    # PyTorch's threads wait for each other in a spin: on a machine with other work two take far longer than one.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "500 of 500" in done.stdout
    text = page.read_text(encoding="utf-8")
    assert "500 / 500" in text and "Failed." not in text
