"""The resources of the compiled CUDA kernels, and that the report finds faults."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cuda_resources
import pytest
from cuda_resources import Kernel

from cnnlstm_fast import _native

USAGE = """
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z4goodv:
  REG:128 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:544 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z3badv:
  REG:255 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:544 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
BOUNDS = """
Fatbin elf code:
================
arch = sm_90a
.nv.info._Z4goodv
\t<0x9>
\tAttribute:\tEIATTR_REGCOUNT
\tFormat:\tEIFMT_SVAL
\tValue:\t0x3 0x4 0x5
\t<0xa>
\tAttribute:\tEIATTR_MAX_THREADS
\tFormat:\tEIFMT_SVAL
\tValue:\t0x100 0x2 0x1
"""
CODE = """
Fatbin elf code:
================
arch = sm_90a

\tcode for sm_90a
\t\tFunction : _Z4goodv
\t.headerflags\t@"EF_CUDA_TEXMODE_UNIFIED"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                     /* 0x00000a00ff017b82 */
                                                                              /* 0x000fe20000000800 */
        /*0010*/              @!P0 HMMA.16816.F32.BF16 R4, R4, R8, RZ ;       /* 0x000000ff0404723c */
        /*0020*/             @!UP1 UIADD3 UR4, UR4, 0x1, URZ ;                /* 0x000000ff0404723c */
\t\tFunction : _Z3badv
        /*0000*/                   STL [R1], R2 ;                             /* 0x000000ff0404723c */
"""


def test_reports_are_read() -> None:
    good, bad = cuda_resources.parse_usage(iter(USAGE.splitlines()))
    assert (good.arch, good.name, good.registers, good.stack, good.local, good.shared) == (
        *("sm_90a", "_Z4goodv", 128, 0, 0, 1024),
    )
    assert (bad.name, bad.registers, bad.stack, bad.local) == ("_Z3badv", 255, 16, 8)
    assert list(cuda_resources.parse_bounds(iter(BOUNDS.splitlines()))) == [("sm_90a", "_Z4goodv", 512)]
    assert list(cuda_resources.parse_code(iter(CODE.splitlines()))) == [
        ("sm_90a", "_Z4goodv", "LDC"),
        ("sm_90a", "_Z4goodv", "HMMA"),
        ("sm_90a", "_Z4goodv", "UIADD3"),
        ("sm_90a", "_Z3badv", "STL"),
    ]


def test_names_are_shortened() -> None:
    kernel = "void cnnlstm::entry<cnnlstm::Forward<cnnlstm::Exact, 0, 4, false> >(cnnlstm::Forward<...>::Arguments)"
    assert cuda_resources.shortened(kernel) == "Forward<Exact, 0, 4, false>"
    assert cuda_resources.shortened("(anonymous namespace)::copy_kernel(float4 const*, int)") == "copy_kernel"


def wrong(
    name: str,
    *instructions: str,
    arch: str = "sm_90a",
    threads: int = 512,
    registers: int = 128,
    stack: int = 0,
) -> str:
    kernel = Kernel(arch, name, threads, registers, stack, 0, 0)
    kernel.instructions.update(instructions)
    return "; ".join(kernel.wrong())


def test_what_is_wrong_with_a_kernel() -> None:
    tensor, exact = "Forward<Bf16, 2, 8, true>", "Backward<Exact, 0, 4, false>"
    assert not wrong(tensor, "HMMA") and not wrong(exact, "FFMA") and not wrong(exact, "FFMA2")
    assert "no tensor core's instruction" in wrong(tensor, "FFMA")
    assert "no FFMA" in wrong(exact) and "by tensor cores" in wrong(exact, "FFMA", "HMMA")
    assert "129 registers" in wrong(tensor, "HMMA", registers=129)
    assert not wrong(tensor, "HMMA", registers=255, threads=256)
    assert "no launch bounds" in wrong(tensor, "HMMA", threads=0)
    assert "8 bytes of stack" in wrong(tensor, "HMMA", stack=8)
    assert "1 instructions" in wrong(tensor, "HMMA", "STL")
    assert not wrong("ForwardStep<Bf16>", "FFMA")
    assert not wrong("Forward<Bf16, 1, 8, true>", "BPT", arch="sm_80")
    assert "no tensor core's" in wrong("Forward<Bf16, 1, 8, true>", "BPT", arch="sm_100")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc on the PATH")
def test_a_kernel_in_local_memory_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, made = tmp_path / "local.cu", tmp_path / "local.o"
    source.write_text(
        "__global__ void local(int* x, int n) {\n"
        "  int a[64];\n"
        "  for (int k = 0; k < n; ++k) a[x[k]] = k;\n"
        "  for (int k = 0; k < n; ++k) x[k] = a[x[k + n]];\n"
        "}\n"
    )
    subprocess.run(["nvcc", "-arch=sm_80", "-c", "-o", str(made), str(source)], check=True, timeout=100)
    assert cuda_resources.main([str(made)]) == 1
    assert "sm_80 local: 256 bytes of stack" in capsys.readouterr().out


def test_what_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda_resources.main([str(tmp_path / "none.so")]) == 2
    assert "none.so does not exist" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not _native.notes.get("cuda"), reason="the package was built without CUDA")
def test_every_kernel_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    status = cuda_resources.main([])
    printed = capsys.readouterr()
    assert status == 0, printed.out[-3000:] + printed.err
    for name in ("Forward<", "Backward<"):
        for compute_type in ("Exact", "Tf32", "Bf16", "Fp16"):
            assert f"{name}{compute_type}" in printed.out
