"""The Triton kernels, interpreted where there is no GPU: every algorithm, in addition to the tests of all backends
(test_backends.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers import DEVICES, Case, check_case, nan_memory

pytest.importorskip("triton")

from cnnlstm_fast.recurrent.backends import triton as backend

backend.kernels()
from cnnlstm_fast.kernels import plan, recurrence, sequence  # after the folder has been found

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# More units than a program has, more sequences than a tile, and sizes that fill neither.
PLANS = {
    "persistent_block": lambda H: plan.Plan("persistent_block", plan.power_of_two(H), 16, 4, 4),
    "persistent_grid": lambda H: plan.Plan("persistent_grid", 16, 16, 4, 4),
    "persistent_grid of wide tiles": lambda H: plan.Plan("persistent_grid", 32, 32, 4, 4),
    "streaming": lambda H: plan.Plan("streaming", 16, 16, 4, 4),
    "streaming of uneven tiles": lambda H: plan.Plan("streaming", 32, 16, 4, 4),
}

CASES = [
    Case(T=5, B=3, I=7, H=40, bidirectional=True),
    Case(T=4, B=18, I=5, H=33, layers=2, states=False),
    Case(T=6, B=5, I=5, H=17, layers=2, bidirectional=True, kind="packed"),
    Case(T=6, B=5, I=5, H=35, bidirectional=True, kind="lengths", cells=True),
    Case(T=6, B=19, I=5, H=20, bidirectional=True, kind="lengths+reset", bias=False),
    Case(T=5, B=4, I=5, H=36, bidirectional=True, kind="reset", layout="nchw"),
    Case(T=6, B=5, I=5, H=24, proj=7, bidirectional=True, kind="lengths+reset"),
    Case(T=6, B=5, I=5, H=24, proj=9, layers=2, bidirectional=True, kind="packed"),
    Case(T=1, B=1, I=3, H=1),
]


@pytest.fixture(autouse=True)
def _nan_memory():
    with nan_memory():
        yield


@pytest.mark.sampled(7)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", PLANS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_algorithm(
    case: Case, algorithm: str, dtype: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrence, "plan", lambda device, H, *_: PLANS[algorithm](H))
    if algorithm == "persistent_grid of wide tiles":
        # as many independent sums as only large sizes have
        found = plan.Plan.forward
        monkeypatch.setattr(
            plan.Plan,
            "forward",
            lambda self, H, factor_bytes: (
                found(self, H, factor_bytes) | {"CHAINS": min(4, plan.power_of_two(H) // 16)}
            ),
        )
    check_case(case, "triton", DTYPES[dtype], device)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("algorithm", PLANS)
@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_gate_inputs_in_chunks(
    case: Case, algorithm: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps at a time: the states pass from launch to launch, and sequences end in any of them."""
    seen = []
    chunks = sequence.Sequence.chunks

    def noted(self: sequence.Sequence, D: int, rows: int) -> Iterator[sequence.Chunk]:
        for chunk in chunks(self, D, rows):
            seen.append(chunk)
            yield chunk

    monkeypatch.setattr(sequence.Sequence, "chunks", noted)
    monkeypatch.setattr(recurrence, "plan", lambda device, H, *_: PLANS[algorithm](H))
    D = 2 if case.bidirectional else 1
    monkeypatch.setattr(recurrence, "MOST_GATE_INPUTS", 2 * case.B * 16 * case.H * D)
    check_case(case, "triton", torch.float32, device)
    assert {chunk.end - chunk.begin for chunk in seen} == ({2, 1} if case.T % 2 else {2})
