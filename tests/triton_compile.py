"""Compiles the Triton kernels ahead of time, without a GPU: one JSON line for each, on standard output.

    python tests/triton_compile.py SM [EVERY]
    python tests/triton_compile.py --signatures

Run without TRITON_INTERPRET. Every plan that ``kernels.plan`` makes for a GPU of that kind is compiled for float32 and
bfloat16 (and a few for float16), forward and backward, with all optional arguments there and with none; with EVERY only
every so-manieth of these. Triton's cache keeps what was compiled by its source, and this script beside it what the
assembler said of it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cnnlstm_fast.recurrent.backends import triton as backend

backend.kernels()
from cnnlstm_fast.kernels import plan as planning
from cnnlstm_fast.kernels.backward import backward_kernel
from cnnlstm_fast.kernels.backward_streamed import backward_streamed_kernel
from cnnlstm_fast.kernels.forward import forward_kernel
from cnnlstm_fast.kernels.forward_streamed import forward_streamed_kernel
from cnnlstm_fast.kernels.plan import Device, Plan, power_of_two
from cnnlstm_fast.kernels.previous_hidden import previous_hidden_kernel
from cnnlstm_fast.kernels.recurrence import MOST_REGISTERS
from cnnlstm_fast.kernels.states import states_kernel

GPUS = {
    80: Device("A100", 80, 108, 166912),
    86: Device("RTX 3090", 86, 82, 101376),
    89: Device("RTX 4090", 89, 128, 101376),
    90: Device("H100", 90, 132, 232448),
    100: Device("B200", 100, 148, 232448),
    120: Device("RTX 5090", 120, 170, 101376),
}
KERNELS = {
    "forward": forward_kernel,
    "forward streamed": forward_streamed_kernel,
    "backward": backward_kernel,
    "backward streamed": backward_streamed_kernel,
    "previous_hidden": previous_hidden_kernel,
    "states": states_kernel,
}
FLOAT32 = {"gate_inputs", "c_state", "grad_h", "grad_c"}
INT64 = {"lengths", "offsets"}
FACTOR_BYTES = {("fp32", "tf32"): 4, ("fp32", "tf32x3"): 8, ("bf16", "tf32"): 2, ("fp16", "tf32"): 2}
OPTIONAL = {
    "bias_ih", "bias_hh", "cells", "gates", "lengths", "offsets", "reset", "grad_output", "grad_cells",
}  # fmt: skip
HIDDEN = (1, 8, 24, 48, 50, 64, 96, 100, 128, 200, 256, 300, 400, 512, 1001, 1024, 1536, 2048, 4096)
NUMBERS = {
    "first_row", "first_row_reverse", "M", "T", "B", "N", "H", "s_begin", "s_end", "n_begin", "n_end",
}  # fmt: skip


class Job(NamedTuple):
    kernel: str
    sm: int
    dtype: str
    precision: str
    plan: Plan | None
    H: int
    directions: int
    full: bool


def jobs(sm: int) -> list[Job]:
    found: dict[Any, Job] = {}
    sizes = itertools.product(FACTOR_BYTES.items(), HIDDEN, (1, 32, 64, 256, 1024), (1, 2))
    for ((dtype, precision), factor_bytes), H, B, D in sizes:
        for made in planning.candidates(GPUS[sm], H, B, D, factor_bytes):
            if dtype == "fp16" and (made.algorithm != "persistent_block" or H != 64):
                continue
            held, suffix = (None, " streamed") if made.algorithm == "streaming" else (power_of_two(H), "")
            for kernel, full in itertools.product(("forward" + suffix, "backward" + suffix), (False, True)):
                job = Job(kernel, sm, dtype, precision, made, H, 1 + full, full)
                found.setdefault((*job[:5], held, math.gcd(H, 16), full), job)
    others = [
        Job(kernel, sm, dtype, "", None, 64, 2, full)
        for kernel, dtype, full in itertools.product(
            ("previous_hidden", "states"), ("fp32", "bf16", "fp16"), (False, True)
        )
    ]
    return [*found.values(), *others]


def source(job: Job) -> ASTSource:
    kernel = KERNELS[job.kernel]
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {"BLOCK_H": 128, "BLOCK_B": 16, "MULTIPLE": math.gcd(job.H, 16)}
    if job.plan is not None:
        of_pass = job.plan.forward if job.kernel.startswith("forward") else job.plan.backward
        constants |= {"BLOCK_H": job.plan.block_h, "BLOCK_B": job.plan.block_b, "PRECISION": job.precision}
        constants |= of_pass(job.H, FACTOR_BYTES[job.dtype, job.precision])
    attributes = {}
    waits = job.plan is not None and job.plan.waits
    for index, name in enumerate(kernel.arg_names):
        absent = (
            (
                name in OPTIONAL
                and not job.full
                and not (name in ("cells", "gates") and not job.kernel.startswith("forward"))
            )
            or (name == "offsets" and job.full and job.kernel.startswith("backward"))
            or (
                name.endswith("_reverse")
                and name not in NUMBERS
                and (job.directions == 1 or ("bias" in name and not job.full))
            )
            or (name in ("arrivals", "exchanged") and not waits)
        )
        if name in constants or absent:
            constants.setdefault(name, None)
            signature[name] = "constexpr"
        elif name in NUMBERS:
            signature[name] = "i32"
        else:
            element = (
                "fp32" if name in FLOAT32
                else "i64" if name in INT64
                else "i32" if name == "reset"
                else "i32" if name == "arrivals"
                else job.dtype
            )  # fmt: skip
            signature[name] = f"*{element}"
            attributes[(index,)] = [["tt.divisibility", 16]]
    constants = {name: value for name, value in constants.items() if name in signature}
    return ASTSource(kernel, signature, constants, attributes)


def compiled(job: Job) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if job.plan is not None:
        warps = job.plan.forward_warps if job.kernel.startswith("forward") else job.plan.backward_warps
        options = {"num_warps": warps, "maxnreg": MOST_REGISTERS}
        options["launch_cooperative_grid"] = job.plan.waits
    result: dict[str, Any] = job._asdict() | {"plan": job.plan, "most_shared": GPUS[job.sm].shared}
    try:
        made = triton.compile(source(job), target=GPUTarget("cuda", job.sm, 32), options=options)
    except Exception as error:  # reported as the result of this job
        return result | {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    return result | {"shared": made.metadata.shared} | resources(made.asm["ptx"], job.sm)


def resources(ptx: str, sm: int) -> dict[str, Any]:
    """Registers and bytes of local memory of a thread, as the assembler reports them."""
    tool = triton.knobs.nvidia.ptxas_blackwell if sm >= 100 else triton.knobs.nvidia.ptxas
    key = hashlib.sha256(f"{tool.version}\n{ptx}".encode()).hexdigest()
    kept = Path(triton.knobs.cache.dir) / "assembled" / f"{key}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as file:
            json.dump(assemble(ptx, tool.path), file)
        os.replace(file.name, kept)
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def assemble(ptx: str, ptxas: str) -> dict[str, Any]:
    target = re.search(r"^\.target (\w+)", ptx, re.M)
    assert target is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        done = subprocess.run(
            [ptxas, "-v", f"--gpu-name={target[1]}", "-o", "/dev/null", file.name],
            capture_output=True,
            text=True,
            check=True,
        )
    text = done.stderr + done.stdout
    used = re.search(r"Used (\d+) registers", text)
    spilled = re.findall(r"(\d+) bytes (?:spill stores|spill loads)", text)
    stack = re.search(r"(\d+) bytes stack frame", text)
    assert used is not None and stack is not None, text
    return {
        "registers": int(used[1]),
        "spilled": sum(map(int, spilled)),
        "stack": int(stack[1]),
    }


def sample(found: list[Job], every: int) -> list[Job]:
    """Every so-manieth, and one of each kernel in each algorithm."""
    one_of_each = {(job.kernel, job.plan and job.plan.algorithm): job for job in found}.values()
    return list(dict.fromkeys([*found[::every], *one_of_each]))


def main(sm: int, every: int = 1) -> None:
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(compiled, sample(jobs(sm), every)):
            print(json.dumps(result), flush=True)


def signatures() -> None:
    for name, kernel in KERNELS.items():
        parameters = kernel.params
        facts = {
            "kernel": name,
            "arguments": [p.name for p in parameters],
            "not_specialized": [p.name for p in parameters if p.do_not_specialize],
            "constexprs": [p.name for p in parameters if p.is_constexpr],
        }
        print(json.dumps(facts))


if __name__ == "__main__":
    if sys.argv[1:] == ["--signatures"]:
        signatures()
    else:
        main(*map(int, sys.argv[1:]))
