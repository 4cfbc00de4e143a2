"""How the CUDA kernels' work is split: every plan for thousands of sizes on six GPUs, and its expected time."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import spec_of

from cnnlstm_fast import _native
from cnnlstm_fast.recurrent.backends import cuda_plan

pytestmark = pytest.mark.skipif(_native._C is None, reason="without the native part there are no plans")

KB = 1024
SEQUENCES, GROUP, PIECE = 8, 8, 32  # of a batch tile, units of a group, bytes of a piece: csrc/cuda/layout.h
BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}
HIDDEN = (*range(1, 20), 31, 40, 63, 64, 65, 96, 100, 127, 128, 129, 136, 192, 200, 256, 257, 320, 384, 500, 512, 513,
          640, 768, 1000, 1024, 1025, 1536, 2048, 4096)  # fmt: skip
BATCHES = (1, 2, 7, 8, 9, 16, 33, 64, 100, 128, 500, 1024, 5000)


def gpu(sm: int, multiprocessors: int, shared_kb: int, largest_cluster: int, l2_mb: int) -> dict[str, Any]:
    return {
        "sm": sm,
        "multiprocessors": multiprocessors,
        "shared_bytes": shared_kb * KB,
        "largest_cluster": largest_cluster,
        "l2_bytes": l2_mb * KB * KB,
        "measured": False,
        "costs": {} if _native._C is None else _native._C.gpu_costs("a GPU that nobody has", sm),
    }


GPUS = {
    "A100": gpu(80, 108, 163, 0, 40),
    "RTX 3090": gpu(86, 82, 99, 0, 6),
    "RTX 4090": gpu(89, 128, 99, 0, 72),
    "H100": gpu(90, 132, 227, 16, 50),
    "B200": gpu(100, 148, 227, 16, 126),
    "RTX 5090": gpu(120, 170, 99, 8, 96),
}


def plan(
    name: str, H: int, B: int, D: int = 1, compute_type: str = "bfloat16", backward: bool = False
) -> dict[str, Any]:
    return _native._C.plan(GPUS[name], backward, compute_type, H, B, D)


def every_plan(name: str, backward: bool) -> Iterator[tuple[str, int, int, int, dict[str, Any]]]:
    for compute_type, H, B, D in itertools.product(BYTES, HIDDEN, BATCHES, (1, 2)):
        for found in _native._C.plans(GPUS[name], backward, compute_type, H, B, D):
            yield compute_type, H, B, D, found


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", GPUS)
def test_every_plan_fits_its_gpu(name: str, backward: bool) -> None:
    device = GPUS[name]
    algorithms = set()
    for compute_type, H, B, D, p in every_plan(name, backward):
        where = (compute_type, H, B, D, p)
        algorithms.add(p["algorithm"])
        assert p["batch_tiles"] == math.ceil(B / (SEQUENCES * p["batch"])), where
        assert 0 < p["floor_seconds"] <= p["step_seconds"] < 1, where
        if p["algorithm"] == "per_step":
            continue
        warps = p["groups"] * p["splits"]
        assert p["threads"] == 32 * warps <= 512, where
        assert p["blocks"] * p["groups"] * GROUP >= H and not (backward and p["groups"] % 2), where
        assert p["turns"] * p["splits"] * p["tiles"] * PIECE >= H * BYTES[compute_type], where
        assert 0 < p["shared_bytes"] <= device["shared_bytes"], where
        assert p["shared_bytes"] % 16 == 0, where
        assert 1 <= p["tiles_at_once"] <= min(p["batch_tiles"], 65535), where
        if p["algorithm"] == "persistent_block":
            assert p["blocks"] == p["splits"] == 1 and p["tiles"] in (4, 8), where
        else:
            assert p["tiles"] == (4 if p["algorithm"] == "streaming" else 8), where
            assert p["splits"] >= 2 and p["blocks"] >= 2, where
        if p["algorithm"] == "streaming":  # a warp for each 32 cells
            assert 1 <= p["batch"] <= min(4, p["splits"] / 2), where
        else:
            assert p["turns"] == p["batch"] == 1, where
        if p["algorithm"] == "persistent_cluster":
            assert device["sm"] >= 90 and p["blocks"] in (2, 4, 8, 16), where
            assert p["blocks"] <= device["largest_cluster"], where
        if p["algorithm"] in ("persistent_grid", "streaming"):
            assert p["blocks"] * p["tiles_at_once"] * D <= device["multiprocessors"], where
    assert algorithms == {"persistent_block", "persistent_grid", "streaming", "per_step"} | (
        {"persistent_cluster"} if device["largest_cluster"] else set()
    )


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_the_bytes_that_a_plan_asks_for(backward: bool) -> None:
    """Shared memory, packed weights and words of the exchange, recomputed from what the kernels keep there."""
    for compute_type, H, B, D, p in itertools.chain(
        every_plan("H100", backward), every_plan("A100", backward)
    ):
        if p["algorithm"] == "per_step":
            assert p["shared_bytes"] == p["exchange_bytes"] == 0
            continue
        warps, unit = p["groups"] * p["splits"], (4 if backward else 1) * BYTES[compute_type]
        units = p["blocks"] * p["groups"] * GROUP
        read = p["splits"] * p["tiles"] * PIECE * (4 if backward else 1)
        stream = p["algorithm"] == "streaming"
        row = -(-max(read, 0 if stream else units * unit) // 128) * 128 + 16
        tiles = (1 if p["algorithm"] == "persistent_grid" else 2) * SEQUENCES * p["batch"] * row
        of_cell = 32 if stream else 4 * 4 * 4  # gate inputs, c and h; gate inputs of four steps
        ring = 0 if backward else of_cell * p["groups"] * GROUP * SEQUENCES * p["batch"]
        bias = 0 if backward else p["groups"] * GROUP * 4 * 4
        sums = (16 * 16 * 2 if backward else 32 * 8 * 4) * warps if p["splits"] > 1 or backward else 0
        sums *= p["batch"]
        barriers = 16 if p["algorithm"] == "persistent_cluster" else 0
        assert p["shared_bytes"] == tiles + ring + bias + sums + barriers, (compute_type, H, B, D, p)
        words_used = p["algorithm"] in ("persistent_grid", "streaming")
        exchanged = p["batch_tiles"] * p["batch"] * SEQUENCES if words_used else 0
        words = 2 * D * exchanged * units * unit // 4
        packed = D * p["blocks"] * p["turns"] * warps * 32 * 8 * p["tiles"] * 4
        assert p["exchange_bytes"] == packed + 8 * words, (compute_type, H, B, D, p)


def once(places: list[Any]) -> None:
    assert len(places) == len(set(places))


@pytest.mark.parametrize("compute_type", BYTES)
def test_every_weight_lies_in_one_warp_alone(compute_type: str) -> None:
    """By the formulas of csrc/cuda/plan.h: each row and each k of every gate, exactly once."""
    seen = set()
    for H in HIDDEN:
        for p in _native._C.plans(GPUS["H100"], False, compute_type, H, 1, 1):
            shape = (p["groups"], p["splits"], p["tiles"], p["turns"], p["blocks"])
            if p["algorithm"] == "per_step" or (H, shape) in seen:
                continue
            seen.add((H, shape))
            groups, splits, tiles, turns, blocks = shape
            warps = range(groups * splits)
            owned = [((b * groups + w % groups), w // groups) for b in range(blocks) for w in warps]
            once(owned)
            units = {(g * GROUP + lane // 4) for g, _ in owned for lane in range(32)}
            assert units >= set(range(H))
            parts = itertools.product(range(turns), range(splits), range(tiles))
            pieces = [(turn * splits + part) * tiles + piece for turn, part, piece in parts]
            assert pieces == list(range(turns * splits * tiles))
            assert len(pieces) * PIECE // BYTES[compute_type] >= H


@pytest.mark.parametrize("compute_type", BYTES)
def test_every_weight_lies_in_one_warp_alone_on_the_way_back(compute_type: str) -> None:
    seen = set()
    for H in HIDDEN:
        for p in _native._C.plans(GPUS["H100"], True, compute_type, H, 1, 1):
            shape = (p["groups"], p["splits"], p["tiles"], p["turns"], p["blocks"])
            if p["algorithm"] == "per_step" or (H, shape) in seen:
                continue
            seen.add((H, shape))
            groups, splits, tiles, turns, blocks = shape
            # a warp has two groups, and twice the pieces of every second part
            owned = [
                ((b * groups + w % groups) // 2, 2 * (w // groups) + w % groups % 2)
                for b in range(blocks)
                for w in range(groups * splits)
            ]
            once(owned)
            units = {pair * 2 * GROUP + row for pair, _ in owned for row in range(16)}
            assert units >= set(range(H))
            assert {part for _, part in owned} == set(range(2 * splits))
            assert turns * 2 * splits * 2 * tiles * PIECE // BYTES[compute_type] >= 4 * H


@pytest.mark.parametrize("name", GPUS)
def test_launches_cover_the_batch_once(name: str) -> None:
    for compute_type, H, B, D, p in every_plan(name, False):
        begins = range(0, p["batch_tiles"], p["tiles_at_once"])
        tiles = [
            t for first in begins for t in range(first, min(first + p["tiles_at_once"], p["batch_tiles"]))
        ]
        assert tiles == list(range(math.ceil(B / (SEQUENCES * p["batch"])))), (compute_type, H, D, p)


def test_a_batch_larger_than_a_grid_takes_several_launches() -> None:
    p = plan("H100", 64, 8 * 70000)
    assert (p["algorithm"], p["batch_tiles"], p["tiles_at_once"]) == ("persistent_block", 70000, 65535)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", GPUS)
def test_the_way_by_size(name: str, backward: bool) -> None:
    def algorithm(H: int, B: int, compute_type: str = "bfloat16") -> str:
        return plan(name, H, B, compute_type=compute_type, backward=backward)["algorithm"]

    for B in (1, 16, 256):
        assert {algorithm(H, B) for H in (1, 16, 64)} == {"persistent_block"}
        assert {algorithm(H, B, "tf32") for H in (1, 16)} == {"persistent_block"}
        if GPUS[name]["sm"] == 80:
            assert {algorithm(H, B) for H in (65, 100, 128)} == {"persistent_block"}
            assert algorithm(64, B, "tf32") == "persistent_block"
        assert algorithm(4096, B) == "per_step"
    clusters = GPUS[name]["largest_cluster"] > 0
    if clusters:  # the steps of a block of 16 warps take twice as long as those of 16 blocks
        assert {algorithm(H, 8) for H in (100, 128)} == {"persistent_cluster"}
    kept = {"persistent_grid", "streaming"} | ({"persistent_cluster"} if clusters else set())
    assert all(algorithm(H, 8) in kept for H in (129, 200, 256, 384, 512))
    if GPUS[name]["multiprocessors"] >= 108:
        assert all(algorithm(H, 8) in kept for H in (640, 768, 1000, 1024))
    assert algorithm(1024, 4096) == "per_step"


def test_the_cheaper_exchange_is_taken() -> None:
    """The cluster where its sends cost almost nothing, the grid where its words do."""
    for cheap, algorithm in (("send_8", "persistent_cluster"), ("word", "persistent_grid")):
        costs = GPUS["H100"]["costs"] | dict.fromkeys(("send_2", "send_4", "send_8", "send_16", "word"), 1e5)
        found = _native._C.plan(GPUS["H100"] | {"costs": costs | {cheap: 1.0}}, False, "bfloat16", 256, 16, 1)
        assert found["algorithm"] == algorithm
        assert algorithm == "persistent_grid" or found["blocks"] == 8


def test_directions_share_the_gpu() -> None:
    """Two directions of 64 blocks do not run at once on 108 multiprocessors: other blocks, or no grid."""
    one, two = plan("A100", 1024, 8), plan("A100", 1024, 8, D=2)
    assert one["algorithm"] == "persistent_grid" and 2 * one["blocks"] > 108
    assert two["algorithm"] == "per_step" or 2 * two["blocks"] <= 108


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("name", GPUS)
def test_more_work_never_takes_less_time(name: str, backward: bool) -> None:
    for compute_type, D in itertools.product(BYTES, (1, 2)):
        for H in HIDDEN:
            times = [plan(name, H, B, D, compute_type, backward)["step_seconds"] for B in BATCHES]
            assert times == sorted(times), (compute_type, H, D, times)
        for B in BATCHES:
            # sizes that fill their blocks, since a smaller one between them may be split worse; a single block is
            # preferred up to 1.5 times the time
            times = [
                plan(name, H, B, D, compute_type, backward)["step_seconds"]
                for H in (64, 128, 256, 512, 1024, 2048)
            ]
            assert all(a <= 1.5 * b for a, b in itertools.pairwise(times)), (compute_type, B, D, times)
            one, two = (plan(name, 256, B, D, compute_type, backward)["step_seconds"] for D in (1, 2))
            assert one <= two, (compute_type, B)


def test_misuse_raises_a_clear_error() -> None:
    for H, B, D in ((0, 1, 1), (64, 0, 1), (64, 1, 3), (-5, 1, 1), (2**31, 1, 1)):
        with pytest.raises(ValueError, match="H, B, D: expected"):
            _native._C.plan(GPUS["H100"], False, "bfloat16", H, B, D)
    with pytest.raises(ValueError, match="compute_type: expected"):
        _native._C.plan(GPUS["H100"], False, "int8", 64, 1, 1)


def test_a_later_architecture_has_the_costs_of_the_latest_known_one() -> None:
    costs = _native._C.gpu_costs
    assert costs("?", 87) == costs("?", 86) != costs("?", 80)
    assert costs("?", 130) == costs("?", 120)
    assert all(cost > 0 for name, cost in costs("?", 90).items())
    assert {name for name, cost in costs("?", 80).items() if cost == 0} == {
        *("send_2", "send_4", "send_8", "send_16", "cluster")
    }


def test_a_plan_in_words() -> None:
    x = torch.zeros(5, 16, 8, dtype=torch.bfloat16)

    def words(H: int, registers: Any = None, **facts: Any) -> str:
        weights = [torch.zeros(4 * H, k, dtype=torch.bfloat16) for k in (8, H)]
        spec = spec_of(x, None, weights, bias=False)._replace(device="cuda", **facts)
        return cuda_plan.describe(spec, GPUS["H100"], registers)

    found = words(256, grad=False)
    p = plan("H100", 256, 16)
    assert found.startswith(
        f"forward: persistent_cluster, clusters of {p['blocks']} blocks for 8 sequences, {p['threads']} threads a block"
    )
    assert "64 registers of weights" in found and "guessed costs" in found and "backward" not in found
    assert f"{1e6 * p['step_seconds']:.2f} us a step expected" in found
    assert "; backward: " in words(256, grad=True)
    asked = []

    def registers(*what: Any) -> int:
        asked.append(what[1:])
        return 117 + len(asked)

    told = words(256, registers=registers, grad=True)
    assert told.count("118 registers, among them 64") == told.count("119 registers, among them 64") == 1
    assert asked == [(backward, "bfloat16", 256, 16, 1) for backward in (False, True)]
    assert "blocks of one grid for 16 sequences, which read the weights in every step" in words(
        1536, grad=False
    )
    assert words(64, grad=False).startswith("forward: persistent_block, one block for 8 sequences")
    assert words(4096, grad=False, B=None).startswith(
        "forward: per_step, a matrix product of a library and a kernel for the cells"
    )


TOLERANCE = 3.0
"""The expected and the measured time of a step differ at most by this factor."""


@pytest.mark.gpu
@pytest.mark.parametrize("H", [64, 128, 256, 512, 1024])
@pytest.mark.parametrize("B", [1, 16, 128])
def test_expected_times_against_measured_ones(H: int, B: int) -> None:
    """By the difference of two calls, one 1024 steps longer."""
    from cnnlstm_fast import LSTM

    layer = LSTM(64, H, backend="cuda").to("cuda", torch.bfloat16)

    def seconds(T: int) -> float:
        x = torch.randn(T, B, 64, device="cuda", dtype=torch.bfloat16)
        found = math.inf
        for _ in range(8):
            torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.no_grad():
                layer(x)
            torch.cuda.synchronize()
            found = min(found, time.perf_counter() - start)
        return found

    measured = (seconds(1280) - seconds(256)) / 1024
    expected = _native._C.plan(_native._C.cuda_gpu(0), False, "bfloat16", H, B, 1)["step_seconds"]
    assert expected / TOLERANCE < measured < TOLERANCE * expected
