"""Instruction sets other than the machine's best, each in a process of its own since the choice is made once there.

float32 is in test_backends.py, the integers themselves are in test_int8.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnnlstm_fast import _native

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")

CPU = _native.facts()["cpu"] if _native.available else {"isas": [], "active_isa": ""}
OTHER_ISAS = [isa for isa in CPU["isas"] if isa != CPU["active_isa"]]
HERE = Path(__file__).parent


def _passes(isa: str, file: str, expression: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", str(HERE / file), "-k", expression],
        env={**os.environ, "CNNLSTM_CPU_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_bfloat16(isa: str) -> None:
    """The chosen cases by the contract."""
    _passes(isa, "test_backends.py", "test_chosen_case and cpu-bfloat16-cpu")


@pytest.mark.slow
@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_int8(isa: str) -> None:
    """All that test_int8.py asks for but what spawns processes."""
    _passes(isa, "test_int8.py", "not instruction_set")


@pytest.mark.slow
@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_kept_weights(isa: str) -> None:
    """Each instruction set has its own panels and its own sum over the weights."""
    _passes(isa, "test_prepacked.py", "large or swapped or every_size")
