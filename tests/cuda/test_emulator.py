"""The machine that runs CUDA kernels on a CPU: the tests of csrc/tests/emulator_*.cpp, one at a time."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "build" / "emulator" / "emulator_test"
SOURCES = sorted((ROOT / "csrc" / "tests").glob("emulator_*.cpp"))
NAMES = [name for source in SOURCES for name in re.findall(r"^TEST\((\w+)\)", source.read_text(), re.M)]

pytestmark = pytest.mark.skipif(
    not PROGRAM.exists(), reason="build/emulator/emulator_test is not there: make test builds it"
)


@pytest.mark.parametrize("name", NAMES)
def test_machine(name: str) -> None:
    done = subprocess.run([PROGRAM, name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_program_knows_what_it_does_not_have() -> None:
    done = subprocess.run([PROGRAM, "no_such_test"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "There is no test no_such_test.\n")
