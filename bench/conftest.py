"""What pytest-benchmark's reports carry beyond its own."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cases import SUITES
from bench.measure import environment


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite", choices=SUITES, default="core", help="whose rows to measure")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # whose machine it was is nobody's business
    machine_info["hardware"] = environment.hardware()
    machine_info["versions"] = environment.versions()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    commit_info.update(environment.commit())
