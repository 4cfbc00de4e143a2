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


@triton.jit
def wait(arrivals, expected):
    """Waits until the programs that share the counter have arrived ``expected`` times altogether. What each of them
    stored before is then visible to the others in loads that bypass L1 (".cg"). All of them must run at once."""
    seen = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
    while seen < expected:
        seen = tl.atomic_add(arrivals, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()
