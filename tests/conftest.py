"""What all tests share: the tiers, the gpu marker, fixed seeds, the CUDA kernels on the CPU, settings of plugins."""

from __future__ import annotations

import importlib.util
import os
import random
import time
import zlib
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    # before anything imports Triton: its kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The choices of auto must not depend on what this machine is doing now, or once was measured to do: also in the
# processes that tests start.
os.environ["CNNLSTM_CALIBRATE"] = "0"

import emulator  # after that: they import the package
import helpers

emulator.load()

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core to itself. What a test needs of threads it sets.
    torch.set_num_threads(1)

if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    for profile, max_examples in (("fast", 100), ("slow", 700)):
        settings.register_profile(
            profile,
            max_examples=max_examples,
            deadline=None,
            derandomize=False,
            database=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
    settings.load_profile("fast")  # --hypothesis-profile=slow chooses the other one


def pytest_addoption(parser: pytest.Parser) -> None:
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addini("timeout", "ignored: pytest-timeout is not installed")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="no NVIDIA GPU that this PyTorch can use")
    seen: Counter[str] = Counter()
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip)
        elif (sampled := item.get_closest_marker("sampled")) and left_to_slow_tier(
            item, *sampled.args, seen=seen
        ):
            item.add_marker(pytest.mark.slow)


def left_to_slow_tier(item: pytest.Item, n: int, which: str = "all", *, seen: Counter[str]) -> bool:
    """Whether a case of a test marked ``sampled(n)`` is not an n-th one, in the order of collection."""
    if which == "interpreted":
        if item.callspec.params["backend"] not in helpers.INTERPRETED:  # type: ignore[attr-defined]
            return False
    elif which != "all":
        raise pytest.UsageError(f"{item.nodeid}: sampled(n) or sampled(n, 'interpreted'), got {which!r}.")
    test = item.nodeid.partition("[")[0]
    seen[test] += 1
    return (seen[test] - 1) % n > 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    try:
        return (yield)
    except Exception as error:
        if "could not create a primitive descriptor for the LSTM" in str(error):
            helpers.require_autocast()
        raise


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """After an error that the GPU does not forget, every later test of the process would fail: pytest-xdist starts
    another worker instead. The report of the test has been sent by then."""
    if "gpu" in item.keywords and torch.cuda.is_available() and "PYTEST_XDIST_WORKER" in os.environ:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            time.sleep(0.5)  # a thread of its own sends it
            os._exit(1)


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    """A seed of the test's own, so that a test sees the same numbers alone as among all others."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    torch.manual_seed(seed)
    if importlib.util.find_spec("numpy"):
        import numpy

        numpy.random.seed(seed)
