"""How a recurrence is split into programs, by its size and the properties of the GPU; never by T."""

from __future__ import annotations

import json
import math
import os
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from ..recurrent.backends.measured import Gpu

TRITON = tuple(map(int, triton.__version__.split(".")[:2]))


class Device(NamedTuple):
    """The properties of a GPU that a plan depends on."""

    name: str
    capability: int  # 90 for compute capability 9.0
    processors: int
    shared: int  # bytes of shared memory that one program may have


INTERPRETER = Device("Triton's interpreter", 0, 1, 0)
"""Programs run one after the other there, so none may wait for another, and large ones are the fastest."""


class Plan(NamedTuple):
    """The constexprs of a launch, see ``forward.py``."""

    algorithm: str  # persistent_block, persistent_grid or streaming
    block_h: int
    block_b: int
    forward_warps: int
    backward_warps: int

    def forward(self, H: int, factor_bytes: int) -> dict[str, Any]:
        """What the kernel of the forward pass is compiled for, beside the blocks."""
        if self.algorithm == "streaming":
            return _streamed(4 * self.block_h + self.block_b, factor_bytes)
        # independent partial sums: a single one would be a chain of dependent products
        chains = min(4, max(1, power_of_two(H) // 128)) if self.algorithm == "persistent_grid" else 1
        return dict(ALGORITHM=self.algorithm, BLOCK_K=power_of_two(H), CHAINS=chains)

    def backward(self, H: int, factor_bytes: int) -> dict[str, Any]:
        """The same of the backward pass."""
        if self.algorithm == "streaming":
            return _streamed(self.block_h + self.block_b, factor_bytes)
        return dict(ALGORITHM=self.algorithm, BLOCK_K=power_of_two(H), PARTS=self.backward_warps)

    @property
    def waits(self) -> bool:
        """Whether its programs wait for each other."""
        return self.algorithm != "persistent_block"

    def items(self, H: int, B: int, D: int) -> tuple[int, int, int]:
        """What a step consists of: unit blocks, batch tiles, directions."""
        return -(-H // self.block_h), -(-B // self.block_b), D

    def programs(self, device: Device, H: int, B: int, D: int) -> tuple[int, ...]:
        """The grid of a launch: a program for each item, or with streaming programs that loop over their share."""
        items = self.items(H, B, D)
        return (min(math.prod(items), device.processors),) if self.algorithm == "streaming" else items


@lru_cache
def device_of(index: int | None) -> Device:
    """The properties of a CUDA device, of the interpreter for None."""
    if index is None:
        return INTERPRETER
    p = torch.cuda.get_device_properties(index)
    return Device(p.name, 10 * p.major + p.minor, p.multi_processor_count, p.shared_memory_per_block_optin)


def power_of_two(H: int) -> int:
    """H rounded up to a power of two that a product takes, 16 or more."""
    return max(16, 1 << (H - 1).bit_length())


def _streamed(rows: int, factor_bytes: int) -> dict[str, int]:
    """How much of each row is multiplied at once, and in how many stages it is loaded: enough bytes in flight for 64
    bytes a cycle at an L2 latency of 500 cycles."""
    block_k = power_of_two(-(-max(128, 8 * KB // rows) // factor_bytes))
    return dict(BLOCK_K=block_k, STAGES=max(3, 1 - -32 * KB // (rows * block_k * factor_bytes)))


def candidates(device: Device, H: int, B: int, D: int, factor_bytes: int) -> list[Plan]:
    """The plans that fit, for the forward and the backward pass alike; the first is taken where nothing was measured.

    "persistent_block" as long as a program can hold all weights; else "persistent_grid" as long as all programs run at
    once with a part of them each, and "streaming". The bounds are those within which the compiler spills no registers
    and the shared memory suffices; ``tests/triton/test_triton_compile.py`` compiles every plan for several GPUs.

    Args:
        factor_bytes: bytes of a value as a factor of a product, see ``precision.size``.
    """
    K = power_of_two(H)
    if device is INTERPRETER:
        return [Plan("persistent_block", K, 64, 4, 4)]
    weights = 4 * K * K * factor_bytes
    if weights <= (96 if factor_bytes == 8 else 128) * KB and weights + 24 * KB <= device.shared:
        warps = 8 if K >= 128 or K * factor_bytes >= 256 else 4
        return [Plan("persistent_block", K, 8, warps, warps)]
    found = []
    room = min(device.shared, (96 if factor_bytes == 8 else 192) * KB)
    for block_b in (8, 16) if factor_bytes == 2 else (8,):
        weights, state = 4 * 16 * K * factor_bytes, K * block_b * factor_bytes
        warps = 8 if K >= 128 else 4
        # forward one for every 16 x 8 values of the four gates: more would compute the same values twice, but are
        # needed to load many weights
        few = weights <= (64 if factor_bytes == 2 else 32) * KB
        made = Plan("persistent_grid", 16, block_b, block_b // 2 if few else warps, warps)
        # the backward pass takes in the gradients of all four gates, and an odd H makes it store one value at a time
        fits = weights + 4 * state <= room and (H % 2 == 0 or K < 1024)
        if math.prod(made.items(H, B, D)) <= device.processors and fits:
            found.append(made)
    streamed = [Plan("streaming", *tile, 8, 8) for tile in tiles(H)]
    found, streamed = (
        [made for made in plans if not spills(device, made, K, factor_bytes)] for plans in (found, streamed)
    )
    streamed.sort(key=lambda plan: stream_reads(plan, device, H, B, D))
    return found + streamed[:2]


def spills(device: Device, plan: Plan, K: int, factor_bytes: int) -> bool:
    """Whether a plan within the bounds spills all the same: Triton 3.8 compiles some to more registers than 3.7."""
    if TRITON < (3, 8):
        return False
    if plan.algorithm == "streaming":
        return device.capability < 90 and factor_bytes == 4 and plan.block_h * plan.block_b > 32 * 32
    many = 4 * plan.block_h * K * factor_bytes > 96 * KB or (factor_bytes == 8 and device.capability >= 100)
    return device.capability >= 90 and plan.block_b == 8 and many


def tiles(H: int) -> list[tuple[int, int]]:
    """block_h and block_b of streamed plans that fit."""
    if H % 4:  # values are loaded one or two at a time, a register each
        return [(16, 16)]
    return [(16, 16), (16, 32), (32, 16), (32, 32), *([] if H % 8 else [(32, 64)])]


def stream_reads(plan: Plan, device: Device, H: int, B: int, D: int) -> int:
    """What a program reads in a step, in rows of H values: forward 4 block_h + block_b for an item, backward four times
    block_h + block_b. Streamed weights are limited by L2."""
    items, programs = math.prod(plan.items(H, B, D)), math.prod(plan.programs(device, H, B, D))
    return -(-items // programs) * (8 * plan.block_h + 5 * plan.block_b)


@lru_cache(maxsize=4096)
def plan(device: Device, H: int, B: int, D: int, factor_bytes: int) -> Plan:
    """The fastest of the candidates where ``tune`` measured them for this size, else the first."""
    possible = candidates(device, H, B, D, factor_bytes)
    best = tuned(device.name).get(key(H, B, D, factor_bytes))
    return best if best in possible else possible[0]


def key(H: int, B: int, D: int, factor_bytes: int) -> str:
    """The key of a size in a table: calls with the same key share a plan."""
    return f"K={power_of_two(H)} B<={1 << (max(B, 1) - 1).bit_length()} D={D} bytes={factor_bytes}"


@cache
def tuned(name: str) -> dict[str, Plan]:
    """What was measured on GPUs of that name: the table that is shipped, overridden by the user's own."""
    found: dict[str, Plan] = {}
    for path in (SHIPPED / Gpu(name).file, cached(name)):
        if path.exists():
            found |= {key: Plan(*plan) for key, plan in json.loads(path.read_text())["plans"].items()}
    return found


def cached(name: str) -> Path:
    """Where ``tune`` keeps what it measured."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "cnnlstm_fast" / "triton" / Gpu(name).file


KB = 1024
SHIPPED = Path(__file__).parent / "tables"
