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


def _check_contract(
    case: Case, dtype: torch.dtype, compute: Callable[[Data], Results], backward: bool = True
) -> None:
    """All outputs and gradients that ``compute`` finds."""

    def draw(k: int) -> tuple[Results, Results, Results]:
        data = make(case, dtype, SEED + k)
        there = data.to(dtype)
        got = compute(there)
        with one_thread(), torch.set_grad_enabled(backward):
            return got, results(pytorch, there, backward), results(oracle, data, backward)

    check(draw, dtype)


def _run_time() -> dict[str, int]:
    """Nanoseconds of processor time by thread of this process."""
    found = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/schedstat") as file:
            found[task] = int(file.read().split()[0])
    return found


# Each with the most threads that can have a part of its forward pass, with AVX-512's 16 units and 12 rows a thread; of
# narrower vectors there are more.
MANY = [
    # sequences of unequal lengths
    (Case(T=5, B=203, I=20, H=33, bidirectional=True, kind="lengths"), 32),
    # units in shares of unequal size, of one or two blocks
    (Case(T=5, B=7, I=70, H=130, layers=2, bidirectional=True, kind="reset", cells=True), 18),
    (Case(T=5, B=19, I=40, H=72, proj=17, kind="packed"), 5),
    (Case(T=20, B=11, I=200, H=20), 2),
    # weights of a direction that exceed L2: all threads share each direction, one after the other
    (Case(T=3, B=4, I=30, H=420, bidirectional=True), 27),
]
PAUSE = 0.45  # seconds: after teams that had to wait none is formed for up to 0.4 (csrc/cpu/threads.cpp)


@pytest.mark.sampled(7)
@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="reads Linux's /proc")
@pytest.mark.parametrize(("case", "most"), MANY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("count", [3, 4, 7, 8, 16])
def test_more_threads(count: int, training: bool, dtype: torch.dtype, case: Case, most: int) -> None:
    """Teams of so many threads, on however few cores."""
    teams = []

    def run(data: Data, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        """The first call in inference notes the weights, the second one packs them, the third one reads that."""
        for call in range(20):
            before = _run_time()
            found = fast("cpu")(data, leaves)
            after = _run_time()
            teams.append(sum(after[task] > before.get(task, 0) for task in after))
            if teams[-1] >= min(count, most) and (training or call >= 2):
                break
            time.sleep(PAUSE)
        time.sleep(PAUSE if training else 0)  # so that the backward pass has a team
        return found

    def compute(data: Data) -> Results:
        with torch.set_grad_enabled(training):
            return results(run, data, training)

    with _threads(count):
        _check_contract(case, dtype, compute, training)
    assert max(teams) >= min(count, most), f"teams of {teams} threads"


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="reads Linux's /proc")
def test_threads_without_a_part_of_the_work_are_not_in_the_team() -> None:
    """They would only wait, at every step. 20 units are at most 5 blocks."""
    data = make(Case(T=40, B=11, I=200, H=20), torch.float32).to(torch.float32)
    with _threads(16), torch.no_grad():
        for _ in range(2):  # at the first call threads of earlier teams end
            time.sleep(PAUSE)
            before = _run_time()
            results(fast("cpu"), data, backward=False)
            after = _run_time()
    assert sum(after[task] > before.get(task, 0) for task in after) <= 5


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
