"""How a recurrence is split into programs, and what the tuning command makes of its measurements."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench.calibrate import tune
from cnnlstm_fast.recurrent.backends import triton as backend

backend.kernels()
from cnnlstm_fast.kernels import plan as planning
from cnnlstm_fast.kernels.plan import Device, Plan

GPU = Device("A GPU that nobody has", 90, 132, 232448)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(planning, "TRITON", (3, 7))
    for function in (planning.plan, planning.tuned):
        function.cache_clear()
    yield
    for function in (planning.plan, planning.tuned):
        function.cache_clear()


@pytest.mark.parametrize("factor_bytes", [2, 4, 8])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("H", [1, 16, 17, 64, 100, 128, 200, 512, 1000, 1024, 4096])
def test_all_programs_of_a_grid_run_at_once(H: int, D: int, factor_bytes: int) -> None:
    for B in (1, 7, 16, 33, 128, 5000):
        for plan in planning.candidates(GPU, H, B, D, factor_bytes):
            blocks, tiles, directions = plan.items(H, B, D)
            assert blocks * plan.block_h >= H and tiles * plan.block_b >= B and directions == D
            if plan.algorithm == "persistent_block":
                assert blocks == 1
            else:
                assert math.prod(plan.programs(GPU, H, B, D)) <= GPU.processors


def test_the_algorithm_by_size() -> None:
    block, grid, streaming = "persistent_block", "persistent_grid", "streaming"

    def algorithm(H: int, B: int, factor_bytes: int = 2) -> str:
        return planning.plan(GPU, H, B, 1, factor_bytes).algorithm

    assert [algorithm(H, 8) for H in (16, 64, 128, 256, 1024, 4096)] == [block] * 3 + [grid] * 2 + [streaming]
    assert [algorithm(512, B) for B in (1, 16, 64, 1024)] == [grid, grid, grid, streaming]
    assert algorithm(2047, 1) == streaming
    assert [algorithm(64, 8, factor_bytes) for factor_bytes in (2, 4, 8)] == [block, block, grid]
    assert [algorithm(128, 8, factor_bytes) for factor_bytes in (2, 4, 8)] == [block, grid, grid]


def test_what_a_newer_triton_spills_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    before = planning.candidates(GPU, 1024, 8, 1, 2)
    monkeypatch.setattr(planning, "TRITON", (3, 8))
    after = planning.candidates(GPU, 1024, 8, 1, 2)
    assert (
        [p for p in before if p not in after] == [p for p in before if p.algorithm == "persistent_grid"] != []
    )
    assert planning.candidates(GPU, 512, 8, 1, 2)[0].algorithm == "persistent_grid"


def test_tiles_of_streamed_weights_grow_with_the_work() -> None:
    def tile(H: int, B: int) -> tuple[int, int]:
        plan = planning.plan(GPU, H, B, 1, 2)
        assert plan.algorithm == "streaming"
        return plan.block_h, plan.block_b

    assert [tile(2048, B) for B in (1, 32, 256, 4096)] == [(16, 16), (16, 32), (32, 64), (32, 64)]
    assert tile(2047, 4096) == (16, 16), "an odd row has no wide loads"


def test_the_fastest_is_kept_and_taken_from_the_next_process_on(tmp_path: Path) -> None:
    def measure(size: tune.Size, plan: Plan) -> float:
        return (
            {"persistent_grid": 2.0, "streaming": 1.0}[plan.algorithm] + plan.block_b / 100
            if size[1] == 8
            else 1.0 + (plan.algorithm == "streaming")
        )

    path = planning.cached(GPU.name)
    sizes = [(256, B, 1, torch.bfloat16) for B in (8, 16)]
    found = tune.tune(GPU, sizes, measure, path)
    assert path.is_relative_to(tmp_path) and path.name == "a-gpu-that-nobody-has.json"
    assert {name: plan.algorithm for name, plan in found.items()} == {
        "K=256 B<=8 D=1 bytes=2": "streaming",
        "K=256 B<=16 D=1 bytes=2": "persistent_grid",
    }
    assert planning.plan(GPU, 200, 5, 1, 2).algorithm == "streaming"
    assert planning.plan(GPU, 200, 9, 1, 2).algorithm == "persistent_grid"
    assert planning.plan(GPU, 200, 5, 2, 2).algorithm == "persistent_grid", (
        "never measured: the first that fits"
    )


def test_a_plan_that_does_not_fit_any_more_is_not_taken() -> None:
    path = planning.cached(GPU.name)
    path.parent.mkdir(parents=True)
    wrong = Plan("persistent_grid", 64, 64, 4, 4)
    path.write_text(json.dumps({"plans": {planning.key(256, 8, 1, 2): wrong}}))
    assert planning.plan(GPU, 256, 8, 1, 2) in planning.candidates(GPU, 256, 8, 1, 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled here")
@pytest.mark.parametrize("D", [1, 2])
def test_what_is_measured_is_a_whole_call(D: int) -> None:
    grad_x, grad_h0, grad_c0, grad_weights = tune.call(3, 16, 2, D, torch.float32, "cpu")()
    assert grad_x.shape == (3, 2, 16) and grad_h0.shape == grad_c0.shape == (D, 2, 16)
    assert len(grad_weights) == 2 * D and all(g.shape == (64, 16) for g in grad_weights)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_says_that_there_is_no_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.calibrate.tune"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "0"},
    )
    assert done.returncode == 3 and done.stderr.startswith("tune: PyTorch") and "no NVIDIA GPU" in done.stderr
