"""The Triton kernels on a GPU: what the interpreter cannot show."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import Case, check_case, draw_data, fast, results
from torch import Tensor

import cnnlstm_fast

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

# One of each way on a GPU of today: a program alone, programs that wait for each other, those that also read the
# weights in every step, with an item each and with several.
WAYS = {
    "block": (30, 5, 40, 64),
    "grid": (30, 5, 40, 400),
    "stream": (6, 5, 40, 1280),
    "stream of many tiles": (6, 150, 40, 2048),
}


def layer(way: str, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.nn.Module, Tensor]:
    T, B, I, H = WAYS[way]
    made = cnnlstm_fast.LSTM(I, H, bidirectional=True, device="cuda", dtype=dtype, backend="triton")
    return made, torch.randn(T, B, I, device="cuda", dtype=dtype)


def step(made: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs and gradients."""
    x = x.detach().requires_grad_()
    output, states = made(x)
    loss = output.float().square().sum()
    return [output, *states, *torch.autograd.grad(loss, [x, *made.parameters()])]


@pytest.mark.parametrize("way", WAYS)
def test_the_plan_is_the_one_meant(way: str) -> None:
    from cnnlstm_fast.backends import triton as backend

    backend.kernels()
    from cnnlstm_fast.kernels.plan import device_of, plan

    _, B, _, H = WAYS[way]
    assert plan(device_of(torch.cuda.current_device()), H, B, 2, 2).way == way.split()[0]


@pytest.mark.parametrize("way", WAYS)
def test_every_run_gives_the_same_bits(way: str) -> None:
    made, x = layer(way)
    first = step(made, x)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, step(made, x), strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_a_new_length_or_batch_compiles_nothing(way: str) -> None:
    from cnnlstm_fast.backends import triton as backend

    backend.kernels()
    from cnnlstm_fast.kernels import recurrence

    kernels = (
        recurrence.forward_kernel,
        recurrence.forward_streamed_kernel,
        recurrence.backward_kernel,
        recurrence.backward_streamed_kernel,
    )

    def compiled() -> list[int]:
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    made, x = layer(way)
    step(made, x)
    before = compiled()
    for T, fewer in ((1, 0), (16, 1), (17, 0), (32, 2)):
        step(made, x.new_zeros((T, x.size(1) - fewer, x.size(2))))
    assert compiled() == before


@pytest.mark.parametrize("way", WAYS)
def test_captured_and_replayed(way: str) -> None:
    made, x = layer(way)
    with torch.inference_mode():
        made(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = made(x)[0]
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            graph.replay()
            assert torch.equal(output, made(x)[0])


@pytest.mark.parametrize("way", ["grid", "stream", "stream of many tiles"])
def test_two_streams_at_once(way: str) -> None:
    """Two launches whose programs wait for each other must not take each other's places."""
    made, x = layer(way)
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
def test_a_device_that_is_not_the_current_one() -> None:
    made, x = layer("grid")
    expected = made(x)[0]
    assert torch.equal(made.to("cuda:1")(x.to("cuda:1"))[0].cpu(), expected.cpu())


@pytest.mark.parametrize("way", WAYS)
def test_compiled_by_pytorch(way: str) -> None:
    made, x = layer(way, torch.float32)
    traced = torch.compile(made, fullgraph=True)
    torch.testing.assert_close(traced(x)[0], made(x)[0])


def test_after_running_out_of_memory_the_next_call_is_fine() -> None:
    made, x = layer("block")
    expected = made(x)[0]
    free, _ = torch.cuda.mem_get_info()
    T = free // (4 * 4 * made.hidden_size) + 1  # gate inputs of that many steps need more than there is
    with pytest.raises(torch.OutOfMemoryError):
        made(x[:1, :1].expand(T, 1, -1))
    assert torch.equal(made(x)[0], expected)


def test_random_shapes() -> None:
    """A thousand calls, PyTorch's own kernel as the measure (float32, exact products)."""
    generator = random.Random(11)
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    try:
        for k in range(1000):
            pick = generator.choice
            case = Case(
                T=pick([1, 2, 7, 20]),
                B=pick([1, 2, 9, 33]),
                I=pick([1, 5, 40, 65]),
                H=pick([1, 2, 15, 16, 31, 64, 65, 100, 128, 130, 200, 256, 300]),
                bidirectional=pick([False, True]),
                bias=pick([False, True]),
                states=pick([False, True]),
                kind=pick(["padded", "packed"]),
            )
            data = draw_data(case, torch.float32, k).to(torch.float32, "cuda")
            mine, theirs = (results(fast(name), data) for name in ("triton", "aten"))
            for name, expected in theirs.items():
                scale = expected.abs().max().clamp(min=1e-6)
                assert ((mine[name] - expected).abs().max() / scale) < 1e-4, (case, name)
    finally:
        torch.backends.cudnn.rnn.fp32_precision = "none"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("H", [50, 128, 192, 301, 384, 768, 1024, 1537])
def test_sizes_of_real_models(H: int, dtype: torch.dtype) -> None:
    check_case(Case(T=12, B=9, I=64, H=H, layers=2, bidirectional=True), "triton", dtype, "cuda")


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.timeout(600)
def test_under_the_sanitizer(tool: str) -> None:
    script = (
        "import torch, cnnlstm_fast\n"
        "for H in (20, 200, 1100):\n"
        "    m = cnnlstm_fast.LSTM(5, H, bidirectional=True, device='cuda', backend='triton')\n"
        "    m(torch.randn(3, 2, 5, device='cuda'))[0].sum().backward()\n"
        "torch.cuda.synchronize()\n"
    )
    done = subprocess.run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
