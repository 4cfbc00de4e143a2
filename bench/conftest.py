"""Adds hardware, versions and commit to pytest-benchmark's reports."""

from __future__ import annotations

from typing import Any

import pytest

from bench.cases import SUITES
from bench.measure import environment


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite", choices=SUITES, default="core", help="the rows to measure (%(default)s)")


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # the host's name does not belong in a published report
    machine_info["hardware"] = environment.hardware()
    machine_info["versions"] = environment.versions()


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    commit_info.update(environment.commit())
