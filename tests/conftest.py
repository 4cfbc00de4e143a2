"""What all tests share: the gpu marker, fixed seeds, the CUDA kernels on the CPU, pytest-timeout's setting where it is
missing."""

from __future__ import annotations

import importlib.util
import os
import random
import zlib

import pytest
import torch

if not torch.cuda.is_available():
    # before anything imports Triton: its kernels then run on the CPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

import emulator  # after that: it imports the package

emulator.load()


def pytest_addoption(parser: pytest.Parser) -> None:
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addini("timeout", "ignored: pytest-timeout is not installed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no NVIDIA GPU that this PyTorch can use")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    """A seed of the test's own, so that a test sees the same numbers alone as among all others."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    torch.manual_seed(seed)
    if importlib.util.find_spec("numpy"):
        import numpy

        numpy.random.seed(seed)
