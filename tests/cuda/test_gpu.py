"""The GPU kernels on a GPU: what neither Triton's interpreter nor the CUDA kernels compiled for the CPU can test."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import (
    Case,
    check_case,
    check_tf32,
    draw_data,
    fast,
    float32_products,
    require_spec,
    results,
    spec_of,
)
from torch import Tensor, nn

import cnnlstm_fast
from cnnlstm_fast import _native

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
BACKENDS = ("triton", "cuda")


class Algorithm(NamedTuple):
    """An algorithm of a backend, and sizes of a bidirectional layer in bfloat16 for which all current GPUs use it."""

    backend: str
    name: str
    T: int
    B: int
    H: int
    I: int = 40

    def __str__(self) -> str:
        return f"{self.backend}-{self.name}-B{self.B}-H{self.H}"


ALGORITHMS = [
    # A single program, programs that wait for each other, those that also read the weights in every step, with an
    # item each and with several.
    Algorithm("triton", "persistent_block", 30, 5, 64),
    Algorithm("triton", "persistent_grid", 30, 5, 400),
    Algorithm("triton", "streaming", 6, 5, 1280),
    Algorithm("triton", "streaming", 6, 150, 2048),
    # A single block, blocks that wait for each other through shared and through global memory, those that also read the
    # weights in every step, a launch for every step.
    Algorithm("cuda", "persistent_block", 30, 5, 64),
    Algorithm("cuda", "persistent_cluster", 30, 40, 256),
    Algorithm("cuda", "persistent_grid", 30, 5, 600),
    Algorithm("cuda", "streaming", 6, 1, 1280),
    Algorithm("cuda", "per_step", 6, 128, 3072),
]


def require_backend(name: str) -> None:
    weights = [torch.zeros(shape) for shape in ((32, 4), (32, 8), (32,), (32,))]
    spec = spec_of(torch.zeros(3, 2, 4), None, weights)
    require_spec(name, spec._replace(device="cuda", dtype=torch.bfloat16))


def require_clusters() -> None:
    if _native._C.cuda_gpu(torch.cuda.current_device())["largest_cluster"] == 0:
        pytest.skip("this GPU, or what was built for it, has no clusters")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    require_backend(request.param)
    return request.param


@pytest.fixture(params=ALGORITHMS, ids=str)
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    require_backend(request.param.backend)
    if request.param.name == "persistent_cluster":
        require_clusters()
    return request.param


def of(backend: str, name: str) -> Algorithm:
    return next(algorithm for algorithm in ALGORITHMS if algorithm[:2] == (backend, name))


def layer(algorithm: Algorithm) -> tuple[nn.Module, Tensor]:
    """The layer, and an input."""
    place = {"device": "cuda", "dtype": torch.bfloat16}
    made = cnnlstm_fast.LSTM(algorithm.I, algorithm.H, bidirectional=True, **place, backend=algorithm.backend)
    return made, torch.randn(algorithm.T, algorithm.B, algorithm.I, **place)


def step(made: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs and gradients."""
    x = x.detach().requires_grad_()
    output, states = made(x)
    loss = output.float().square().sum()
    return [output, *states, *torch.autograd.grad(loss, [x, *made.parameters()])]


def planned(algorithm: Algorithm, backward: bool) -> str:
    device = torch.cuda.current_device()
    if algorithm.backend == "cuda":
        plan = _native._C.plan(_native._C.cuda_gpu(device), backward, "bfloat16", algorithm.H, algorithm.B, 2)
        return plan["algorithm"]
    from cnnlstm_fast.recurrent.backends import triton

    triton.kernels()
    from cnnlstm_fast.kernels.plan import device_of, plan

    return plan(device_of(device), algorithm.H, algorithm.B, 2, 2).algorithm


def test_the_plan_is_the_one_meant(algorithm: Algorithm) -> None:
    assert [planned(algorithm, backward) for backward in (False, True)] == [algorithm.name, algorithm.name]


def test_explain_tells_what_a_kernel_takes() -> None:
    require_backend("cuda")
    made, x = layer(of("cuda", "persistent_block"))
    told = re.search(r"(\d+) threads a block with (\d+) registers, among them", cnnlstm_fast.explain(made, x))
    assert told is not None and 64 < int(told[2]) <= 255 and int(told[1]) * int(told[2]) <= 65536


def test_every_run_gives_the_same_bits(algorithm: Algorithm) -> None:
    made, x = layer(algorithm)
    first = step(made, x)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, step(made, x), strict=True))


def test_captured_and_replayed(algorithm: Algorithm) -> None:
    made, x = layer(algorithm)
    step(made, x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(made, x)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, step(made, x), strict=True))


def test_two_streams_at_once(algorithm: Algorithm) -> None:
    """Two launches whose programs wait for each other must not deadlock each other."""
    made, x = layer(algorithm)
    with torch.inference_mode():
        expected = made(x)[0]
        streams = [torch.cuda.Stream(), torch.cuda.Stream()]
        torch.cuda.synchronize()
        found = []
        for k in range(40):
            with torch.cuda.stream(streams[k % 2]):
                found.append(made(x)[0])
        torch.cuda.synchronize()
    assert all(torch.equal(expected, output) for output in found)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_device_that_is_not_the_current_one(backend: str) -> None:
    made, x = layer(of(backend, "persistent_grid"))
    expected = step(made, x)
    for found, same in zip(step(made.to("cuda:1"), x.to("cuda:1")), expected, strict=True):
        assert found.device.index == 1 and torch.equal(found.cpu(), same.cpu())


def test_compiled_by_pytorch(algorithm: Algorithm) -> None:
    made, x = layer(algorithm)
    traced = torch.compile(made, fullgraph=True)
    for found, expected in zip(step(traced, x), step(made, x), strict=True):
        torch.testing.assert_close(found, expected)


def test_after_running_out_of_memory_the_next_call_is_fine(backend: str) -> None:
    algorithm = of(backend, "persistent_block")
    made, x = layer(algorithm)
    expected = step(made, x)
    _, total = torch.cuda.mem_get_info()
    T = total // (2 * 4 * 2 * algorithm.H) + 1  # gates of that many steps need more than there is
    with pytest.raises(torch.OutOfMemoryError):
        made(x[:1, :1].expand(T, 1, -1))
    assert all(torch.equal(a, b) for a, b in zip(step(made, x), expected, strict=True))


@pytest.mark.timeout(600)
def test_random_shapes(backend: str) -> None:
    """A thousand calls, compared with PyTorch's own kernel (float32, exact products)."""
    generator = random.Random(11)
    for k in range(1000):
        pick = generator.choice
        case = Case(
            T=pick([1, 2, 7, 20]),
            B=pick([1, 2, 9, 33]),
            I=pick([1, 5, 40, 65]),
            H=pick([1, 2, 15, 16, 31, 64, 65, 100, 128, 130, 200, 256, 300, 600]),
            bidirectional=pick([False, True]),
            bias=pick([False, True]),
            states=pick([False, True]),
            kind=pick(["padded", "packed"]),
        )
        data = draw_data(case, torch.float32, k).to(torch.float32, "cuda")
        with float32_products("ieee"):
            mine, theirs = (results(fast(name), data) for name in (backend, "aten"))
        for name, expected in theirs.items():
            scale = expected.abs().max().clamp(min=1e-6)
            assert ((mine[name] - expected).abs().max() / scale) < 1e-4, (case, name)


@pytest.mark.parametrize("compute_type", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("H", [50, 128, 192, 301, 384, 768, 1024, 1537])
def test_sizes_of_real_models(H: int, compute_type: str, backend: str) -> None:
    case = Case(T=12, B=9, I=64, H=H, layers=2, bidirectional=True)
    if compute_type == "tf32":
        check_tf32(case, backend, "cuda")
    else:
        check_case(case, backend, getattr(torch, compute_type), "cuda")


@pytest.mark.parametrize("proj", [0, 48])
@pytest.mark.parametrize("kind", ["packed", "lengths+reset"])
def test_every_kind_of_call(kind: str, proj: int, algorithm: Algorithm) -> None:
    case = Case(
        T=6, B=algorithm.B, I=algorithm.I, H=algorithm.H, bidirectional=True, kind=kind, proj=proj, cells=True
    )
    check_case(case, algorithm.backend, torch.bfloat16, "cuda")


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.timeout(600)
def test_under_the_sanitizer(tool: str, backend: str) -> None:
    """Every algorithm; each tensor in an allocation of its own, so that accesses beyond it are found. Racecheck does
    not know the order that an mbarrier makes, and reports the clusters, which H=200 uses, by mistake."""
    sizes = (20, 200, 600, 1280) if tool == "memcheck" or backend == "triton" else (20, 600, 1280)
    script = (
        "import torch, cnnlstm_fast\n"
        "place = {'device': 'cuda', 'dtype': torch.bfloat16}\n"
        f"for H in {sizes}:\n"
        f"    m = cnnlstm_fast.LSTM(5, H, bidirectional=True, **place, backend={backend!r})\n"
        "    m(torch.randn(3, 2, 5, **place))[0].sum().backward()\n"
        "torch.cuda.synchronize()\n"
    )
    done = subprocess.run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("cluster", [False, True], ids=["persistent_grid", "persistent_cluster"])
def test_an_endless_wait_ends_with_an_error(cluster: bool) -> None:
    """The CUDA kernels have a time limit of waits. In a separate process, which cannot use the GPU afterwards."""
    require_backend("cuda")
    if cluster:
        require_clusters()
    script = (
        "import sys, time\n"
        "from cnnlstm_fast import _native\n"
        "_native._C.micro_launch()\n"  # initialises the GPU
        "start = time.perf_counter()\n"
        "try:\n"
        f"    _native._C.micro_hang({cluster})\n"
        "except RuntimeError as error:\n"
        "    print(time.perf_counter() - start, error, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "a block waited for the others for too long" in done.stdout  # the kernel's own message
    seconds, error = done.stderr.splitlines()[-1].split(maxsplit=1)
    assert "(cudaError" in error and 0.1 < float(seconds) < 30, done.stderr
    assert torch.ones(3, device="cuda").sum() == 3  # other processes can still use it
