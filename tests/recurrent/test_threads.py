"""Numbers of threads: more than there are cores, and those of each Python thread, which a call must leave alone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from helpers import SEED, Case, Data, check, fast, make, one_thread, oracle, pytorch, results
from torch import Tensor

from cnnlstm_fast import _native

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")

Results = dict[str, Tensor]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_contract(case: Case, dtype: torch.dtype, compute: Callable[[Data], Results]) -> None:
    """All outputs and gradients that ``compute`` finds."""

    def draw(k: int) -> tuple[Results, Results, Results]:
        data = make(case, dtype, SEED + k)
        there = data.to(dtype)
        got = compute(there)
        with one_thread():
            return got, results(pytorch, there), results(oracle, data)

    check(draw, dtype)


def _run_time() -> dict[str, int]:
    """Nanoseconds of processor time by thread of this process."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/schedstat") as file:
            found[task] = int(file.read().split()[0])
    return found


UNEVEN = [
    # sequences, of unequal lengths: 101 for each direction's share of the threads
    Case(T=5, B=101, I=20, H=33, bidirectional=True, kind="lengths"),
    # units: seven blocks of 16
    Case(T=5, B=7, I=70, H=100, layers=2, bidirectional=True, kind="reset", cells=True),
    Case(T=5, B=19, I=40, H=72, proj=17, kind="packed"),
    # fewer blocks than threads
    Case(T=20, B=11, I=200, H=20),
]


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="reads Linux's /proc")
@pytest.mark.parametrize("case", UNEVEN, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [3, 5, 8])
def test_uneven_shares(count: int, dtype: torch.dtype, case: Case) -> None:
    """Teams of so many threads, on however few cores."""
    teams = []

    def run(data: Data, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        before = _run_time()
        found = fast("cpu")(data, leaves)
        after = _run_time()
        teams.append(sum(after[task] > before.get(task, 0) for task in after))
        return found

    def compute(data: Data) -> Results:
        for _ in range(20):
            found = results(run, data)
            if teams[-1] >= count:
                break
            time.sleep(
                0.45
            )  # after teams that had to wait none is formed for up to 0.4 s (csrc/cpu/threads.cpp)
        return found

    with _threads(count):
        _check_contract(case, dtype, compute)
    assert max(teams) >= count, f"teams of {teams} threads"


@pytest.mark.parametrize("callers", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_call_leaves_the_number_of_threads_alone(count: int, callers: int) -> None:
    """In Python threads whose first use of PyTorch is the call, in others and in those that begin later."""
    case = Case(T=40, B=8, I=64, H=128, layers=2, bidirectional=True)
    numbers = {}
    start = threading.Barrier(callers)

    def call(data: Data) -> Results:
        start.wait()
        found = results(fast("cpu"), data)
        numbers.setdefault("in the caller", []).append(torch.get_num_threads())
        found = results(fast("cpu"), data)
        numbers["in the caller"].append(torch.get_num_threads())
        return found

    def compute(data: Data) -> Results:
        with _threads(count):
            with ThreadPoolExecutor(callers) as pool:
                first, *others = pool.map(call, [data] * callers)
            numbers["elsewhere"] = [torch.get_num_threads()]
            with ThreadPoolExecutor(1) as pool:
                numbers["in a later thread"] = [pool.submit(torch.get_num_threads).result()]
        for other in others:
            assert all(torch.equal(other[name], first[name]) for name in first)
        return first

    _check_contract(case, torch.float32, compute)
    assert all(found == count for of_place in numbers.values() for found in of_place), numbers
