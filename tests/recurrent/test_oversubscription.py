"""More callers than cores: processes and threads beside each other, and threads that must not run at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from helpers import Case, fast, make, results

from cnnlstm_fast import _native

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")

# Prints the mean seconds of a call of each shape, after a line from the parent that starts the measurement.
TIMED = """
import sys, time, torch, cnnlstm_fast
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
        calls_made = 0
        start = time.perf_counter()
        while time.perf_counter() - start < float(sys.argv[2]):
            layer(x)
            calls_made += 1
        print((time.perf_counter() - start) / calls_made, flush=True)
"""


def means(processes: int, module: str = "cnnlstm_fast", seconds: float = 1.5) -> list[list[float]]:
    """Of each process, the means of both shapes, where so many run at once on the same two cores."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    running = [
        subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-c", TIMED, module, str(seconds)],
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
        return [[float(line) for line in process.communicate(timeout=60)[0].split()] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="pins processes as Linux does")
def test_two_processes_on_the_same_cores_do_not_collapse() -> None:
    """A fair share is twice the time of one process alone; four times leaves room for other work."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    (alone,), together = means(1), means(2)
    for times in together:
        for time, before in zip(times, alone, strict=True):
            assert time < 4 * before


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
