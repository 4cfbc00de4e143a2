"""The drop-in contract of the layer: threads, forks and data parallel training."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers import eager_copy, threads
from layers import net, run
from torch import Tensor, nn

import cnnlstm_fast
from cnnlstm_fast import _native, cli


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads by Linux's /proc")
def test_one_thread_is_obeyed() -> None:
    """In a fresh process set to one thread, neither forward nor backward starts a pool of threads."""
    code = """
import os, torch, cnnlstm_fast
torch.set_num_threads(1)
layer = cnnlstm_fast.LSTM(64, 128, 2, bidirectional=True)
x = torch.randn(20, 16, 64)
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
with torch.no_grad():
    layer(x)
print(count() - before)
layer(x)[0].sum().backward()
print(count() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["0", "0"], done.stderr


def _answer(layer: nn.Module, x: Tensor, training: bool, queue: Any) -> None:
    if training:
        queue.put([t.numpy() for t in run(layer, x)])
    else:
        with torch.no_grad():
            queue.put([layer(x)[0].numpy()])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("training", [False, True])
def test_fork_after_first_use(training: bool) -> None:
    """As DataLoader workers and forking servers do; threads of a pool do not live on in the child.

    The parent runs no backward: PyTorch's own autograd threads forbid one in a child after that."""
    layer = cnnlstm_fast.LSTM(64, 128, 2, bidirectional=True)
    x = torch.randn(12, 16, 64)
    with torch.no_grad():
        want = layer(x)[0]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_answer, args=(layer, x, training, queue))
    child.start()
    reader = queue._reader
    try:
        assert reader.poll(30), "the child hangs"
        got = queue.get()
    finally:
        child.join(5)
        child.kill()
    torch.testing.assert_close(torch.from_numpy(got[0]), want)
    if training:
        for ours, theirs in zip(got, run(eager_copy(layer), x), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-4)


def _describe(layer: nn.Module, x: Tensor, queue: Any) -> None:
    info = cli.info()  # measures products of matrices, where nothing has before
    queue.put((cnnlstm_fast.explain(layer, x), info))


@pytest.mark.skipif(not _native.available, reason="needs the native part")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("backend", ["cpu", "cpu-int8"])
def test_a_forked_child_says_that_it_has_one_thread(backend: str) -> None:
    layer, x = cnnlstm_fast.LSTM(16, 32, backend=backend).eval(), torch.randn(40, 2, 16)
    with torch.no_grad(), threads(2):
        layer(x)
        torch.randn(1 << 20).exp()  # starts OpenMP's threads
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_describe, args=(layer.requires_grad_(False), x, queue))
    child.start()
    try:
        assert queue._reader.poll(30), "the child hangs"
        explained, info = queue.get()
    finally:
        child.join(5)
        child.kill()
    assert "on one thread, since this process was forked" in explained
    assert "this process was forked" in info
    assert "forked" not in cnnlstm_fast.explain(layer, x) + cli.info()


class _Layer(torch.utils.data.Dataset):
    """Each item: the number of PyTorch's threads, and the bytes that the worker has packed."""

    def __init__(self) -> None:
        self.layer = cnnlstm_fast.LSTM(16, 32, backend="cpu")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, k: int) -> tuple[int, int]:
        with torch.no_grad():
            self.layer(torch.randn(40, 2, 16))
        return torch.get_num_threads(), torch.ops.cnnlstm_fast.prepacked_bytes()


@pytest.mark.skipif(not _native.available, reason="needs the native part")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_of_a_data_loader_pack_weights() -> None:
    """PyTorch itself gives them one thread, so that here nothing is lost by the fork."""
    data = _Layer()
    loader = torch.utils.data.DataLoader(data, num_workers=1, batch_size=None, multiprocessing_context="fork")
    found = [tuple(map(int, item)) for item in loader]
    packed = 4 * (data.layer.weight_ih_l0.numel() + data.layer.weight_hh_l0.numel())
    assert found == [(1, 0), (1, packed), (1, packed), (1, packed)]


def _distributed_step(rank: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    model = nn.parallel.DistributedDataParallel(cnnlstm_fast.optimize(net(num_layers=2, bidirectional=True)))
    model(_batch()[:, 2 * rank : 2 * rank + 2])[0].square().mean().backward()
    if rank == 0:
        queue.put([p.grad.numpy() for p in model.parameters()])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _batch() -> Tensor:
    return torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(5))


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch is built without torch.distributed"
)
def test_distributed_data_parallel() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_distributed_step, args=(rank, port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    try:
        assert queue._reader.poll(90), "no gradients came"
        got = queue.get()
    finally:
        for worker in workers:
            worker.join(20)
            worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    model = net(num_layers=2, bidirectional=True)
    model(_batch())[0].square().mean().backward()
    for ours, p in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), p.grad)


def test_data_parallel_on_a_cpu() -> None:
    model = nn.DataParallel(cnnlstm_fast.optimize(net()))
    assert model(torch.randn(5, 2, 3))[0].shape == (5, 2, 8)
