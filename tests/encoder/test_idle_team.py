"""The idle team: OpenMP's threads leave their cores soon after a parallel region."""

from __future__ import annotations

import importlib
import os
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from cnnlstm_fast import _native, optimize
from cnnlstm_fast.encoder.engines import ENGINES
from cnnlstm_fast.encoder.idle_team import end_idle_team, use_idle_team
from cnnlstm_fast.side_by_side import side_by_side

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")


def spun(before: Callable[[], None] = lambda: None) -> float:
    """Milliseconds for which the other threads of this process run after a parallel region of this one: a median.

    Args:
        before: what is called before each region.
    """

    def others() -> int:
        own = str(threading.get_native_id())
        return sum(
            int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[0])
            for task in os.listdir("/proc/self/task")
            if task != own
        )

    def once() -> float:
        before()
        torch.ones(1 << 20).add_(1)
        ran = others()
        time.sleep(0.03)
        return (others() - ran) / 1e6

    return statistics.median(once() for _ in range(9))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.serial
def test_threads_sleep_after_a_parallel_region_while_the_team_lives(two_threads: None) -> None:
    """Until it is ended, or has not been used for 0.2 s."""
    end_idle_team()
    assert spun() > 0.5
    use_idle_team()
    for _ in range(2):
        assert spun(before=use_idle_team) < 0.5
    end_idle_team()
    assert spun() > 0.5
    use_idle_team()
    time.sleep(0.3)
    assert spun() > 0.5
    assert spun(before=use_idle_team) < 0.5, "made again"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "onednn"])
def test_engines_with_threads_of_their_own_use_it(
    engine: str, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the process has more than one thread."""
    if (reason := ENGINES[engine].missing()) is not None:
        pytest.skip(reason)
    uses: list[int] = []
    if engine != "onednn":
        monkeypatch.setattr(
            importlib.import_module(f"cnnlstm_fast.encoder.engines.{engine}"),
            "use_idle_team",
            lambda: uses.append(torch.get_num_threads()),
        )
    x = torch.randn(4, 3, 64, 64)
    for threads in (2, 1):
        torch.set_num_threads(threads)
        model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
        optimize(model, x, encoder=engine)
        uses.clear()
        with torch.no_grad():
            for _ in range(5):
                model(x)
        assert uses == ([] if engine == "onednn" or threads == 1 else [2] * 5)


def test_the_original_model_is_timed_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(
        sys.modules["cnnlstm_fast.side_by_side"], "end_idle_team", lambda: events.append("end")
    )
    side_by_side(
        lambda: events.append("eager"), lambda: events.append("fast"), 0.0, torch.device("cpu"), min_rounds=4
    )
    text = " ".join(events)
    assert text.count("end eager eager") == text.count("end") == text.count("fast fast") == 4


def test_results_threads_and_forks_with_a_team(two_threads: None) -> None:
    run(
        """
        import os, threading, time
        import torch
        from cnnlstm_fast._guard import end_idle_team, use_idle_team

        x = torch.arange(1 << 20, dtype=torch.float64)

        def right():
            return (x + 1).sum() == (1 << 19) * ((1 << 20) + 1)

        def turns():
            for k in range(50):
                use_idle_team() if k % 3 else end_idle_team()

        threads = [threading.Thread(target=turns) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right()
        use_idle_team()
        child = os.fork()
        if child == 0:
            end_idle_team()  # not the parent's
            use_idle_team()
            use_idle_team()
            end_idle_team()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        for pause in (0.0, 0.3):
            time.sleep(pause)
            use_idle_team()
            assert right()
        libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
        assert len(libraries) <= 1, libraries
        # the team lives on at exit
        """
    )


def test_a_team_that_cannot_be_made(two_threads: None) -> None:
    """As where a process may have no more threads: said once, and calls go on."""
    run(
        """
        import resource, sys
        from cnnlstm_fast._guard import use_idle_team

        said = []
        sys.unraisablehook = lambda error: said.append(str(error.exc_value))
        memory = 4096 * int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (memory + (1 << 20), -1))  # less than a thread's stack
        for _ in range(3):
            use_idle_team()
        assert said == ["Resource temporarily unavailable"], said
        """
    )


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
