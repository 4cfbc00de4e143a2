"""The commands: cnnlstm-fast bench | calibrate | demo | info."""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
from collections.abc import Sequence

import torch

from . import __version__, _native
from ._version import TESTED_TORCH
from .recurrent.backends import BACKENDS
from .recurrent.frozen import cache_bytes


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="cnnlstm-fast", description="Fast LSTMs for CNN-LSTM models in PyTorch."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="versions, compiled parts, hardware and backends")
    commands.add_parser("bench", help="measure against PyTorch and other libraries, on this machine")
    commands.add_parser(
        "calibrate", help="measure which LSTM calls PyTorch runs faster on this machine, for auto"
    )
    demo = commands.add_parser("demo", help="train a text reader, optimize it, verify and time it")
    from .demo import run as demo_run

    demo_run.add_arguments(demo)
    if argv[:1] in (["bench"], ["calibrate"]):
        return _measure(*argv)  # parses its own arguments: its code needs optional packages
    args = parser.parse_args(argv)
    if args.command == "info":
        try:
            print(info())
        except RuntimeError as error:  # CUDA's, or CNNLSTM_CPU_ISA names kernels that this CPU lacks
            print(error, file=sys.stderr)
            return 1
        return 0
    return demo_run.run(args)


def _measure(command: str, *argv: str) -> int:
    module = {"bench": "bench.command", "calibrate": "bench.calibrate.command"}[command]
    try:
        found = importlib.import_module(f"{__package__}.{module}")
    except ModuleNotFoundError as error:
        remedy = f"pip install cnnlstm-fast[bench]; in a checkout that is not installed, python -m {module}"
        print(f"cnnlstm-fast {command} needs {error.name}: {remedy}", file=sys.stderr)
        return 1
    return found.main(argv, prog=f"cnnlstm-fast {command}")


def info() -> str:
    """Versions, compiled parts or the reasons why they are missing, the machine, and the backends."""
    facts = _native.facts()
    notes, cpu = facts["notes"], facts.get("cpu")
    rows = [
        ("cnnlstm_fast", __version__),
        ("PyTorch", torch.__version__),
        ("Python", platform.python_version()),
    ]
    if facts["available"]:
        rows.append(("compiled part", f"{notes['compiler']}, for PyTorch {notes['torch']}"))
    else:
        rows.append(("compiled part", f"missing: {facts['reason']}"))
    if notes.get("cuda"):
        archs = ", ".join(f"sm_{arch}" for arch in notes["cuda_archs"])
        rows.append(("CUDA part", f"CUDA {notes['cuda_version']} for {archs}"))
    else:
        rows.append(("CUDA part", f"missing: {notes.get('cuda_reason', 'nothing was built')}"))
    if cpu:
        caches = ", ".join(f"{level} {size >> 10} KB" for level, size in cpu["cache_bytes"].items())
        rows.append(("CPU", f"{cpu['name']}, {cpu['cores']} cores, {caches}"))
        rows.append(("kernels", f"{cpu['active_isa']} (this machine runs {', '.join(cpu['isas'])})"))
    if _native.is_forked_child():
        rows.append(("threads", "1 for LSTMs: this process was forked from one that had loaded the package"))
    if facts["available"]:
        libraries = {torch.ops.cnnlstm_fast.gemm_library(transposed) for transposed in (False, True)}
        rows.append(("products", f"float32 by {' and '.join(sorted(libraries))}, as measured now"))
        rows.append(("kept weights", f"{cache_bytes() / 1e6:.1f} MB in this process"))
    for gpu in facts.get("cuda_devices", []):
        rows.append(("GPU", f"{gpu['name']}, sm_{gpu['sm']}"))
    lines = [f"{name + ':':<15} {value}" for name, value in rows]
    lines += ["", "backends:", *(f"  {b.name:<12} {b.summary}" for b in BACKENDS.values())]
    if torch.__version__.split("+")[0].rpartition(".")[0] not in TESTED_TORCH:
        lines.append(
            f"warning: never tested with PyTorch {torch.__version__}, only with {', '.join(TESTED_TORCH)}; "
            f"check your model with cnnlstm_fast.verify(model, inputs)"
        )
    if not facts["available"]:
        lines.append(
            "lost without the compiled extension: the backend 'cpu'; PyTorch's own kernels run instead"
        )
    return "\n".join(lines)
