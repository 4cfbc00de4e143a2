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
    _passes(isa, "test_prepacked.py", "write_past_autograd or late_in")


SEQUENCES = """
import hashlib, torch, cnnlstm_fast
torch.manual_seed(0)
# no multiples of 64 features, which AMX would take
for T, B, I, H in ((1, 1, 5, 3), (40, 9, 37, 50), (12, 3, 700, 72), (7, 40, 100, 150)):
    layer = cnnlstm_fast.LSTM(I, H, 2, bidirectional=True, backend="cpu-int8")
    with torch.no_grad():
        output, (_, c_n) = layer(torch.randn(T, B, I))
    print(hashlib.sha256(output.numpy().tobytes() + c_n.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_int8_has_the_same_bits_with_avx2_and_avx512() -> None:
    """The integers are exact and the rest is the same FMAs for each element, in vectors of 8 or of 16. (The portable
    kernels round between product and sum: test_int8.py compares their single steps.)"""
    isas = [isa for isa in CPU["isas"] if isa != "portable"]
    if len(isas) < 2:
        pytest.skip("needs AVX-512")
    found = [
        subprocess.run(
            [sys.executable, "-c", SEQUENCES],
            env={
                **os.environ,
                "CNNLSTM_CPU_ISA": isa,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=110,
        ).stdout.split()
        for isa in isas
    ]
    assert len(found[0]) == 4 and found[0] == found[1]
