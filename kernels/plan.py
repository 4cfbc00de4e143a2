"""How a recurrence is split into programs, by its size and the facts of the GPU; never by T."""

from __future__ import annotations

import json
import os
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from ..backends.measured import Gpu


class Device(NamedTuple):
    """The facts of a GPU that a plan depends on."""

    name: str
    capability: int  # 90 for compute capability 9.0
    processors: int
    shared: int  # bytes of shared memory that one program may have


INTERPRETER = Device("Triton's interpreter", 0, 1, 0)
"""Programs run one after the other there, so none may wait for another, and large ones are the fastest."""


class Plan(NamedTuple):
    """The constexprs of a launch, see ``forward.py``."""

    way: str  # block, grid, stream or steps
    block_h: int
    block_b: int
    forward_warps: int
    backward_warps: int

    def chains(self, H: int) -> int:
        """So many sums of a step's product of the forward pass run beside each other. One alone would be a chain of
        products that wait for each other."""
        return min(4, max(1, power_of_two(H) // 128)) if self.way == "grid" else 1

    @property
    def waits(self) -> bool:
        """Whether its programs wait for each other."""
        return self.way in ("grid", "stream")

    def block_k(self, H: int, number: int) -> int:
        """Numbers of K that are multiplied at once: all, or of streamed weights 128 bytes."""
        return max(16, 128 // number) if self.way == "stream" else power_of_two(H)

    def programs(self, H: int, B: int, D: int) -> tuple[int, int, int]:
        return -(-H // self.block_h), -(-B // self.block_b), D


@lru_cache
def device_of(index: int | None) -> Device:
    """The facts of a CUDA device, of the interpreter for None."""
    if index is None:
        return INTERPRETER
    p = torch.cuda.get_device_properties(index)
    return Device(p.name, 10 * p.major + p.minor, p.multi_processor_count, p.shared_memory_per_block_optin)


def power_of_two(H: int) -> int:
    """H rounded up to a power of two that a product takes, 16 or more."""
    return max(16, 1 << (H - 1).bit_length())


def candidates(device: Device, H: int, B: int, D: int, number: int) -> list[Plan]:
    """The plans that fit, for the forward and the backward pass alike; the first is taken where nothing was measured.

    "block" as long as a program can hold all weights, "grid" as long as all programs run at once with a part of them
    each, "stream" as long as they run at once, "steps" always. The bounds are those within which the compiler needs
    no memory for registers and the shared memory suffices; ``tests/test_triton_compile.py`` compiles every plan for
    several GPUs.

    Args:
        number: bytes that a number takes as a factor, see ``precision.size``.
    """
    K = power_of_two(H)
    if device is INTERPRETER:
        return [Plan("block", K, 64, 4, 4)]
    found = []
    weights = 4 * K * K * number
    if weights <= (96 if number == 8 else 128) * KB and weights + 24 * KB <= device.shared:
        warps = 8 if K >= 128 or K * number >= 256 else 4
        found.append(Plan("block", K, 8, warps, warps))
    room = min(device.shared, (96 if number == 8 else 192) * KB)
    for block_b in (8, 16) if number == 2 else (8,):
        weights, state = 4 * 16 * K * number, K * block_b * number
        warps = 8 if K >= 128 else 4
        # forward one for every 16 x 8 numbers of the four gates: more would compute the same numbers twice, but are
        # needed to load many weights
        few = weights <= (64 if number == 2 else 32) * KB
        made = Plan("grid", 16, block_b, block_b // 2 if few else warps, warps)
        blocks, tiles, _ = made.programs(H, B, D)
        # the backward pass takes in the gradients of all four gates, an odd H one number at a time
        fits = weights + 4 * state <= room and (H % 2 == 0 or K < 1024)
        if blocks * tiles * D <= device.processors and fits:
            found.append(made)
    for block_h, block_b in ((16, 16), (16, 32), (32, 16)):
        made = Plan("stream", block_h, block_b, 8, 8)
        blocks, tiles, _ = made.programs(H, B, D)
        if blocks * tiles * D <= device.processors and H % 8 == 0:  # else loads of a few bytes
            found.append(made)
            break  # more programs read the weights faster
    return [*found, Plan("steps", 16, 32, 4, 8 if H % 2 else 4)]


@lru_cache(maxsize=4096)
def plan(device: Device, H: int, B: int, D: int, number: int) -> Plan:
    """The fastest of the candidates where ``tune`` measured them for this size, else the first."""
    possible = candidates(device, H, B, D, number)
    best = tuned(device.name).get(key(H, B, D, number))
    return best if best in possible else possible[0]


def key(H: int, B: int, D: int, number: int) -> str:
    """What stands for a size in a table: calls alike in it share a plan."""
    return f"K={power_of_two(H)} B<={1 << (max(B, 1) - 1).bit_length()} D={D} bytes={number}"


@cache
def tuned(name: str) -> dict[str, Plan]:
    """What was measured on GPUs of that name: the table that is shipped, and over it the one of this machine's user."""
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
