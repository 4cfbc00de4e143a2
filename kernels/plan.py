"""How a recurrence is split into programs, by its size and the facts of the GPU; never by T."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch


class Device(NamedTuple):
    """The facts of a GPU that a plan depends on."""

    name: str
    capability: int  # 90 for compute capability 9.0
    processors: int
    shared: int  # bytes of shared memory that one program may have


INTERPRETER = Device("Triton's interpreter", 0, 132, 232448)
"""Programs run one after the other there, so none may wait for another."""


class Plan(NamedTuple):
    """The constexprs of a launch, see ``forward.py``."""

    way: str  # block, grid or steps
    block_h: int
    block_b: int
    num_warps: int

    def programs(self, H: int, B: int, D: int) -> tuple[int, int, int]:
        return -(-H // self.block_h), -(-B // self.block_b), D


@lru_cache
def device_of(index: int | None) -> Device:
    """The facts of a CUDA device, of the interpreter for None."""
    if index is None:
        return INTERPRETER
    p = torch.cuda.get_device_properties(index)
    return Device(
        p.name, 10 * p.major + p.minor, p.multi_processor_count, p.shared_memory_per_block_optin
    )


def power_of_two(H: int) -> int:
    """H rounded up to a power of two that a product takes, 16 or more."""
    return max(16, 1 << (H - 1).bit_length())


@lru_cache(maxsize=4096)
def plan(device: Device, H: int, B: int, D: int, itemsize: int) -> Plan:
    """The same for the forward and the backward pass.

    "block" as long as a program can hold all weights, "grid" as long as all programs run at once with a part of them
    each, else "steps".
    """
    K = power_of_two(H)
    if 4 * K * K * itemsize <= BLOCK_BYTES:
        return Plan("block", K, 16, 8 if K * itemsize >= 256 else 4)
    for block_b in (16, 32, 64):
        for block_h in (16, 32, 64):
            made = Plan("grid", block_h, block_b, 4 if block_h * block_b <= 512 else 8)
            blocks, tiles, _ = made.programs(H, B, D)
            weights, state = 4 * block_h * K * itemsize, K * block_b * itemsize
            if blocks * tiles * D <= device.processors and weights + state <= device.shared:
                return made
    return Plan("steps", 32, 32, 4)


BLOCK_BYTES = 4 * 128 * 128 * 2
"""Weights of one direction that the registers and the shared memory of one processor hold beside all else."""
