"""``cnnlstm-fast calibrate``, with made-up measurements, and the audit of what ``auto`` chooses, with made-up times."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import one_thread

from bench.calibrate import audit, choose, command
from bench.cases import Call, Case
from cnnlstm_fast import _native, cli
from cnnlstm_fast.recurrent.backends import measured
from cnnlstm_fast.recurrent.backends.measured import Point, Table
from cnnlstm_fast.recurrent.backends.this_machine import identity, running

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CNNLSTM_CALIBRATE")
    measured.calibrated.cache_clear()
    with one_thread():
        yield
    measured.calibrated.cache_clear()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls that are measured from now on, each within ten seconds, PyTorch twice as fast at every second one."""
    calls: list[Call] = []
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    def measure_each(
        target: Any, plan: Any, left: Sequence[Call], table: Table, path: Path
    ) -> Iterator[tuple[Any, Point]]:
        for call in left:
            calls.append(call)
            clock.now += 10.0
            c, ratio = call.case, 1.0 if len(calls) % 2 else 0.5
            point = Point(c.T, c.B, c.I, c.H, 1.0, ratio, ratio, ratio, ratio, None)
            choose._add(table, call, point, choose._facts(plan), "cpu")
            choose._save(table, path)
            yield SimpleNamespace(name=c.name), point

    monkeypatch.setattr(choose, "measure_each", measure_each)
    monkeypatch.setattr(command, "time", clock)
    return calls


def path() -> Path:
    return identity(running()).file("table")


def test_it_writes_a_table_that_auto_uses_and_goes_on_the_next_time(made: list[Call], capsys: Any) -> None:
    assert command.main(["--minutes", "3"]) == 0
    assert len(made) == 19 and all(map(choose.is_coarse, made))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "19 calls measured, of which PyTorch's own kernel runs 9 faster: auto goes by them"
    )
    assert str(path()) in line and f"measures the {len(list(choose.grid())) - 19} calls that are left" in line
    machine, kind = running(), "float32 inference D=1"
    found = measured.own("cpu", machine, kind)
    assert found is not None and len(found.kinds[kind].points) >= measured.LEAST_POINTS
    before = list(made)
    assert command.main(["--minutes", "1"]) == 0
    assert len(made) == 26 and made[: len(before)] == before and len(set(map(str, made))) == 26


def test_the_coarse_grid_is_enough_for_every_kind_and_takes_minutes() -> None:
    coarse = [call for call in choose.grid() if choose.is_coarse(call)]
    kinds = [measured.kind(call.case.spec(call.mode, call.dtype)) for call in coarse]
    assert len(set(kinds)) == 12 and min(map(kinds.count, kinds)) > measured.LEAST_POINTS
    assert sum(choose.expected_seconds(call, command.SECONDS, 2e11) for call in coarse) / 60 < 5


def test_an_interruption_keeps_what_was_measured(
    made: list[Call], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    original = choose.measure_each

    def interrupted(*args: Any) -> Iterator[Any]:
        yield from (step for step, _ in zip(original(*args), range(3), strict=False))
        raise KeyboardInterrupt

    monkeypatch.setattr(choose, "measure_each", interrupted)
    assert command.main([]) == 130
    assert "calls measured" in capsys.readouterr().out and path().exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--minutes", "0"], "--minutes: expected more than 0, got 0."),
        (["--threads", "0"], "--threads: expected 1 or more, got 0."),
    ],
)
def test_misuse_is_a_sentence(arguments: list[str], sentence: str, capsys: Any) -> None:
    assert command.main(arguments) == 2
    assert capsys.readouterr().err == sentence + "\n"


def test_a_folder_that_cannot_be_written_is_a_sentence(
    made: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert command.main([]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_the_command_line_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    module = SimpleNamespace(main=lambda argv, prog: seen.append((list(argv), prog)) or 0)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
    assert cli.main(["calibrate", "--minutes", "2"]) == 0
    assert seen == [(["--minutes", "2"], "cnnlstm-fast calibrate")]


def test_without_the_optional_packages_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(cli.importlib, "import_module", missing)
    assert cli.main(["calibrate"]) == 1
    assert "cnnlstm-fast calibrate needs numpy: pip install" in capsys.readouterr().err


# the audit


def test_the_draw_is_the_same_for_a_seed_and_of_calls_that_are_not_long() -> None:
    calls = audit.draw(200, 0)
    assert calls == audit.draw(200, 0) != audit.draw(200, 1)
    assert all(choose.flop(call) <= audit.MOST_FLOP for call in calls)
    assert len({(call.mode, call.dtype, call.case.directions) for call in calls}) == 8


@pytest.fixture
def timed_as(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A single small call is drawn, and its measurements find these ratios in turn."""

    def plant(*ratios: float) -> None:
        left = list(ratios)

        def interleave(calls: Any, *limits: Any) -> dict[str, list[float]]:
            return {"ours": [1.0] * 9, "theirs": [left.pop(0)] * 9}

        case = Case("random-0", 3, 2, 8, 8, 1, True, "a test")
        monkeypatch.setattr(audit, "draw", lambda count, seed: [Call(case, "training", "f32")] * count)
        monkeypatch.setattr(audit, "interleave", interleave)
        monkeypatch.setattr(audit, "SHORT", 1e-9)

    return plant


def test_the_audit_lists_what_is_slower_and_its_figures(
    timed_as: Callable[..., None], tmp_path: Path, capsys: Any
) -> None:
    timed_as(0.9, 0.8, 2.0)
    assert audit.main(["--shapes", "2", "--json", str(tmp_path / "a.json")]) == 1
    slow, summary = capsys.readouterr().out.splitlines()
    assert slow.startswith("T=3 B=2 I=8 H=8 D=2 training f32: 0.800 (0.800 to 0.800) by ")
    assert summary.startswith("auto is slower than PyTorch beyond noise at 1 of 2 calls")
    document = json.loads((tmp_path / "a.json").read_text())
    assert [call["ratio"] for call in document["calls"]] == pytest.approx([0.8, 2.0])
    assert document["hardware"] and document["arguments"]["shapes"] == 2


def test_a_loss_that_is_not_found_again_does_not_count(timed_as: Callable[..., None], capsys: Any) -> None:
    timed_as(0.9, 1.0)
    assert audit.main(["--shapes", "1"]) == 0
    assert "at 0 of 1 calls" in capsys.readouterr().out


@pytest.mark.parametrize("argument", ["--shapes", "--threads"])
def test_misuse_of_the_audit_is_a_sentence(argument: str, capsys: Any) -> None:
    assert audit.main([argument, "0"]) == 2
    assert capsys.readouterr().err == f"{argument}: expected 1 or more, got 0.\n"
