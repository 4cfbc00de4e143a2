"""The barrier between programs that exchange the result of a step, by a counter in global memory.

The exchange alternates between two planes: a step reads one and writes the other. A program waits for all others
before it reads, so that none of them can still be reading the plane that it writes afterwards.
``tests/triton/test_triton_barrier.py`` checks every order in which programs can run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arrive(arrivals):
    """Signals to the programs that share the counter ``arrivals`` that this one's stores so far may be read."""
    tl.debug_barrier()  # every thread's stores come before the arrival, which one thread makes
    tl.atomic_add(arrivals, 1, sem="release", scope="gpu")


# Polls of a wait, each of which takes a GPU about a microsecond at the least.
MOST_POLLS = tl.constexpr(1 << 21)


@triton.jit
def wait(arrivals, turn, programs):
    """Waits until each of the ``programs`` that share the counter has arrived ``turn`` times. What they stored before
    is then visible to this one in loads that bypass L1 (".cg"). All of them must run at once.

    A wait of seconds ends the kernel with an error, so that a fault does not hang the GPU; but not before all programs
    have arrived once, since another stream's kernel may hold the multiprocessor of one that has not started."""
    seen = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
    polls = 0
    while seen < turn * programs:
        seen = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
        polls += tl.where(seen < programs, 0, 1)
        if polls == MOST_POLLS:
            give_up(polls)
    tl.debug_barrier()


@triton.jit(noinline=True)
def give_up(polls):
    tl.device_print(
        "cnnlstm_fast: a program waited for the others for too long; the kernel ends with an error", polls
    )
    tl.inline_asm_elementwise("trap; mov.u32 $0, $1;", "=r,r", [polls], dtype=tl.int32, is_pure=False, pack=1)
