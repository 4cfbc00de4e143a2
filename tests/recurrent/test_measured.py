"""The tables by which ``auto`` chooses between a backend and ``aten``, and what is read from them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from test_dispatch import SPEC

import cnnlstm_fast
from cnnlstm_fast import _native
from cnnlstm_fast.recurrent import dispatch
from cnnlstm_fast.recurrent.backends import cpu, measured, this_machine
from cnnlstm_fast.recurrent.backends import triton as triton_backend
from cnnlstm_fast.recurrent.backends.measured import Gpu, Kind, Point
from cnnlstm_fast.recurrent.backends.this_machine import ISAS, Machine
from cnnlstm_fast.recurrent.canonical import LSTMSpec

KINDS = {
    f"{dtype} {mode} D={D}"
    for dtype, mode, D in itertools.product(("float32", "bfloat16"), ("inference", "training"), (1, 2))
}
HERE, CPU = Machine("avx2", 2), "A processor"
needs_native = pytest.mark.skipif(not _native.available, reason="needs the native part")


def point(T: int, B: int, H: int, ratio: float, noise: float = 1.0, I: int = 0) -> Point:
    return Point(T, B, I or H, H, None, None, ratio, ratio / noise, ratio * noise, None)


def ratio(points: list[Point], T: int, B: int, H: int, I: int = 0) -> float:
    return Kind({}, points).estimate(T, B, I or H, H).ratio


GRID = [
    point(T, B, H, 2.0 ** (T > 1) * 3.0 ** (B > 1) * 5.0 ** (H > 16))
    for T, B, H in itertools.product((1, 4), (1, 16), (16, 256))
]


@pytest.mark.parametrize("at", GRID, ids=lambda p: f"T{p.T}-B{p.B}-H{p.H}")
def test_a_measured_point_is_read_as_it_is(at: Point) -> None:
    assert ratio(GRID, at.T, at.B, at.H) == pytest.approx(at.ratio)


def test_between_points_the_logarithm_is_interpolated() -> None:
    assert ratio(GRID, 2, 1, 16) == pytest.approx(math.sqrt(2))
    assert ratio(GRID, 1, 2, 16) == pytest.approx(3**0.25)
    assert ratio(GRID, 2, 4, 64) == pytest.approx(math.sqrt(2 * 3 * 5))


def test_beyond_the_grid_the_outermost_point_counts() -> None:
    assert ratio(GRID, 1000, 1, 16) == pytest.approx(2)
    assert ratio(GRID, 1000, 1000, 5000) == pytest.approx(30)
    assert ratio(GRID, 1, 1, 2) == ratio(GRID, 0, 0, 16) == pytest.approx(1)
    assert ratio(GRID, 1, 1, 16, I=1000) == pytest.approx(1)


def test_points_may_be_missing_from_the_grid() -> None:
    ragged = [p for p in GRID if (p.T, p.B, p.H) != (4, 16, 256)]
    assert ratio(ragged, 4, 16, 256) == pytest.approx(15)  # as at T=1
    assert ratio(ragged, 4, 16, 64) == pytest.approx(math.sqrt(6 * 15))


def test_wide_inputs_have_points_of_their_own() -> None:
    wide = [*GRID, point(1, 1, 16, 16.0, I=16 * 16)]
    assert ratio(wide, 1, 1, 16, I=16 * 16) == pytest.approx(16)
    assert ratio(wide, 1, 1, 16, I=4 * 16) == pytest.approx(4)


def test_the_closest_point_is_found_by_the_logarithms() -> None:
    kind = Kind({}, GRID)
    for call, size in (((3, 2, 16, 16), (4, 1, 16, 16)), ((99, 5, 200, 200), (4, 16, 256, 256))):
        assert kind.closest(*call)[:4] == size


@pytest.mark.parametrize(
    ("value", "noise", "slow"), [(0.9, 1.05, True), (0.9, 1.2, False), (0.98, 1.0, False), (2.0, 1.0, False)]
)
def test_slow_is_what_is_so_beyond_noise(value: float, noise: float, slow: bool) -> None:
    assert Kind({}, [point(1, 1, 16, value, noise)]).estimate(1, 1, 16, 16).slow == slow


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes a table in the place of those of the package, for a machine that has two threads and AVX2."""

    def plant(
        machine: Machine | Gpu = HERE, backend: str = "cpu", of_cpu: str = CPU, **kinds: list[Point]
    ) -> None:
        document = {
            "machine": machine._asdict(),
            "kinds": {
                name.replace("_", " ").replace("D", "D="): {
                    "made": {"source": "a test", "cpu": of_cpu},
                    "points": points,
                }
                for name, points in kinds.items()
            },
        }
        path = tmp_path / backend / machine.file
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document))
        measured.shipped.cache_clear()

    monkeypatch.setattr(measured, "TABLES", tmp_path)
    monkeypatch.setattr(this_machine, "running", lambda: HERE)
    monkeypatch.setattr(this_machine, "cpu_name", lambda: CPU)
    measured.shipped.cache_clear()
    yield plant
    measured.shipped.cache_clear()


def call(T: int | None, B: int | None, H: int, **other: object) -> LSTMSpec:
    return SPEC._replace(T=T, B=B, input_size=H, hidden_size=H, **other)


@needs_native
def test_auto_takes_aten_where_it_was_faster_and_only_there(planted: Callable[..., None]) -> None:
    sizes = list(itertools.product((1, 8), (1, 16), (32, 128)))
    slow = (8, 16, 32)
    planted(float32_inference_D1=[point(*size, 0.5 if size == slow else 1.5) for size in sizes])
    for size in sizes:
        choice = dispatch.select(call(*size))
        assert choice.backend.name == ("aten" if size == slow else "cpu"), size
    reason = dispatch.select(call(*slow)).rejected["cpu"]
    assert reason == "aten is 2.00 times as fast near T=8 B=16 I=32 H=32 by a test (avx2, 2 threads)"
    assert "1.50 times as fast as aten near T=1 B=1 I=32" in dispatch.select(call(1, 1, 32)).reason
    for other in (
        {"bidirectional": True},  # no such kind in the table
        {"grad": True},
        {"dtype": torch.bfloat16},
        {"packed": True},  # not what was measured
        {"proj_size": 8},
        {"lengths": True},  # nothing that aten could do
        {"T": None, "B": None, "tracing": True},  # unknown sizes
    ):
        choice = dispatch.select(call(*slow)._replace(**other))
        assert choice.backend.name == "cpu" and "the first in order" in choice.reason, other


@needs_native
def test_explain_tells_of_the_measurement(planted: Callable[..., None]) -> None:
    planted(float32_inference_D1=[point(1, 1, 16, 0.5), point(64, 1, 16, 2.0)])
    layer = cnnlstm_fast.LSTM(16, 16)
    rejected = cnnlstm_fast.explain(layer, torch.zeros(1, 1, 16))
    assert "rejected: cpu: aten is 2.00 times as fast near T=1 B=1" in rejected, rejected
    taken = cnnlstm_fast.explain(layer, torch.zeros(64, 1, 16))
    assert "2.00 times as fast as aten near T=64 B=1" in taken and "rejected: cpu" not in taken, taken


@needs_native
def test_without_a_table_the_first_in_order_is_taken(planted: Callable[..., None]) -> None:
    assert dispatch.select(call(8, 16, 32)).backend.name == "cpu"


@needs_native
def test_a_table_of_another_processor_is_named(planted: Callable[..., None]) -> None:
    planted(of_cpu="Some other one", float32_inference_D1=[point(1, 1, 16, 0.5)])
    reason = dispatch.select(call(1, 1, 16)).rejected["cpu"]
    assert reason.endswith("(avx2, 2 threads of another processor, Some other one)")


@needs_native
def test_a_table_of_another_machine_is_named(planted: Callable[..., None]) -> None:
    planted(Machine("portable", 2), float32_inference_D1=[point(1, 1, 16, 0.5)])
    reason = dispatch.select(call(1, 1, 16)).rejected["cpu"]
    assert reason.endswith("(portable, 2 threads, the nearest to this machine's avx2, 2 threads)")


def test_the_nearest_table_has_the_nearest_instructions_and_then_threads(
    planted: Callable[..., None],
) -> None:
    machines = [Machine("avx2", 1), Machine("avx2", 8), Machine("avx512_amx", 2)]
    for machine in machines:
        planted(machine, float32_inference_D1=[point(1, 1, 16, 1.5)])
    planted(Machine("avx2", 3), float32_training_D1=[point(1, 1, 16, 1.5)])  # without such calls
    for asked, expected in (
        (Machine("avx2", 2), 0),
        (Machine("avx2", 4), 1),
        (Machine("portable", 64), 1),
        (Machine("avx512_amx", 64), 2),
    ):
        table = measured.nearest("cpu", asked, "float32 inference D=1")
        assert table is not None and table.machine == machines[expected], asked


GPU = Gpu("A GPU that nobody has")


def on_gpu(T: int, B: int, H: int, **other: object) -> LSTMSpec:
    return call(T, B, H, device="cuda", **other)


@pytest.fixture
def gpu(planted: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plants tables of a GPU, which the backend believes to be there."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: GPU.gpu)
    return lambda machine=GPU, **kinds: planted(machine, "triton", **kinds)


def test_on_a_gpu_the_kernels_are_taken_where_they_were_measured_to_be_faster(
    gpu: Callable[..., None],
) -> None:
    speed = triton_backend.BACKEND.measured_speed
    gpu(float32_inference_D1=[point(1, 1, 64, 0.5), point(64, 1, 64, 2.0)])
    assert speed(on_gpu(1, 1, 64)).slow and not speed(on_gpu(64, 1, 64)).slow
    assert speed(on_gpu(64, 1, 64)).reason.startswith("2.00 times as fast as aten near T=64 B=1")
    for other in (
        {"num_layers": 2},  # cuDNN runs layers at the same time: another kind
        {"packed": True},
        {"grad": True},
        {"dtype": torch.bfloat16},
        {"T": None, "B": None, "tracing": True},
        {"proj_size": 8},
    ):
        unknown = speed(on_gpu(64, 1, 64)._replace(**other))
        assert unknown.slow and unknown.reason.startswith("nothing is known"), other
    assert speed(on_gpu(64, 1, 64, lengths=True)) is None, "nothing that aten could do"


def test_on_a_gpu_stacks_and_packed_sequences_are_kinds_of_their_own(gpu: Callable[..., None]) -> None:
    gpu(bfloat16_training_D2_stacked_packed=[point(1, 1, 64, 3.0)])
    spec = on_gpu(1, 1, 64, num_layers=4, packed=True, grad=True, bidirectional=True)
    assert not triton_backend.BACKEND.measured_speed(spec._replace(dtype=torch.bfloat16)).slow
    # cuDNN is up to twelve times as fast in float16 (docs/notes/cuda.md)
    other = triton_backend.BACKEND.measured_speed(spec._replace(dtype=torch.float16))
    assert other.reason.startswith("nothing is known")


def test_a_table_of_another_gpu_tells_nothing(gpu: Callable[..., None]) -> None:
    gpu(Gpu("Some other GPU"), float32_inference_D1=[point(1, 1, 64, 9.0)])
    assert triton_backend.BACKEND.measured_speed(on_gpu(1, 1, 64)).reason.startswith("nothing is known")


@pytest.mark.parametrize("text", ["", "[]", '{"machine": {"isa": "mmx", "threads": 2}, "kinds": {}}'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"expected a table written by `python -m bench.calibrate.choose`"):
        measured.load(path)


@pytest.mark.parametrize("path", sorted(measured.TABLES.rglob("*.json")), ids=lambda path: path.stem)
def test_the_committed_tables_have_every_kind(path: Path) -> None:
    table = measured.load(path)
    assert path.name == table.machine.file
    if path.parent.name == "cpu":
        assert table.kinds.keys() == KINDS
    least = 50 if path.parent.name == "cpu" else 12
    for name, kind in table.kinds.items():
        assert kind.made["source"] and len({p[:4] for p in kind.points}) == len(kind.points) >= least, name
        assert all(0 < p.low <= p.ratio <= p.high for p in kind.points), name


def test_there_is_a_committed_table() -> None:
    assert list(measured.TABLES.glob("cpu/*.json"))


@needs_native
def test_every_instruction_set_of_the_kernels_is_known() -> None:
    assert this_machine.running().isa in ISAS and this_machine.running().threads == torch.get_num_threads()
    assert set(_native.facts()["cpu"]["isas"]) <= set(ISAS)


@needs_native
def test_the_committed_tables_answer_for_every_kind() -> None:
    for grad, bidirectional, dtype in itertools.product(
        (False, True), (False, True), (torch.float32, torch.bfloat16)
    ):
        speed = cpu.BACKEND.measured_speed(
            call(8, 4, 64, grad=grad, bidirectional=bidirectional, dtype=dtype)
        )
        assert speed is not None and "times as fast" in speed.reason
