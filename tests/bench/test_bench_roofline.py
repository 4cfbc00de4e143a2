"""Lower bounds agree with calculations by hand, never fall with more work, and are below measured times."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.cases import CASES, MODES, Case, calls
from bench.measure.jobs import build, pytorch_job
from bench.roofline import peaks
from bench.roofline.lower_bound import lower_bound, sequence_lengths
from bench.roofline.peaks import Roofline, measure
from cnnlstm_fast import _native
from cnnlstm_fast.timing import interleave

CPU = Roofline(
    gemm_f32=100e9,
    gemm_bf16=1000e9,
    threads=2,
    l1_bytes=48 << 10,
    l2_bytes=1 << 20,
    l3_bytes=8 << 20,
    read_l1=200e9,
    read_l2=100e9,
    read_l3=25e9,
    read_dram=10e9,
    read_dram_all=16e9,
)
GPU = Roofline(
    gemm_f32=50e12,
    gemm_tf32=400e12,
    gemm_bf16=800e12,
    gemm_fp16=800e12,
    l2_latency=200e-9,
    block_barrier=20e-9,
    cluster_barrier=200e-9,
    grid_barrier=1000e-9,
)


def case(T: int, B: int, I: int, H: int, layers: int = 1, bidirectional: bool = False, **more: Any) -> Case:
    return Case("by-hand", T, B, I, H, layers, bidirectional, "test", **more)


def on_cpu(work: Case, mode: str = "inference", dtype: str = "f32", roofline: Roofline = CPU) -> Any:
    return lower_bound(work, mode, dtype, roofline, "cpu")


def on_gpu(work: Case, mode: str = "inference", dtype: str = "bf16", roofline: Roofline = GPU) -> Any:
    return lower_bound(work, mode, dtype, roofline, "cuda")


def test_the_rate_of_products_is_the_best_of_the_libraries_and_of_plain_arithmetic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rate(product: Any, n: int) -> float:
        return {"mm": 3e9, "onednn": 4e9}[product.__name__]

    def gemm_rate(dtype: Any, device: str, seconds: float, shortest: Any, product: Any) -> float:
        return rate(product, torch.get_num_threads())

    monkeypatch.setattr(peaks, "_gemm_rate", gemm_rate)
    monkeypatch.setattr(peaks, "_fma_rate_of_all", lambda threads, seconds: 5e9)
    monkeypatch.setattr(peaks, "_read_rate", lambda size, seconds: 1.0)
    threads = torch.get_num_threads()
    assert peaks._gemm_rate_of_all(torch.float32, 2, 0.1) == 8e9  # of one thread, twice
    assert measure("cpu", 0.1).gemm_f32 == max(threads * 4e9, 5e9)
    assert peaks._gemm_rate_of_all(torch.bfloat16, 2, 0.1) == 6e9
    monkeypatch.setattr(peaks, "_fma_rate_of_all", lambda threads, seconds: 5e10)
    assert measure("cpu", 0.1).gemm_f32 == 5e10


def test_a_speaker_model_on_a_server() -> None:
    """What the design worked out: 340 GFLOP/s and 143 GB/s a core out of L2 make about 3.6 ms."""
    server = Roofline(
        gemm_f32=340e9, threads=2, l1_bytes=48 << 10, l2_bytes=2 << 20, read_l2=143e9, read_l1=300e9
    )
    # inputs: 293 steps * 2 * 4*128 * (60 + 3*256) * 2 directions = 496.9 MFLOP, 1.461 ms at 340 GFLOP/s
    # recurrence: 4*128*128 * 4 B = 262,144 B at 286 GB/s = 0.9166 us, * 292 steps * 8 = 2.141 ms
    assert on_cpu(case(293, 1, 60, 128, 4, True), roofline=server) == pytest.approx(3.602e-3, rel=1e-3)


def test_one_sequence_reads_its_weights_out_of_l2() -> None:
    # inputs: 2 * 100*512*64 = 6.5536 MFLOP at 100 GFLOP/s = 65.536 us
    # recurrence: 512*128 * 4 B = 262,144 B at 2 * 100 GB/s = 1.31072 us (0.131 MFLOP take 1.31072 us, too)
    # 99 steps, since the first one has a state of zeros
    assert on_cpu(case(100, 1, 64, 128)) == pytest.approx(65.536e-6 + 99 * 1.31072e-6)
    # at ten times the rate the reading stays: 6.5536 us + the same
    fast = replace(CPU, gemm_f32=1000e9)
    assert on_cpu(case(100, 1, 64, 128), roofline=fast) == pytest.approx(6.5536e-6 + 99 * 1.31072e-6)


def test_given_states_are_multiplied_at_the_first_step() -> None:
    # 65.536 us as above, and 100 steps
    assert on_cpu(case(100, 1, 64, 128, states=True)) == pytest.approx(65.536e-6 + 100 * 1.31072e-6)


def test_one_step_of_one_sequence_reads_both_matrices_once() -> None:
    # W_ih: 1024*256 * 4 B = 1 MiB, half of it for a core, at 200 GB/s = 5.24288 us, and W_hh likewise;
    # FLOP: 2*262,144 at 1000 GFLOP/s = 0.52 us
    fast = replace(CPU, gemm_f32=1000e9)
    assert on_cpu(case(1, 1, 256, 256, states=True), roofline=fast) == pytest.approx(2 * 5.24288e-6)


@pytest.mark.parametrize(
    ("H", "rate"),
    [
        (64, 400e9),  # 4*64*64 * 4 B = 64 KiB, 32 a core: L1
        (128, 200e9),  # 256 KiB, 128 a core: L2
        (256, 200e9),  # 1 MiB, 512 KiB a core: L2
        (512, 50e9),  # 4 MiB, 2 a core: beyond L2, in L3
        (1024, 16e9),  # 16 MiB: beyond L3
    ],
)
def test_weights_are_read_from_the_nearest_level_that_holds_them(H: int, rate: float) -> None:
    endless = replace(CPU, gemm_f32=1e18)
    more, fewer = (on_cpu(case(T, 1, 1, H), roofline=endless) for T in (11, 1))
    assert more - fewer == pytest.approx(10 * 16 * H * H / rate, rel=1e-6)


def test_a_batch_is_bound_by_flop() -> None:
    # inputs: 2 * 10*64 * 512*128 = 83.88608 MFLOP; recurrence: 2 * 9*64 * 512*128 = 75.497472 MFLOP;
    # a step's 8.4 MFLOP take 84 us, and reading 256 KiB 1.3
    assert on_cpu(case(10, 64, 128, 128)) == pytest.approx((83.88608e6 + 75.497472e6) / 100e9)


def test_two_layers_in_two_directions() -> None:
    # B = 32, H = 128. Layer 0: I = 64, layer 1: I = 256.
    # inputs: 2 * 10*32 * 512 * (64 + 256) * 2 directions = 209.7152 MFLOP
    # recurrence: 2 * 9*32 * 512*128 * 2 layers * 2 directions = 150.994944 MFLOP
    assert on_cpu(case(10, 32, 64, 128, 2, True)) == pytest.approx((209.7152e6 + 150.994944e6) / 100e9)


def test_lengths_count_valid_steps_alone() -> None:
    work = case(10, 4, 64, 128, lengths=(0.4, 1.0), empty=1)
    # three of them spread from 4 to 10: 4, 7, 10; N = 21
    assert sequence_lengths(work).tolist() == [0, 4, 7, 10]
    # inputs: 2 * 21 * 512*64 = 1.376256 MFLOP at 100 GFLOP/s = 13.76256 us
    # steps 1 to 3 have 3 rows, 4 to 6 have 2, 7 to 9 have 1: 18 rows of 2*512*128 = 131,072 FLOP, 23.59296 us;
    # a step's reading takes as long as one row
    assert on_cpu(work) == pytest.approx(13.76256e-6 + 23.59296e-6)


@pytest.mark.parametrize("work", [c for c in CASES.values() if c.lengths], ids=lambda c: c.name)
def test_lengths_are_those_of_the_jobs(work: Case) -> None:
    small = replace(work, I=1, H=1, proj_size=0, layers=1)
    lengths = build(small, torch.float32).lengths
    assert lengths is not None and lengths.sort().values.equal(sequence_lengths(work))


def test_a_projection_is_a_product_of_its_own() -> None:
    # H = 128, P = 32, B = 64, two layers in two directions: I = 80, then 2*32
    # inputs: 2 * 10*64 * 512 * (80 + 64) * 2 = 188.74368 MFLOP
    # recurrence: 4H*P + P*H = 512*32 + 32*128 = 20,480 weights; 2 * 9*64 * 20,480 * 4 = 94.37184 MFLOP
    work = case(10, 64, 80, 128, 2, True, proj_size=32)
    assert on_cpu(work) == pytest.approx((188.74368e6 + 94.37184e6) / 100e9)


def test_training() -> None:
    # B = 64, I = 32, H = 128, T = 10: N = 640, and 576 rows with a state before them
    # forward: 2*640*512*32 + 2*576*512*128; back through time: 2*576*512*128
    # input and W_ih: 2 * 2*640*512*32; W_hh: 2*576*512*128
    flop = 3 * 2 * 640 * 512 * 32 + 3 * 2 * 576 * 512 * 128
    assert on_cpu(case(10, 64, 32, 128), "training") == pytest.approx(flop / 100e9)


def test_training_of_a_projection() -> None:
    # as above with P = 32: W_hh has 512*32 numbers, and the gradient of the projection's 32*128 sees all 640 rows
    flop = (
        3 * 2 * 640 * 512 * 32 + 2 * 2 * 576 * (512 * 32 + 32 * 128) + 2 * 576 * 512 * 32 + 2 * 640 * 32 * 128
    )
    assert on_cpu(case(10, 64, 32, 128, proj_size=32), "training") == pytest.approx(flop / 100e9)


@pytest.mark.parametrize("dtype", ["bf16", "amp"])
def test_bfloat16_halves_the_bytes_and_has_its_own_rate(dtype: str) -> None:
    # inputs: 6.5536 MFLOP at 1000 GFLOP/s = 6.5536 us
    # recurrence: 131,072 B at 200 GB/s = 0.65536 us a step (64 KiB a core: L2)
    assert on_cpu(case(100, 1, 64, 128), dtype=dtype) == pytest.approx(6.5536e-6 + 99 * 0.65536e-6)


def test_bfloat16_is_not_slower_than_computing_in_float32() -> None:
    emulated = replace(CPU, gemm_bf16=1e9)
    assert on_cpu(case(10, 64, 32, 128), dtype="bf16", roofline=emulated) == on_cpu(case(10, 64, 32, 128))


@pytest.mark.parametrize(
    ("H", "barrier"), [(64, 20e-9), (128, 20e-9), (129, 200e-9), (640, 200e-9), (641, 1000e-9)]
)
def test_a_gpu_synchronizes_once_a_step(H: int, barrier: float) -> None:
    # three layers in one direction follow each other: 100 + 2 steps; twice with the backward pass
    assert on_gpu(case(100, 1, 64, H, 3)) == pytest.approx(102 * barrier)
    assert on_gpu(case(100, 1, 64, H, 3), "training") == pytest.approx(204 * barrier)
    # in two directions a layer needs the whole one below
    assert on_gpu(case(100, 1, 64, H, 3, True)) == pytest.approx(300 * barrier)


def test_a_gpu_without_clusters_waits_for_the_grid() -> None:
    older = replace(GPU, cluster_barrier=0.0)
    assert on_gpu(case(100, 1, 64, 256), roofline=older) == pytest.approx(100 * 1000e-9)


def test_a_gpu_waits_for_the_longest_sequence() -> None:
    work = case(100, 3, 64, 128, lengths=(0.2, 0.6))
    assert on_gpu(work) == pytest.approx(60 * 20e-9)


def test_a_large_batch_is_bound_by_flop_on_a_gpu() -> None:
    # 2 * 100*4096 * 512*128 + 2 * 99*4096 * 512*128 = 106.84 GFLOP: 133.6 us, against 100 * 20 ns
    flop = 2 * (100 + 99) * 4096 * 512 * 128
    assert on_gpu(case(100, 4096, 128, 128)) == pytest.approx(flop / 800e12)
    assert on_gpu(case(100, 4096, 128, 128), dtype="tf32") == pytest.approx(flop / 400e12)
    # float32 out of three TF32 products, which is faster than 50 TFLOP/s
    assert on_gpu(case(100, 4096, 128, 128), dtype="f32") == pytest.approx(flop / (400e12 / 3))


def test_no_lower_bound_where_it_makes_no_sense() -> None:
    assert on_cpu(CASES["no-steps"]) is None
    assert on_cpu(case(10, 2, 8, 8, lengths=(0.0, 0.0))) is None
    assert on_cpu(replace(CASES["series-b1"], model="any")) is None
    assert on_cpu(CASES["series-b1"], dtype="fp16") is None
    assert on_cpu(CASES["series-b1"], dtype="int8") is None


@pytest.mark.parametrize(("compute", "dtype"), [(on_cpu, "f32"), (on_cpu, "bf16"), (on_gpu, "bf16")])
@pytest.mark.parametrize("mode", MODES)
def test_more_work_is_never_cheaper(compute: Any, dtype: str, mode: str) -> None:
    small = case(5, 2, 48, 100, 2, True)
    for size, values in {
        "T": (1, 2, 5, 50, 500),
        "B": (1, 2, 8, 64, 512),
        "I": (1, 48, 512, 4096),
        "H": (8, 64, 128, 129, 200, 256, 512, 640, 641, 1024),
        "layers": (1, 2, 3),
    }.items():
        bounds = [compute(replace(small, **{size: value}), mode, dtype) for value in values]
        assert bounds == sorted(bounds), size


@pytest.mark.parametrize(("device", "roofline"), [("cpu", CPU), ("cuda", GPU)])
def test_every_call_has_a_lower_bound_or_none(device: str, roofline: Roofline) -> None:
    without = set()
    for call in calls("all", device=device):
        found = lower_bound(*call, roofline, device)
        if found is None:
            without.add(call.case)
        else:
            assert math.isfinite(found) and found > 0.0, call
    assert without == {c for c in CASES.values() if c.model or c.T == 0}


@pytest.mark.parametrize("native", [True, False])
def test_roofline_of_a_cpu_are_plausible(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    if native and _native._C is None:
        pytest.skip(str(_native.reason))
    if not native:
        monkeypatch.setattr(_native, "_C", None)
    threads = torch.get_num_threads()
    found = measure("cpu", seconds=0.2)
    assert torch.get_num_threads() == threads == found.threads
    assert 1e9 < found.gemm_f32 < 1e14 and 1e8 < found.gemm_bf16 < 1e15
    assert 1e8 < found.read_dram <= found.read_l3 <= found.read_l2 <= found.read_l1 < 2e12
    assert found.read_dram <= found.read_dram_all < 5e12
    assert 8 << 10 <= found.l1_bytes <= found.l2_bytes
    assert json.loads(json.dumps(found.as_dict()))["threads"] == threads
    assert found.gemm_tf32 == found.copy == found.block_barrier == 0.0


@pytest.mark.gpu
def test_roofline_of_a_gpu_are_plausible() -> None:
    chosen = torch.backends.cuda.matmul.fp32_precision
    found = measure("cuda", seconds=1.0)
    assert torch.backends.cuda.matmul.fp32_precision == chosen
    assert 1e11 < found.gemm_f32 < found.gemm_bf16 < 1e16
    assert found.multiprocessors > 0 and found.shared_bytes > 0 and found.l2_bytes > 0
    assert 1e10 < found.copy < 1e14
    if hasattr(_native._C, "cuda_l2_latency"):
        assert 20e-9 < found.l2_latency < 2e-6
        assert 1e-9 < found.block_barrier < found.grid_barrier < 1e-4
        if torch.cuda.get_device_capability() >= (9, 0):
            assert found.block_barrier < found.cluster_barrier < found.grid_barrier


def test_cuda_measurements_say_what_is_missing() -> None:
    native = _native._C
    if not hasattr(native, "cuda_l2_latency"):
        pytest.skip("the CUDA part was not built")
    if native.cuda_devices():
        pytest.skip("there is a GPU")
    for name in ("l2_latency", "block_barrier", "cluster_barrier", "grid_barrier"):
        with pytest.raises(RuntimeError, match=r"cuda.*\(cudaError"):
            getattr(native, f"cuda_{name}")()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads that wait for each other reach little on a machine that others use, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_pytorch_is_not_faster_than_the_lower_bound(one_thread: None) -> None:
    works = [CASES["series-b1"], CASES["crnn-b1"]]
    jobs = {work.name: pytorch_job(work, build(work, torch.float32), "inference") for work in works}
    times = interleave(jobs, seconds=0.5)
    # On a busy machine the measured rates are lower, and so the bounds higher: the best of three counts.
    found = [measure("cpu", seconds=0.5) for _ in range(3)]
    for work in works:
        least = min(on_cpu(work, roofline=roofline) for roofline in found)
        assert least < min(times[work.name]), work.name
