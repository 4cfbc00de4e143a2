"""The command that measures the costs of the parts of a step: all of them, in the order of their table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.calibrate import micro
from bench.roofline.peaks import Roofline
from cnnlstm_fast import _native

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(_native._C is None, reason="without the native part there are no costs")


class Native:
    """A GPU whose exchanges take 100 ns, 2 ns for every group of a block, and 20 ns for every barrier in them."""

    def cuda_block_barrier(self, threads: int) -> float:
        assert threads == 512
        return 20.0

    def micro_exchange(self, cluster: bool, backward: bool, groups: int, blocks: int) -> float:
        assert 1 <= groups <= 8 and (not cluster or blocks <= 8)
        return 100.0 + 2.0 * groups + (20.0 if cluster else 40.0)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: 3.0


def test_every_cost_is_measured() -> None:
    assert _native._C is not None
    gpu = {"multiprocessors": 132, "largest_cluster": 8}
    found = micro.costs(Native(), gpu, Roofline(gemm_bf16=9e14), issue=5000.0)
    names = list(_native._C.gpu_costs("", 90))
    assert sorted(found) == sorted(names)
    assert [found[f"send_{blocks}"] for blocks in micro.CLUSTERS] == pytest.approx([100, 100, 100, 0])
    assert found["word"] == pytest.approx(122) and found["word_turn"] == 0
    assert found["cluster"] == pytest.approx(8 * 512 / 2)  # a group's 512 bytes of each of 8 blocks in 2 ns
    assert found["gemm_16"] == pytest.approx(9e5)
    grid = micro.sweeps(Native(), gpu)["grid, 1 groups a block"]
    assert list(grid) == ["2", "4", "8", "16", "32", "64", "96", "132"]


def test_the_row_has_the_order_of_the_struct() -> None:
    assert _native._C is not None
    names = list(_native._C.gpu_costs("", 90))
    source = (ROOT / "csrc/cuda/plan.h").read_text()
    struct = re.search(r"typedef struct \{([^}]*)\} CnnlstmCosts;", source)
    assert struct is not None
    declared = re.findall(r"double ([^;]+);", struct[1])
    assert [name for line in declared for name in re.split(r",\s*", line)] == names
    row = micro.row("NVIDIA X", {name: k + 0.5 for k, name in enumerate(names)})
    assert row.strip().startswith('{"NVIDIA X", {0.5, 1.5, ') and row.count(",") == len(names) + 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_says_that_there_is_no_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.calibrate.micro"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 3 and done.stderr.startswith("micro: ")


@pytest.mark.gpu
def test_costs_of_this_gpu() -> None:
    native = _native._C
    assert native is not None
    gpu = native.cuda_gpu(0)
    found = micro.costs(native, gpu, Roofline(gemm_f32=5e13, gemm_bf16=8e14), micro.issue_time())
    assert all(
        cost > 0
        for name, cost in found.items()
        if gpu["largest_cluster"] or not name.startswith(("send", "clus"))
    )
