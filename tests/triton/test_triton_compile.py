"""Every Triton kernel, compiled for GPUs that this machine need not have, and what a new length costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[1] / "triton_compile.py"
MESSAGE_BYTES = 16
"""Of local memory: the frame of the function that says that a wait took too long, used by nothing else."""


def compile_for(*arguments: str) -> list[dict[str, Any]]:
    """In a separate process: in this one the kernels may be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


# All plans take minutes a GPU where Triton's cache has none of them: a part of them is compiled here.
# `python tests/triton_compile.py SM` compiles all of any.
SLOW = [
    pytest.param(sm, every, marks=pytest.mark.slow) for sm, every in ((80, 3), (90, 2), (100, 6), (120, 6))
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("sm", "every"), [(90, 20), *SLOW])
def test_every_plan_compiles_and_fits(sm: int, every: int) -> None:
    found = compile_for(str(sm), str(every))
    assert {job["kernel"] for job in found} == {
        *("forward", "forward streamed", "backward", "backward streamed", "previous_hidden", "states")
    }
    assert {job["plan"][0] for job in found if job["plan"]} == {
        "persistent_block",
        "persistent_grid",
        "streaming",
    }

    def waits(job: dict[str, Any]) -> bool:
        return job["plan"] is not None and job["plan"][0] != "persistent_block"

    wrong = [
        job
        for job in found
        if "error" in job
        or job["spilled"]
        or job["stack"] > MESSAGE_BYTES * waits(job)
        or job["shared"] > job["most_shared"]
    ]
    assert not wrong, wrong[:5]


def test_a_new_length_or_batch_compiles_nothing() -> None:
    """Sizes that change from call to call are part of no kernel's signature."""
    for kernel in compile_for("--signatures"):
        numbers = {
            "first_row",
            "first_row_reverse",
            "M",
            "T",
            "B",
            "N",
            "H",
            "s_begin",
            "s_end",
            "n_begin",
            "n_end",
        }
        changing = numbers & set(kernel["arguments"])
        assert {"N", "H"} | (set() if kernel["kernel"] == "states" else {"T", "B"}) <= changing
        assert changing <= set(kernel["not_specialized"]), kernel
        assert not changing & set(kernel["constexprs"]), kernel
