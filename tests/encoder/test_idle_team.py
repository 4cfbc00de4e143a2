"""The idle team: OpenMP's threads leave their cores soon after a parallel region."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cnnlstm_fast import _native

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")


def spun() -> float:
    """Milliseconds for which the other threads of this process run after a parallel region of this one: a median."""

    def others() -> int:
        own = str(threading.get_native_id())
        return sum(
            int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[0])
            for task in os.listdir("/proc/self/task")
            if task != own
        )

    def once() -> float:
        torch.ones(1 << 20).add_(1)
        before = others()
        time.sleep(0.03)
        return (others() - before) / 1e6

    return statistics.median(once() for _ in range(9))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.serial
def test_threads_sleep_after_a_parallel_region_while_a_team_exists(two_threads: None) -> None:
    from cnnlstm_fast._guard import IdleTeam

    spinning = spun()
    first, second = IdleTeam(), IdleTeam()
    assert spun() < 0.5 < spinning
    del first
    assert spun() < 0.5
    del second
    assert spun() > 0.5


def test_results_threads_and_forks_with_a_team(two_threads: None) -> None:
    program = """
        import os, threading
        import torch
        from cnnlstm_fast._guard import IdleTeam

        team = IdleTeam()
        x = torch.arange(1 << 20, dtype=torch.float64)
        assert (x + 1).sum() == (1 << 19) * ((1 << 20) + 1)
        teams = []
        threads = [threading.Thread(target=lambda: teams.append(IdleTeam())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(teams) == 4
        child = os.fork()
        if child == 0:
            teams.clear()
            del team
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        teams.clear()
        assert (x + 1).sum() == (1 << 19) * ((1 << 20) + 1)
        libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
        assert len(libraries) <= 1, libraries
        # one team lives on at exit
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
