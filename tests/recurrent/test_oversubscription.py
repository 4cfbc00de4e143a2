"""More callers than cores: processes and threads beside each other, and threads that must not run at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import NamedTuple

import pytest
import torch
from helpers import Case, fast, make, results

from cnnlstm_fast import _native

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")

# Prints for each shape the mean seconds of a call, the processor time of all other threads over the caller's own, and
# PyTorch's number of threads at the end, after a line from the parent that starts the measurement.
TIMED = """
import os, sys, time, torch, cnnlstm_fast

def run_time():  # nanoseconds of processor time by thread
    found = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/schedstat") as file:
            found[task] = int(file.read().split()[0])
    return found

torch.set_num_threads(2)
calls = []
for T, B, I, H in ((16, 1, 512, 256), (100, 32, 64, 128)):
    make = torch.nn.LSTM if sys.argv[1] == "nn.LSTM" else lambda I, H: cnnlstm_fast.LSTM(I, H, backend="cpu")
    calls.append((make(I, H).eval(), torch.randn(T, B, I)))
with torch.inference_mode():
    for layer, x in calls * 3:
        layer(x)
    print("ready", flush=True)
    sys.stdin.readline()
    for layer, x in calls:
        calls_made, before, start = 0, run_time(), time.perf_counter()
        while time.perf_counter() - start < float(sys.argv[2]):
            layer(x)
            calls_made += 1
        mean = (time.perf_counter() - start) / calls_made
        used = {task: time - before.get(task, 0) for task, time in run_time().items()}
        own = used[str(os.getpid())]
        print(mean, (sum(used.values()) - own) / own, torch.get_num_threads(), flush=True)
"""


class Measured(NamedTuple):
    """Calls of one shape in one process. ``others``: processor time of all other threads over that of the caller."""

    seconds: float
    others: float
    threads: int


def measure(
    processes: int, cores: int = 2, module: str = "cnnlstm_fast", seconds: float = 1.5
) -> list[list[Measured]]:
    """Of each process both shapes, where so many processes run at once on the same cores."""
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    running = [
        subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, chosen)), sys.executable, "-c", TIMED, module, str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    try:
        for process in running:
            assert process.stdout.readline() == "ready\n"
        for process in running:
            process.stdin.write("go\n")
            process.stdin.flush()
        lines = [process.communicate(timeout=60)[0].splitlines() for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [
        [
            Measured(float(time), float(others), int(threads))
            for time, others, threads in map(str.split, found)
        ]
        for found in lines
    ]


linux = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or not os.path.exists("/proc/self/schedstat"),
    reason="pins processes as Linux does, and reads its /proc",
)


@pytest.mark.slow
@pytest.mark.serial
@linux
def test_two_processes_on_the_same_cores_do_not_collapse() -> None:
    """A fair share is twice the time of one process alone; four times leaves room for other work. So the time tells a
    collapse (nn.LSTM: 200 times) but not one thread from two, which are up to 3.4 times as slow here."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    (before,), together = measure(1), measure(2)
    for found in together:
        for now, alone in zip(found, before, strict=True):
            assert now.seconds < 4 * alone.seconds


@pytest.mark.slow
@pytest.mark.serial
@linux
def test_calls_on_two_threads_run_alone_on_one_core() -> None:
    """In the first shape two threads meet after every step: soon none but the caller runs. Other work on the machine
    makes that only likelier. In the second they meet at the end alone, and may go on."""
    ((first, second),) = measure(1, cores=1)
    assert first.others < 0.4, f"other threads took {first.others:.2f} of the caller's time"
    assert first.threads == second.threads == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_callers_at_once_train_as_each_alone(dtype: torch.dtype) -> None:
    """Eight threads, each of which asks for a team of its own; outputs and all gradients."""
    kinds = ["padded", "lengths", "packed", "reset"]
    cases = [
        Case(5 + k, 3 + k, 16, 48, layers=2, bidirectional=k % 2 == 0, kind=kinds[k % 4]) for k in range(8)
    ]
    data = [make(case, dtype).to(dtype) for case in cases]
    want = [results(fast("cpu"), d) for d in data]
    wrong: list[str] = []
    start = threading.Barrier(8)

    def work(k: int) -> None:
        try:
            start.wait()
            for _ in range(5):
                found = results(fast("cpu"), data[k])
                wrong.extend(f"{cases[k]}: {n}" for n in want[k] if not torch.equal(found[n], want[k][n]))
        except Exception as error:
            wrong.append(f"{cases[k]}: {error!r}")

    threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a caller hangs"
    assert not wrong


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads Linux's /proc")
def test_other_threads_stand_still_where_one_was_asked_for() -> None:
    """After calls on two threads, one thread is asked for: the pool of the earlier calls uses no more time."""
    code = """
import os, time, torch, cnnlstm_fast

def used():  # seconds of processor time by thread
    seconds = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        seconds[task] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds

layer = cnnlstm_fast.LSTM(64, 128, 2, bidirectional=True, backend="cpu")
x = torch.randn(40, 32, 64)
torch.set_num_threads(2)
with torch.no_grad():
    layer(x)
torch.set_num_threads(1)
time.sleep(0.5)  # while a thread of the pool may still wait for more work
before, end = used(), time.perf_counter() + 2
with torch.no_grad():
    while time.perf_counter() < end:
        layer(x)
after = used()
own = str(os.getpid())
print(after[own] - before[own], sum(after[t] - before.get(t, 0.0) for t in after if t != own))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    own, others = map(float, done.stdout.split())
    assert own > 0.2, done.stderr
    assert others < 0.1 * own
