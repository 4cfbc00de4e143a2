"""The runner and its workers: interleaved rounds, accuracy check, all kinds of failures, and the whole command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import one_thread, require_autocast

from bench import command
from bench.cases import CASES, Call, Case
from bench.measure import runner, worker
from bench.measure.candidates import candidate
from bench.measure.inline import Inline
from bench.measure.jobs import fast_job
from bench.measure.process import WorkerFailed, WorkerProcess
from bench.measure.runner import Plan, Runner
from bench.peers.base import Peer
from bench.report.record import OURS, PYTORCH, Row, load

SMALL = Case("small", 5, 3, 6, 16, 1, True, "test")


class Spoiling(Inline):
    """A worker in this process, whose results can be spoilt."""

    def __init__(self, peer: Peer, spoil: Callable[[Any], None] | None = None) -> None:
        self.worker, self.spoil = worker.Worker(peer), spoil
        self.turns = 0

    def request(self, seconds: float, /, **request: Any) -> dict[str, Any]:
        self.turns += request["do"] == "turn"
        found = super().request(seconds, **request)
        if self.spoil is not None and request.get("results"):
            results = torch.load(request["results"])
            self.spoil(results)
            torch.save(results, request["results"])
        return found


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few and short rounds, on one thread: on a busy machine the second one costs more than it gives."""
    monkeypatch.setattr(runner, "TURN", 1e-4)
    monkeypatch.setattr(runner, "MOST_ROUNDS", 8)
    with one_thread():
        yield


def measure(
    call: Call, names: tuple[str, ...] = (OURS, PYTORCH), spoil: Callable[[Any], None] | None = None
) -> Row:
    """With the results of ours spoilt."""

    def launch(name: str) -> Spoiling:
        return Spoiling(candidate(name), spoil if name == OURS else None)

    with Runner(Plan(names, seconds=1e-3), None, launch) as run:
        return run.measure(call)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "amp"])
@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        replace(SMALL, states=True),
        replace(SMALL, lengths=(0.4, 1.0), empty=1),
        replace(SMALL, lengths=(0.4, 1.0), packed=True),
        replace(SMALL, bidirectional=False, T=20, resets=0.1),
        replace(SMALL, layers=2, dropout=0.5),
        replace(SMALL, strided=True),
    ],
    ids=["plain", "states", "lengths", "packed", "resets", "dropout", "strided"],
)
def test_a_row(case: Case, mode: str, dtype: str) -> None:
    if dtype == "amp":
        require_autocast()
    row = measure(Call(case, mode, dtype))
    assert set(row.measured) == {OURS, PYTORCH}, {n: m.reason for n, m in row.candidates.items()}
    for m in row.measured.values():
        assert 0 < m.min_s <= m.median_s <= m.p80_s and len(m.rounds) >= 8 and m.calls >= 8
        assert m.setup_s > 0 and m.first_call_s > 0 and 0 <= m.error <= m.limit < 0.1
        assert m.peak_bytes is not None and m.precision == dtype
    assert row.others is not None
    assert row.vs_pytorch.low <= row.vs_pytorch.value <= row.vs_pytorch.high


def test_a_stream_pauses_before_every_call_and_the_pause_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: order.append(f"sleep {seconds}"))

    def timed(job: Callable[[], Any], synchronize: Callable[[], None]) -> float:
        order.append("call")
        return 1.0

    monkeypatch.setattr(worker, "timed", timed)
    serving = worker.Worker(candidate(OURS))
    serving.prepare(replace(SMALL, pause=0.5), "inference", "f32", "cpu", None)
    serving.turn(1e-4)
    assert len(order) >= 6 and order == ["sleep 0.5", "call"] * (len(order) // 2)


def test_what_pytorch_cannot_run_is_measured_alone() -> None:
    row = measure(Call(replace(SMALL, T=0, states=True), "inference", "f32"))
    assert set(row.measured) == {OURS} and row.candidates[PYTORCH].status == "unsupported"
    assert row.vs_pytorch is None


@pytest.mark.parametrize(
    ("spoil", "failure"),
    [
        (lambda found: found["output"].mul_(1.01), "output: error"),
        (lambda found: found["h_n"].fill_(float("nan")), "h_n: error inf"),
        (lambda found: found["gradient of weight_hh_l0"].add_(1.0), "gradient of weight_hh_l0: error"),
        (lambda found: found.pop("c_n"), "no result for c_n"),
    ],
)
def test_a_wrong_result_is_never_timed(spoil: Callable[[Any], None], failure: str) -> None:
    row = measure(Call(SMALL, "training", "f32"), spoil=spoil)
    assert row.ours.status == "failed" and failure in row.ours.reason
    assert row.ours.median_s is None and row.ours.rounds == [] and row.candidates[PYTORCH].rounds


def test_the_others_are_checked_where_pytorch_itself_is_wrong() -> None:
    require_autocast()

    def launch(name: str) -> Spoiling:
        wrong = name == PYTORCH
        return Spoiling(candidate(name), (lambda found: found["gradient of input"].neg_()) if wrong else None)

    with Runner(Plan(seconds=1e-3), None, launch) as run:
        row = run.measure(Call(SMALL, "training", "amp"))
    pytorch = row.candidates[PYTORCH]
    assert (
        pytorch.status == "failed" and "the oracle and PyTorch disagree: gradient of input" in pytorch.reason
    )
    assert row.ours.status == "measured" and row.ours.error <= row.ours.limit < 0.1 and row.vs_pytorch is None


def test_all_fails_where_the_oracle_and_pytorch_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bench.measure.runner.oracle_job",
        lambda case, inputs, mode: fast_job(
            case, replace(inputs, x=inputs.x + 1).to(torch.float64), mode, "reference"
        ),
    )
    row = measure(Call(SMALL, "inference", "f32"))
    assert {m.status for m in row.candidates.values()} == {"failed"}
    assert "the oracle and PyTorch disagree" in row.ours.reason


def test_candidates_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    processes: dict[str, list[int]] = {}

    class Noted(Spoiling):
        def request(self, seconds: float, /, **request: Any) -> dict[str, Any]:
            if request["do"] == "turn":
                order.append(self.worker.peer.name)
                processes.setdefault(self.worker.peer.name, []).append(id(self))
            return super().request(seconds, **request)

    names = (OURS, PYTORCH, f"{OURS}:reference")
    with Runner(Plan(names, seconds=1e-3), None, lambda name: Noted(candidate(name))) as run:
        run.measure(Call(SMALL, "inference", "f32"))
    rounds = [order[k : k + 3] for k in range(0, len(order), 3)]
    assert len(rounds) >= 8 and all(set(names) == set(r) for r in rounds)
    for seen in processes.values():
        assert seen[0] != seen[1] and seen[:2] * (len(seen) // 2) == seen, "its processes alternate"
    assert len({tuple(r) for r in rounds}) > 1


def test_long_calls_have_one_process_and_every_call_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LONG_CALL", 0.0)
    workers: list[Spoiling] = []

    def launch(name: str) -> Spoiling:
        workers.append(Spoiling(candidate(name)))
        return workers[-1]

    with Runner(Plan(seconds=1e-3), None, launch) as run:
        row = run.measure(Call(SMALL, "inference", "f32"))
        assert len(workers) == 2 and len(row.measured) == 2
        assert [w.worker.job for w in workers] == [None, None]


def test_missing_and_unsupported_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(candidate(PYTORCH), name="gone", modules=("no_such_module",), pip="gone-package")
    picky = replace(candidate(PYTORCH), name="picky", supports=lambda *call: "it has no such thing")
    monkeypatch.setitem(runner.candidate.__globals__["PEERS"], "gone", gone)
    monkeypatch.setitem(runner.candidate.__globals__["PEERS"], "picky", picky)
    with Runner(
        Plan((OURS, "gone", "picky"), seconds=1e-3), None, lambda name: Spoiling(candidate(name))
    ) as run:
        row = run.measure(Call(SMALL, "inference", "f32"))
        assert run.missing == {"gone": "no module no_such_module: pip install gone-package"}
    assert (
        row.candidates["gone"].status == "missing"
        and "pip install gone-package" in row.candidates["gone"].reason
    )
    assert row.candidates["picky"].reason == "it has no such thing"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"peer: expected one of cnnlstm_fast, .*pytorch.*, got 'tensorflow'"
    ):
        candidate("tensorflow")
    with pytest.raises(ValueError, match="got 'cnnlstm_fast:gpu'"):
        candidate("cnnlstm_fast:gpu")


@pytest.fixture
def process(tmp_path: Path) -> Any:
    started = WorkerProcess(OURS, 1, tmp_path / "log")
    yield started
    started.close()


def prepare(process: WorkerProcess, tmp_path: Path, case: Case = SMALL) -> dict[str, Any]:
    return process.request(
        60,
        do="prepare",
        case=asdict(case),
        mode="inference",
        dtype="f32",
        device="cpu",
        results=str(tmp_path / "found.pt"),
    )


def state(process: WorkerProcess) -> str:
    pid = process._process.pid
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_worker_process_rests_while_others_run(process: WorkerProcess, tmp_path: Path) -> None:
    prepared = prepare(process, tmp_path)
    assert prepared["call_s"] > 0 and torch.load(tmp_path / "found.pt")["output"].shape == (5, 3, 32)
    for _ in range(2):
        end = time.monotonic() + 5
        while state(process) != "T" and time.monotonic() < end:
            time.sleep(0.01)
        assert state(process) == "T"
        assert process.request(10, do="turn", seconds=0.001)["times"]


def test_a_worker_that_dies_is_named_and_replaced(process: WorkerProcess, tmp_path: Path) -> None:
    prepare(process, tmp_path)
    os.kill(process._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerFailed, match="its process ended with signal SIGKILL"):
        process.request(10, do="turn", seconds=0.001)
    with pytest.raises(WorkerFailed, match="AssertionError"):  # alive, and nothing is prepared
        process.request(60, do="turn", seconds=0.001)
    assert prepare(process, tmp_path)["call_s"] > 0


def test_a_worker_that_hangs_is_ended(process: WorkerProcess, tmp_path: Path) -> None:
    prepare(process, tmp_path)
    with pytest.raises(WorkerFailed, match="no answer within 0 s"):
        process.request(0.05, do="turn", seconds=5.0)
    assert process._process is None


def test_an_error_is_a_sentence(process: WorkerProcess, tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match=r"^\w+Error: \S"):
        prepare(process, tmp_path, replace(SMALL, proj_size=99))


ARGUMENTS = [
    "--filter",
    "stream-step inference f32",
    "--peers",
    PYTORCH,
    "--seconds",
    "0.05",
    "--threads",
    "1",
]


def run_command(*arguments: str) -> int:
    return command.main([*ARGUMENTS, *arguments])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    assert run_command("--json", str(path), "--report", str(tmp_path / "page")) == 0
    printed = capsys.readouterr().out
    assert "stream-step inference f32" in printed and "geometric mean" in printed
    (row,) = load(path).rows
    assert set(row.measured) == {OURS, PYTORCH} and 0.0 < row.share < 1.0
    assert "stream-step" in (tmp_path / "page" / "index.html").read_text()
    assert run_command("--compare", str(path)) in (0, 1)
    assert "compared with" in capsys.readouterr().out


def test_rows_of_one_mode_and_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--suite", "model", "--mode", "training", "--dtype", "amp", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 17 and all(" training amp: " in line for line in lines)
    assert command.main(["--suite", "encoder", "--mode", "inference", "--dtype", "f32", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 13


def test_a_long_setup_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []

    def launch(name: str) -> Spoiling:
        launched.append(name)
        return Spoiling(candidate(name))

    monkeypatch.setattr(runner, "LONG_SETUP", 0.0)
    with Runner(Plan(seconds=1e-3), None, launch) as run:
        assert len(run.measure(Call(SMALL, "inference", "f32")).measured) == 2
    assert launched == [OURS, PYTORCH]


def test_a_whole_model_is_measured() -> None:
    tiny = replace(CASES["model-forecaster-b1"], T=4, B=2)
    for mode in ("inference", "training"):
        row = measure(Call(tiny, mode, "f32"))
        assert set(row.measured) == {OURS, PYTORCH}, {n: m.reason for n, m in row.candidates.items()}
        assert all(m.ready_s is not None and m.error <= m.limit for m in row.measured.values())


def test_what_a_killed_run_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SAVED_EVERY", -1.0)
    measured, path = runner.Runner.measure, tmp_path / "results.json"

    def once(self: Runner, call: Call) -> Row:
        if path.exists():
            raise MemoryError
        return measured(self, call)

    monkeypatch.setattr(runner.Runner, "measure", once)
    with pytest.raises(MemoryError):
        run_command("--filter", "stream-step inference", "--json", str(path))
    assert len(load(path).rows) == 1 and load(path).notes == ["unfinished: 1 of 2 rows"]


@pytest.mark.slow
@pytest.mark.serial
def test_the_command_finds_a_slow_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path = tmp_path / "results.json"
    assert run_command("--json", str(path)) == 0
    quick = runner._with_times

    def slowed(measurement: Any, rounds: list[list[float]]) -> Any:
        factor = 5.0 if measurement.candidate == OURS else 1.0
        return quick(measurement, [[factor * t for t in taken] for taken in rounds])

    monkeypatch.setattr(runner, "_with_times", slowed)
    assert run_command("--compare", str(path)) == 1
    assert "1 of 1 rows became slower" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_fails_where_a_result_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    right = runner.accuracy_errors
    monkeypatch.setattr(
        runner,
        "accuracy_errors",
        lambda found, *rest: right({what: result * 1.01 for what, result in found.items()}, *rest),
    )
    path = tmp_path / "results.json"
    assert run_command("--json", str(path)) == 1
    assert "FAILED stream-step inference f32" in capsys.readouterr().out
    assert load(path).rows[0].ours.status == "failed"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--filter", "nothing"], "--filter 'nothing': no such row in the suite quick"),
        (["--suite", "cpu", "--mode", "training"], "--mode 'training': no such row in the suite cpu"),
        (["--peers", "tensorflow"], "peer: expected one of"),
        (["--budget", "0"], "--budget: expected more than 0, got 0"),
        (["--shape", "26,1,8,8", "--filter", "f32"], "--shape: expected no --filter"),
        (["--shape", "26,1"], "--shape: expected T,B,I,H"),
        (["--threads", "0"], "--threads: expected 1 or more, got 0"),
        (["--seconds", "-1"], "--seconds: expected more than 0, got -1"),
        (["--compare", "/no/such.json"], "No such file"),
        (["--json", "/etc/passwd/x.json"], "not a writable folder"),
    ],
)
def test_misuse_is_a_sentence(arguments: list[str], sentence: str, capsys: Any) -> None:
    assert command.main(arguments) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(400)  # the first row waits for whatever else runs on the machine
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "bench",
            "--filter",
            "inference f32",
            "--peers",
            PYTORCH,
            "--seconds",
            "0.1",
            "--json",
            str(path),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        # what a shell starts in the background ignores Ctrl-C, and hands that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert run.stdout is not None
    for line in run.stdout:
        if " inference f32: " in line:
            break
    run.send_signal(signal.SIGINT)
    rest, _ = run.communicate(timeout=120)
    assert run.returncode == 130 and "interrupted after 1 of" in rest, rest
    found = load(path)
    assert len(found.rows) == 1 and found.notes[0] == "interrupted after 1 of 6 rows"


@pytest.mark.serial
def test_other_work_on_the_machine_is_seen(tmp_path: Path) -> None:
    spin = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        with Runner(Plan((OURS, PYTORCH), seconds=0.5), None) as run:
            assert run.measure(Call(SMALL, "inference", "f32")).busy
    finally:
        for process in spin:
            process.kill()
            process.wait()


def test_a_budget_drops_rows_and_says_which(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "results.json"
    assert command.main(["--filter", "f32", "--peers", PYTORCH, "--budget", "0.5", "--json", str(path)]) == 0
    (note,) = load(path).notes
    assert note.startswith("dropped for lack of time: ") and "train-text training f32" in note
    assert "dropped for lack of time" in capsys.readouterr().out


def test_gpu_check_says_where_there_is_no_gpu(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "bench" / "gpu_check.sh"
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    out = tmp_path / "out"
    done = subprocess.run(["bash", script, out], env=environment, capture_output=True, text=True)
    assert done.returncode == 3 and "sees no NVIDIA GPU" in done.stderr and not out.exists()
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
    assert done.returncode not in (0, 3) and "usage: bench/gpu_check.sh OUTDIR" in done.stderr
    done = subprocess.run(["bash", script, out, "--fast"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr
