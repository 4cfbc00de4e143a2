"""Measures the peak rates of this machine: matrix products, memory bandwidths and the cost of barriers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from cnnlstm_fast import _native
from cnnlstm_fast.timing import timed

from ..measure import environment

_DRAM_BYTES = 512 << 20
"""The largest buffer for the bandwidth of DRAM."""
_GPU_DTYPES = {"tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Roofline:
    """Measured peak rates; 0 for what was not measured or does not exist.

    Attributes:
        gemm_f32, gemm_tf32, gemm_bf16, gemm_fp16: FLOP/s of products of large square matrices, the best of several
            sizes and calls: what a good library reaches, somewhat below the data sheet. On a CPU the best of PyTorch's
            libraries (MKL reaches less than half of the rate on AMD's processors) and, for float32, of a loop of
            fused multiply-adds; with all ``threads``, or the rate of one thread times ``threads`` where that is more:
            with other work on the machine, threads that wait for each other reach a tenth of it.
        threads: of a CPU, that PyTorch uses.
        l1_bytes, l2_bytes: of one core of a CPU, as the system reports them. ``l2_bytes`` is a GPU's whole L2.
        l3_bytes: of a CPU, as the system reports it. On a virtual machine it is that of the whole socket.
        read_l1, read_l2: bytes/s that one core reads repeatedly from a buffer of half that cache.
        read_l3: the same from four times the L2, or half the L3 where that is less: the slices of L3 close to the
            core, not all of it. Without an L3 the buffer is in DRAM.
        read_dram: the same from twice the L3, or 512 MiB where that is less; with a very large L3 some reads hit it.
        read_dram_all: the sum over all threads, each of which reads its share of that buffer at the same time.
        multiprocessors, shared_bytes: of a GPU; the largest shared memory of one block.
        copy: bytes/s of a copy within a GPU's memory, read plus written.
        l2_latency: seconds of a GPU's load that hits L2.
        block_barrier, cluster_barrier, grid_barrier: seconds of a barrier among the 256 threads of a block, the
            8 blocks of a cluster and one block for each multiprocessor.

    A cache never counts as slower than the level behind it. Without the native part a CPU's bandwidths are those
    of ``torch.sum`` over tensors of those sizes, which includes the overhead of the call and is too low for the caches;
    a GPU's latency and barriers are then 0.
    """

    gemm_f32: float = 0.0
    gemm_tf32: float = 0.0
    gemm_bf16: float = 0.0
    gemm_fp16: float = 0.0
    threads: int = 0
    l1_bytes: int = 0
    l2_bytes: int = 0
    l3_bytes: int = 0
    read_l1: float = 0.0
    read_l2: float = 0.0
    read_l3: float = 0.0
    read_dram: float = 0.0
    read_dram_all: float = 0.0
    multiprocessors: int = 0
    shared_bytes: int = 0
    copy: float = 0.0
    l2_latency: float = 0.0
    block_barrier: float = 0.0
    cluster_barrier: float = 0.0
    grid_barrier: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """The fields, for JSON."""
        return asdict(self)


def measure(device: str, seconds: float = 2.0) -> Roofline:
    """Measures "cpu" or a GPU such as "cuda" in about ``seconds``, but not in less than about one.

    Other work on the machine lowers the result.

    Raises:
        RuntimeError: no such device, or CUDA reports an error.
    """
    if torch.device(device).type == "cpu":
        return _measure_cpu(seconds)
    with torch.cuda.device(device):
        return _measure_gpu(seconds)


def _measure_cpu(seconds: float) -> Roofline:
    each = seconds / 7  # two rates of products, five bandwidths
    threads, caches = torch.get_num_threads(), _cache_bytes()
    l1, l2, l3 = (caches.get(level, 0) for level in ("l1d", "l2", "l3"))
    dram = min(2 * l3 or _DRAM_BYTES, _DRAM_BYTES)
    sizes = (dram, min(4 * l2, l3 // 2) or dram, l2 // 2, l1 // 2)
    # a cache is not slower than what is behind it
    rates = accumulate((_read_rate(size, each) for size in sizes), max)
    read_dram, read_l3, read_l2, read_l1 = rates
    return Roofline(
        gemm_f32=max(_gemm_rate_of_all(torch.float32, threads, each), _fma_rate_of_all(threads, each / 4)),
        gemm_bf16=_gemm_rate_of_all(torch.bfloat16, threads, each),
        threads=threads,
        l1_bytes=l1,
        l2_bytes=l2,
        l3_bytes=l3,
        read_l1=read_l1,
        read_l2=read_l2,
        read_l3=read_l3,
        read_dram=read_dram,
        read_dram_all=max(read_dram, _read_rate_of_all(dram, threads, each)),
    )


def _measure_gpu(seconds: float) -> Roofline:
    each = seconds / 5
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    gemm = partial(_gemm_rate, device="cuda", seconds=each, shortest=_shortest_on_gpu)
    with _float32_products("ieee"):
        rates = {"gemm_f32": gemm(torch.float32)}
    with _float32_products("tf32"):
        rates |= {f"gemm_{name}": gemm(dtype) for name, dtype in _GPU_DTYPES.items()}
    source = torch.ones(1 << 28, device="cuda")
    copied = 2 * source.nbytes / _shortest_on_gpu(partial(torch.empty_like(source).copy_, source), each)
    return Roofline(
        **rates,
        l2_bytes=properties.L2_cache_size,
        multiprocessors=properties.multi_processor_count,
        shared_bytes=properties.shared_memory_per_block_optin,
        copy=copied,
        **_gpu_latencies((properties.major, properties.minor)),
    )


def _gpu_latencies(capability: tuple[int, int]) -> dict[str, float]:
    """Measured by the native part: PyTorch has no operators for these."""
    native = _native._C
    if native is None or not hasattr(native, "cuda_l2_latency"):
        return {}
    found = {
        "l2_latency": native.cuda_l2_latency(),
        "block_barrier": native.cuda_block_barrier(),
        "grid_barrier": native.cuda_grid_barrier(),
    }
    if capability >= (9, 0):
        found["cluster_barrier"] = native.cuda_cluster_barrier()
    return {name: 1e-9 * nanoseconds for name, nanoseconds in found.items()}


def _cache_bytes() -> dict[str, int]:
    """By "l1d", "l2", "l3"; where the system does not report L1 and L2, sizes that most cores have."""
    if _native._C is not None:
        reported = _native._C.cpu()["cache_bytes"]
    else:
        kernel = environment.hardware()["caches"]
        names = {"L1": "l1d", "L2": "l2", "L3": "l3"}
        reported = {
            names[level]: int(size.rstrip("K")) << 10 for level, size in kernel.items() if level in names
        }
    return {"l1d": 32 << 10, "l2": 1 << 20} | reported


def _read_rate(size: int, seconds: float) -> float:
    """Bytes/s of one core."""
    if _native._C is not None:
        return 1e9 * _native._C.read_bandwidth(size, seconds)
    with _one_thread():
        return _sum_rate(size, seconds)


def _read_rate_of_all(size: int, threads: int, seconds: float) -> float:
    """Bytes/s of all cores, each with its share of the buffer."""
    if _native._C is None:
        return _sum_rate(size, seconds)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: _read_rate(size // threads, seconds), range(threads)))


def _sum_rate(size: int, seconds: float) -> float:
    tensor = torch.ones(size // 4)
    return tensor.nbytes / _shortest_on_cpu(tensor.sum, seconds)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _gemm_rate_of_all(dtype: torch.dtype, threads: int, seconds: float) -> float:
    """FLOP/s of a CPU, see ``Roofline``: with all threads, or extrapolated from one."""
    best, libraries = 0.0, _cpu_products(dtype)
    for product in libraries:
        measure = partial(_gemm_rate, dtype, "cpu", seconds / 2 / len(libraries), _shortest_on_cpu, product)
        best = max(best, measure())
        with _one_thread():
            best = max(best, threads * measure())
    return best


def _cpu_products(dtype: torch.dtype) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """Products by each of PyTorch's libraries: for other dtypes than float32 ``torch.mm`` itself takes oneDNN."""
    if dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return [torch.mm]

    def onednn(a: Tensor, b: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")  # type: ignore[no-any-return]

    return [torch.mm, onednn]


def _fma_rate_of_all(threads: int, seconds: float) -> float:
    """FLOP/s of fused multiply-adds of float32 in registers, the sum over all threads; 0 without the native part."""
    if _native._C is None:
        return 0.0
    rate = _native._C.fma_rate
    with ThreadPoolExecutor(threads) as pool:
        return 1e9 * sum(pool.map(lambda _: rate(seconds), range(threads)))


def _gemm_rate(
    dtype: torch.dtype,
    device: str,
    seconds: float,
    shortest: Callable[[Callable[[], object], float], float],
    product: Callable[[Tensor, Tensor], Tensor] = torch.mm,
) -> float:
    """FLOP/s. The matrices are square and grow until the overhead of a call is negligible."""
    generator = torch.Generator(device).manual_seed(0)
    best, taken, n = 0.0, 0.0, 256
    while taken < 5e-3 and n < 8192:
        n *= 2
        a, b = (torch.rand(n, n, generator=generator, device=device).to(dtype) for _ in range(2))
        taken = shortest(partial(product, a, b), seconds / 4)
        best = max(best, 2 * n**3 / taken)
    return best


def _shortest_on_cpu(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the fastest of several calls: a peak rate is that of an undisturbed machine."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        best = min(best, timed(work))
        if time.perf_counter() > end:
            return best


def _shortest_on_gpu(work: Callable[[], object], seconds: float) -> float:
    """The same by CUDA events, the GPU's own clock."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start.record()
        work()
        stop.record()
        stop.synchronize()
        best = min(best, 1e-3 * start.elapsed_time(stop))
        if time.perf_counter() > end:
            return best


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    """Sets the precision of float32 products to "ieee" or "tf32"."""
    matmul = torch.backends.cuda.matmul
    chosen = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = chosen
