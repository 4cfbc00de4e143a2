"""The measurement at first use, on a machine without a table: when it is made, what it decides, what is kept of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_dispatch import SPEC
from torch.utils._python_dispatch import TorchDispatchMode

import cnnlstm_fast
from cnnlstm_fast import _native, other_work
from cnnlstm_fast.recurrent import dispatch
from cnnlstm_fast.recurrent.backends import calls_here, first_use, measured, this_machine
from cnnlstm_fast.recurrent.backends import probe as probe_module
from cnnlstm_fast.recurrent.backends.first_use import Allowance
from cnnlstm_fast.recurrent.backends.measured import Kind, Point, Table
from cnnlstm_fast.recurrent.backends.probe import (
    LEAST_T,
    LONG_CALL,
    LOOP,
    expected_seconds,
    measured_sizes,
    probe,
)
from cnnlstm_fast.recurrent.backends.this_machine import Identity, identity, running
from cnnlstm_fast.recurrent.canonical import LSTMSpec
from cnnlstm_fast.timing import Ratio

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")
CPU = {"name": "A processor that nobody has", "cache_bytes": {"l2": 1 << 20}, "cores": 2}
AUTO = SPEC._replace(T=48, B=24, input_size=200, hidden_size=192)


class Probe:
    """Stands in the place of a measurement: ``ratio`` is what it finds, ``asked`` what it was asked for."""

    def __init__(self) -> None:
        self.ratio = 1.4
        self.asked: list[LSTMSpec] = []
        self.limits: list[float] = []
        self.during: Callable[[], None] = lambda: None

    def __call__(self, spec: LSTMSpec, limit: float) -> Point | None:
        self.asked.append(spec)
        self.limits.append(limit)
        self.during()
        T, _ = measured_sizes(spec)
        sizes = (T, spec.B or 0, spec.input_size, spec.hidden_size)
        return Point(*sizes, 1.0, self.ratio, self.ratio, 0.99 * self.ratio, 1.01 * self.ratio, None)


def forget() -> None:
    """What a new process does not know."""
    calls_here._known.clear()
    measured.calibrated.cache_clear()
    measured._warn_of_damage.cache_clear()
    identity.cache_clear()
    dispatch.cached_plan.cache_clear()
    first_use._unwritten.clear()
    first_use.renew()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a table of its own, and its empty cache."""
    monkeypatch.delenv("CNNLSTM_CALIBRATE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(this_machine, "_cpu", lambda: CPU)
    monkeypatch.setattr(first_use, "allowance", first_use.allowance)  # restored afterwards
    forget()
    yield
    forget()


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Probe:
    found = Probe()
    monkeypatch.setattr(first_use, "probe", found)
    return found


def here() -> Identity:
    return identity(running())


def file() -> Path:
    return here().file("calls")


def chosen(spec: LSTMSpec = AUTO) -> str:
    return dispatch.select(spec).backend.name


# what it decides


def test_aten_runs_what_it_was_measured_to_run_faster(probed: Probe) -> None:
    probed.ratio = 0.74
    choice = dispatch.select(AUTO)
    assert choice.backend.name == "aten" and probed.asked == [AUTO]
    assert choice.rejected["cpu"] == (
        "aten is 1.35 times as fast, measured on this machine at T=48 B=24 I=200 H=192"
    )


def test_explain_tells_of_the_measurement_that_the_call_made(probed: Probe) -> None:
    text = cnnlstm_fast.explain(cnnlstm_fast.LSTM(32, 64, 3), torch.zeros(9, 2, 32))
    assert (
        "backend:  cpu: 1.40 times as fast as aten, measured on this machine at T=9 B=2 I=32 H=64 L=2" in text
    )
    assert len(probed.asked) == 1


def test_a_gain_within_noise_changes_nothing(probed: Probe) -> None:
    probed.ratio = 0.98
    assert chosen() == "cpu"


def test_a_machine_with_a_table_of_its_own_measures_nothing(
    probed: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    (table,) = measured.shipped(measured.TABLES / "cpu")
    name = table.kinds["float32 inference D=1"].made["cpu"]
    monkeypatch.setattr(this_machine, "running", lambda: table.machine)
    assert "nearest" not in dispatch.select(AUTO).reason and probed.asked
    probed.asked.clear()
    monkeypatch.setattr(this_machine, "_cpu", lambda: CPU | {"name": name})
    forget()
    assert f"({table.machine})" in dispatch.select(AUTO).reason and probed.asked == []


def test_a_table_by_calibrate_decides_once_it_has_enough_points(probed: Probe) -> None:
    row = (1.0, 0.5, 0.5, 0.5, 0.5, None)
    points = [Point(48, 24, 200, 192 + k, *row) for k in range(measured.LEAST_POINTS)]

    def write(points: list[Point]) -> None:
        kinds = {"float32 inference D=1": Kind({"source": "calibrate"}, points)}
        here().file("table").parent.mkdir(parents=True, exist_ok=True)
        here().file("table").write_text(measured.to_text(Table(running(), kinds)))
        forget()

    write(points[1:])
    assert chosen() == "cpu" and len(probed.asked) == 1
    write(points)
    assert chosen() == "cpu", "this very call was measured"
    choice = dispatch.select(AUTO._replace(hidden_size=999))
    assert choice.backend.name == "aten" and len(probed.asked) == 1
    assert "by calibrate" in choice.rejected["cpu"] and "another processor" not in choice.rejected["cpu"]


@pytest.mark.parametrize(
    "other",
    [
        {"packed": True},
        {"proj_size": 8},
        {"lengths": True},
        {"T": 0},
        {"B": 0},
        {"T": None, "B": None, "tracing": True},
        {"hidden_size": 4096, "input_size": 4096},
        {"B": 4096, "hidden_size": 1024, "input_size": 1024, "grad": True},
        {"T": 1, "cell": True, "autocast": True},
    ],
    ids=str,
)
def test_calls_that_aten_cannot_win_or_that_are_large_are_not_measured(
    other: dict[str, Any], probed: Probe
) -> None:
    dispatch.select(AUTO._replace(**other))
    assert probed.asked == []


def test_long_calls_are_measured_with_fewer_steps() -> None:
    long = AUTO._replace(T=5000, B=64, grad=True)
    T, _ = measured_sizes(long)
    assert LEAST_T <= T < 500 and expected_seconds(long) <= LONG_CALL
    assert measured_sizes(long._replace(T=4000))[0] == T, "one measurement tells of all of them"
    assert measured_sizes(AUTO) == (48, 1) and measured_sizes(AUTO._replace(num_layers=4)) == (48, 2)
    assert measured_sizes(AUTO._replace(T=1, cell=True)) == (LOOP, 1)


# what is kept


def test_a_call_is_measured_once_on_a_machine(probed: Probe) -> None:
    for ratio in (0.5, 2.0):
        probed.ratio = ratio  # only the first one counts
        assert chosen() == "aten"
        forget()
    assert len(probed.asked) == 1


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ((48, 24), (96, 13), True),
        ((48, 24), (97, 24), False),
        ((48, 24), (48, 11), False),
        ((2, 24), (1, 24), False),
        ((48, 2), (48, 1), False),
    ],
)
def test_a_measurement_tells_of_calls_of_half_to_twice_the_size(
    first: tuple[int, int], second: tuple[int, int], alike: bool, probed: Probe
) -> None:
    for T, B in (first, second):
        chosen(AUTO._replace(T=T, B=B))
    assert len(probed.asked) == 2 - alike


@pytest.mark.parametrize(
    "other",
    [
        {"hidden_size": 193},
        {"input_size": 201},
        {"grad": True},
        {"dtype": torch.bfloat16},
        {"bidirectional": True},
        {"num_layers": 2},
        {"T": 1, "cell": True},
    ],
    ids=str,
)
def test_a_measurement_tells_nothing_of_other_calls(other: dict[str, Any], probed: Probe) -> None:
    chosen()
    chosen(AUTO._replace(**other))
    assert len(probed.asked) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"name": "Another one"},
        {"cores": 3},
        {"cache_bytes": {"l2": 2 << 20}},
    ],
    ids=str,
)
def test_what_another_processor_did_is_not_used(
    other: dict[str, Any], probed: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen()
    before = file()
    forget()
    monkeypatch.setattr(this_machine, "_cpu", lambda: CPU | other)
    assert file() != before
    chosen()
    assert len(probed.asked) == 2
    file().write_text(before.read_text())  # also where its file has the name of this one's
    forget()
    chosen()
    assert len(probed.asked) == 3


def test_the_identity_has_the_threads_and_the_versions() -> None:
    fields = here()
    for other in (
        fields._replace(threads=7),
        fields._replace(torch="2.99"),
        fields._replace(kernels="other"),
        fields._replace(isa="portable"),
    ):
        assert other.file("calls") != fields.file("calls")
    assert fields.torch == torch.__version__ and len(fields.kernels) == 16


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machine": 1}', "\0"])
def test_a_damaged_file_is_ignored_with_one_warning_and_replaced(text: str, probed: Probe) -> None:
    file().parent.mkdir(parents=True)
    file().write_text(text)
    with pytest.warns(UserWarning, match="is ignored and measured anew") as warned:
        chosen()
        chosen(AUTO._replace(hidden_size=64))
    assert len(warned) == 1
    assert len(measured.load(file()).kinds["float32 inference D=1"].points) == 2


def test_what_another_process_wrote_meanwhile_is_kept(probed: Probe) -> None:
    chosen()
    forget()
    calls_here._points(here())  # this process has read the file ...
    mine = dict(calls_here._known)
    forget()
    chosen(AUTO._replace(hidden_size=64))  # ... and then another one writes it
    calls_here._known.clear()
    calls_here._known.update(mine)
    chosen(AUTO._replace(hidden_size=128))
    sizes = {point.H for point in measured.load(file()).kinds["float32 inference D=1"].points}
    assert sizes == {192, 64, 128}


def test_readers_never_see_half_a_file() -> None:
    identity_, done = here(), threading.Event()
    calls_here.add(identity_, "a", Point(1, 1, 1, 1, 1.0, 1.0, 1.0, 1.0, 1.0, None))

    def write(kind: str) -> None:
        for k in range(40):
            calls_here.add(identity_, kind, Point(1, 1, 1, k, 1.0, 1.0, 1.0, 1.0, 1.0, None))
        done.set()

    writers = [threading.Thread(target=write, args=(kind,)) for kind in ("b", "c")]
    for writer in writers:
        writer.start()
    while not done.is_set():
        measured.load(file())  # raises
    for writer in writers:
        writer.join()
    measured.load(file())
    assert [path.name for path in file().parent.iterdir()] == [file().name]


def test_without_a_place_to_write_the_call_runs_and_explain_says_so(
    probed: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no folder"))
    probed.ratio = 0.5
    for _ in range(2):
        assert "not kept on disk: Not a directory" in dispatch.select(AUTO).rejected["cpu"]
    assert len(probed.asked) == 1


def test_without_a_home_directory_the_call_runs(probed: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert "not kept on disk: Could not determine" in dispatch.select(AUTO).reason


# when it is made


class Clock:
    """A time that passes only in fake measurements and where a test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(first_use, "time", found)
    first_use.renew()
    return found


def test_measurements_take_a_second_at_once_and_five_in_all(probed: Probe, clock: Clock) -> None:
    sizes = iter(range(1, 10**6))

    def take() -> None:
        clock.now += 0.3

    def measured_of(count: int) -> int:
        before = len(probed.asked)
        for _ in range(count):
            chosen(AUTO._replace(hidden_size=next(sizes)))
        return len(probed.asked) - before

    probed.during = take
    assert measured_of(20) in (3, 4) and sum(probed.limits) < 3 and max(probed.limits) <= 1.0
    assert measured_of(20) == 0
    clock.now += 2.0
    assert measured_of(20) == 1
    clock.now += 1e6
    assert measured_of(20) in (3, 4), "no more than a second, however long ago"
    for _ in range(100):
        clock.now += 1e6
        measured_of(20)
    assert 16 <= len(probed.asked) <= 5.0 / 0.3 + 1


def test_a_measurement_that_fails_is_told_and_the_tables_decide(
    probed: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(spec: LSTMSpec, limit: float) -> None:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(first_use, "probe", fail)
    with pytest.warns(UserWarning, match="could not be measured.*could not create a primitive"):
        assert (
            "nearest" in dispatch.select(AUTO).reason or "another processor" in dispatch.select(AUTO).reason
        )
    assert not file().exists()


class Quiet(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def _in_backward(act: Callable[[], None]) -> None:
    class Ask(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            act()
            return grad

    Ask.apply(torch.ones(1, requires_grad=True)).backward()


def _with(context: Callable[[], Any]) -> Callable[[Callable[[], None]], None]:
    def run(act: Callable[[], None]) -> None:
        with context():
            act()

    return run


PLACES = {
    "a dispatch mode": _with(Quiet),
    "hooks of saved tensors": _with(
        lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    ),
    "anomaly detection": _with(torch.autograd.detect_anomaly),
    "a backward pass": _in_backward,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_measured_inside_of(place: str, probed: Probe) -> None:
    probed.ratio = 0.5
    PLACES[place](chosen)
    assert chosen() == "cpu" and probed.asked == [], "what was chosen once stays, as the cached plan does"
    forget()
    assert chosen() == "aten" and len(probed.asked) == 1
    PLACES[place](lambda: [chosen()] == ["aten"] or pytest.fail("what is known counts there, too"))


def test_nothing_is_measured_in_a_forked_child(probed: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "_process", -1)
    chosen()
    assert probed.asked == []


def test_it_can_be_turned_off_with_all_that_was_measured(
    probed: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed.ratio = 0.5
    assert chosen() == "aten"
    torch.use_deterministic_algorithms(True)
    try:
        assert chosen() == "cpu"
    finally:
        torch.use_deterministic_algorithms(False)
    assert chosen() == "aten"
    monkeypatch.setenv("CNNLSTM_CALIBRATE", "0")
    assert chosen() == "cpu"
    chosen(AUTO._replace(hidden_size=64))
    assert len(probed.asked) == 1


def test_two_threads_that_ask_at_once_measure_once(probed: Probe) -> None:
    begun, go = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert go.wait(10)

    probed.ratio, probed.during = 0.5, wait
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(chosen())) for _ in range(2)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert found == ["aten", "aten"] and len(probed.asked) == 1


def test_a_thread_does_not_wait_for_long(probed: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "PATIENCE", 0.01)
    with first_use._lock:
        assert chosen() == "cpu" and probed.asked == []
    chosen(AUTO._replace(hidden_size=64))
    assert len(probed.asked) == 1


# the measurement itself


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"grad": True},
        {"dtype": torch.bfloat16, "bidirectional": True, "num_layers": 3},
        {"grad": True, "bias": False, "num_layers": 2, "bidirectional": True},
        {"cell": True, "T": 1},
        {"cell": True, "T": 1, "grad": True, "bias": False},
    ],
    ids=str,
)
def test_the_probe_measures_and_disturbs_nothing(
    other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    spec = SPEC._replace(**other)
    before = torch.get_rng_state()
    with Seen() as seen, torch.set_grad_enabled(not spec.grad), torch.autocast("cpu", torch.bfloat16):
        seen.calls = 0
        monkeypatch.setattr(
            probe_module, "_is_disturbed", lambda *found: False
        )  # however busy this machine is
        point = probe(spec, 100.0)
        assert seen.calls == 0
        assert torch.is_grad_enabled() != spec.grad and torch.is_autocast_enabled("cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert point is not None and point[:4] == (measured_sizes(spec)[0], 2, 4, 8)
    assert point.ours_us and point.aten_us and 0 < point.low <= point.ratio <= point.high
    assert Point(*json.loads(json.dumps(point))) == point


def test_a_probe_without_time_gives_nothing() -> None:
    assert probe(SPEC, 0.0) is None


@pytest.mark.parametrize(
    ("low", "high", "others", "disturbed"),
    [
        (1.0, 1.2, 0.0, False),
        (1.0, 1.4, 0.0, True),
        (10.5, 312.9, 0.0, True),
        (1.0, 1.2, 2.1, False),  # two cores are free
        (1.0, 1.2, 2.4, True),
    ],
)
def test_a_disturbed_measurement_is_not_kept(
    low: float, high: float, others: float, disturbed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Others:
        def seconds(self) -> tuple[float, float]:
            return others, 1.0

    monkeypatch.setattr(probe_module.os, "cpu_count", lambda: torch.get_num_threads() + 2)
    monkeypatch.setattr(probe_module, "OtherWork", Others)
    monkeypatch.setattr(probe_module, "paired_ratio", lambda *times: Ratio((low + high) / 2, low, high))
    assert (probe(SPEC, 100.0) is None) == disturbed


def test_the_work_of_other_processes_is_what_this_one_did_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: now[1])
    now = [0.0, 0.0, 0.0]
    monkeypatch.setattr(other_work, "time", clock)
    monkeypatch.setattr(other_work, "busy_seconds", lambda: now[2])
    watched = other_work.OtherWork()
    now[:] = [2.0, 1.0, 4.0]
    assert watched.seconds() == (3.0, 2.0)
    monkeypatch.setattr(other_work, "busy_seconds", lambda: None)
    assert watched.seconds() == (0.0, 2.0)


def test_a_real_first_call_measures_and_gives_the_right_result(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("AT_ONCE", "IN_ALL"):
        monkeypatch.setattr(Allowance, limit, 100.0)  # however busy this machine is
    monkeypatch.setattr(probe_module, "_is_disturbed", lambda *found: False)
    first_use.renew()
    layer = cnnlstm_fast.LSTM(8, 16)
    exact = torch.nn.LSTM(8, 16)
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(5, 3, 8)
    torch.testing.assert_close(layer(x)[0], exact(x)[0])
    assert list(measured.load(file()).kinds) == ["float32 training D=1"]
