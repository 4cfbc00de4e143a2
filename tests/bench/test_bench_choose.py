"""The command that writes the tables by which ``auto`` chooses, on a grid of a few small calls."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import one_thread, require_spec
from torch import nn

from bench.calibrate import choose
from bench.cases import Call, Case
from bench.measure import runner
from bench.measure.inline import Inline
from bench.measure.jobs import build, fast_job, pytorch_job
from bench.measure.process import WorkerFailed
from bench.measure.runner import Runner
from bench.report.record import Row
from cnnlstm_fast import BACKENDS, LSTMCell, _native
from cnnlstm_fast.recurrent.backends import measured
from cnnlstm_fast.recurrent.backends.measured import Gpu, Table
from cnnlstm_fast.recurrent.backends.this_machine import Machine, running

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")
ARGUMENTS = ["--dtype", "f32", "--directions", "1", "--seconds", "0.001"]
KINDS = {"float32 inference D=1", "float32 training D=1"}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, sizes in {"STEPS": (1, 3), "BATCHES": (2,), "HIDDEN": (16,), "WIDE_STEPS": (1,)}.items():
        monkeypatch.setattr(choose, name, sizes)
    monkeypatch.setattr(choose, "CELL_HIDDEN", ())
    monkeypatch.setattr(choose, "WIDE_BATCHES", (2,))
    monkeypatch.setattr(choose, "WIDE_HIDDEN", (16,))
    monkeypatch.setattr(choose, "LARGE_STEPS", ())
    monkeypatch.setattr(runner, "TURN", 1e-4)
    monkeypatch.setattr(runner, "busy_seconds", lambda: None)  # ignores other work on this machine
    monkeypatch.setattr(Runner, "_process", lambda self, name: Inline(name))
    with one_thread():
        yield


@pytest.fixture
def measured_calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls that are measured from now on."""
    seen: list[Call] = []
    original = Runner.measure

    def noted(self: Runner, call: Call) -> Row:
        seen.append(call)
        return original(self, call)

    monkeypatch.setattr(Runner, "measure", noted)
    return seen


def ending_after(count: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    original, done = Runner.measure, []

    def measure(self: Runner, call: Call) -> Row:
        if len(done) == count:
            raise error
        done.append(call)
        return original(self, call)

    monkeypatch.setattr(Runner, "measure", measure)


def run(path: Path, *arguments: str) -> int:
    return choose.main([*ARGUMENTS, "--out", str(path), *arguments])


def points(path: Path) -> int:
    return sum(len(kind.points) for kind in measured.load(path).kinds.values())


def test_it_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.json"
    assert run(path) == 0
    printed = capsys.readouterr().out
    assert "6 of 6 calls to measure, about " in printed and "of 3 points" in printed
    table = measured.load(path)
    assert table.machine == Machine(running().isa, 1) and table.kinds.keys() == KINDS
    for kind in table.kinds.values():
        assert [p[:4] for p in kind.points] == [(1, 2, 16, 16), (3, 2, 16, 16), (1, 2, 128, 16)]
        assert kind.made.keys() == {"source", "commit", "dirty", "torch", "cpu", "seconds"}
        assert (
            kind.made["source"].startswith("measurements of 20") and kind.made["torch"] == torch.__version__
        )
        for p in kind.points:
            assert 0 < p.low <= p.ratio <= p.high and p.ours_us > 0 and p.aten_us > 0
    assert json.loads(path.read_text())["columns"] == list(measured.Point._fields)
    assert all(len(line) < 400 for line in path.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()], ids=["Ctrl-C", "death"])
def test_what_was_measured_is_kept_and_not_measured_again(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tmp_path / "table.json"
    with monkeypatch.context() as patch:
        ending_after(2, error, patch)
        if isinstance(error, KeyboardInterrupt):
            assert run(path) == 130 and "interrupted" in capsys.readouterr().out
        else:
            with pytest.raises(MemoryError):
                run(path)
    assert points(path) == 2
    assert run(path) == 0 and "4 of 6 calls to measure" in capsys.readouterr().out
    assert points(path) == 6
    assert run(path) == 0 and "0 of 6 calls to measure" in capsys.readouterr().out


@pytest.mark.slow
def test_disturbed_calls_are_measured_anew(tmp_path: Path, measured_calls: list[Call], capsys: Any) -> None:
    path = tmp_path / "table.json"
    assert run(path) == 0
    document = json.loads(path.read_text())
    document["kinds"]["float32 training D=1"]["points"][0][-1] = 0.7
    path.write_text(json.dumps(document))
    measured_calls.clear()
    assert run(path) == 0
    assert [(c.case.T, c.case.I, c.mode) for c in measured_calls] == [(1, 16, "training")]
    assert points(path) == 6 and "Other work" not in capsys.readouterr().out


@pytest.mark.slow
def test_other_circumstances_begin_a_kind_anew_and_leave_the_others(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "table.json"
    assert run(path) == 0
    before = measured.load(path).kinds
    assert run(path, "--mode", "training", "--seconds", "0.002") == 0
    assert "3 of 3 calls to measure" in capsys.readouterr().out
    after = measured.load(path).kinds
    assert after["float32 inference D=1"] == before["float32 inference D=1"]
    assert after["float32 training D=1"].made["seconds"] == 0.002


def test_a_call_that_fails_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Broken(Inline):
        def request(self, seconds: float, /, **request: Any) -> dict[str, Any]:
            if request["do"] == "prepare" and request["case"]["T"] == 3 and "aten" in self.worker.peer.name:
                raise WorkerFailed("RuntimeError: out of sorts")
            return super().request(seconds, **request)

    monkeypatch.setattr(Runner, "_process", lambda self, name: Broken(name))
    path = tmp_path / "table.json"
    assert run(path) == 1 and points(path) == 4
    assert "T3-B2-I16-H16-D1 training f32: FAILED: RuntimeError: out of sorts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--threads", "0"], "--threads: expected 1 or more, got 0."),
        (["--seconds", "0"], "--seconds: expected more than 0, got 0."),
        (["--threads", "3"], "expected a table of"),
    ],
)
def test_misuse_is_a_sentence(arguments: list[str], sentence: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "table.json"
    choose._save(Table(Machine("portable", 2), {}), path)
    assert run(path, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_without_the_native_part_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(_native, "available", False)
    monkeypatch.setattr(_native, "reason", "it was left out")
    assert run(tmp_path / "table.json") == 2
    assert "it was left out" in capsys.readouterr().err


def test_the_whole_grid_has_every_kind_and_only_what_aten_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    calls = list(choose.grid())
    assert len({call.case.name + call.mode + call.dtype for call in calls}) == len(calls)
    per_kind = Counter(measured.kind(call.case.spec(call.mode, call.dtype)) for call in calls)
    cells = {kind: count for kind, count in per_kind.items() if kind.endswith("cell")}
    assert len(cells) == 4 and set(cells.values()) == {23}
    assert len(per_kind) == 12 and min((per_kind - Counter(cells)).values()) > 90
    assert all(choose.flop(call) <= choose.MOST_FLOP for call in calls)
    assert all(BACKENDS["aten"].supports(call.case.spec(call.mode, call.dtype)) is None for call in calls)
    assert 10 < sum(choose.expected_seconds(call, 0.25, 2e11) for call in calls) / 60 < 30


def test_the_grid_of_a_gpu_has_stacks_and_packed_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    calls = list(choose.gpu_grid())
    assert len({call.case.name + call.mode + call.dtype for call in calls}) == len(calls)
    per_kind = Counter(measured.kind(call.case.spec(call.mode, call.dtype, "cuda")) for call in calls)
    assert len(per_kind) == 48 and set(per_kind.values()) == {24}
    assert "bfloat16 training D=2 stacked packed" in per_kind
    assert all(BACKENDS["aten"].supports(c.case.spec(c.mode, c.dtype, "cuda")) is None for c in calls)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_gpu_kernels_are_measured_in_the_same_way(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU: the times do not matter here."""
    gpu = Gpu("A GPU that nobody has")
    for name, sizes in {"GPU_STEPS": (2,), "GPU_BATCHES": (1,), "GPU_HIDDEN": (16,)}.items():
        monkeypatch.setattr(choose, name, sizes)
    require_spec(backend, next(choose.gpu_grid()).case.spec("inference", "f32"))
    here = replace(choose.TARGETS[backend], device="cpu", machine=lambda: gpu, missing=lambda: None)
    monkeypatch.setitem(choose.TARGETS, backend, here)
    path = tmp_path / "table.json"
    assert choose.main([*ARGUMENTS, "--backend", backend, "--mode", "inference", "--out", str(path)]) == 0
    table = measured.load(path)
    assert table.machine == gpu and points(path) == 2
    assert table.kinds.keys() == {"float32 inference D=1", "float32 inference D=1 packed"}


@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_measure(backend: str, capsys: Any) -> None:
    assert choose.main(["--backend", backend]) == 2
    assert "There is nothing to measure: PyTorch" in capsys.readouterr().err


def test_a_backend_that_does_not_run_on_the_gpu_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(_native, "notes", {"cuda": True, "cuda_archs": ["80"]})
    assert choose.main(["--backend", "cuda"]) == 2
    assert "There is nothing to measure: it needs an NVIDIA GPU of compute" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_job_of_a_cell_is_a_loop_that_both_run_alike(mode: str) -> None:
    case = Case("cell", 3, 2, 5, 4, 1, False, "a test", states=True, cell=True)
    inputs = build(case, torch.float32)
    ours, theirs = (job(case, inputs, mode) for job in (partial(fast_job, backend="cpu"), pytorch_job))
    assert type(ours.module) is LSTMCell and type(theirs.module) is nn.LSTMCell
    torch.testing.assert_close(ours.results(), theirs.results())
    assert ours.results()["output"].shape == (3, 2, 4)
