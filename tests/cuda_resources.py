"""The resources that every compiled CUDA kernel needs: a table, and what is wrong with it.

    python tests/cuda_resources.py [FILE ...]

A file is a library, an archive or an object; by default the package's libcnnlstm_cuda.so. No GPU is needed. Exit
status: 1 where a kernel uses local memory, needs more registers than there are, or lacks the instruction that its
products should be made of; 2 where nothing can be read.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

LIBRARY = Path(__file__).parents[1] / "cnnlstm_fast" / "libcnnlstm_cuda.so"
REGISTERS = 65536  # of a multiprocessor
LOCAL_ACCESSES = ("LDL", "STL")
# Of CnnlstmAlgorithm: those whose kernels are instances of one template.
ALGORITHMS = ("persistent_block", "persistent_cluster", "persistent_grid")


@dataclass
class Kernel:
    """One kernel's code for one architecture."""

    arch: str  # such as sm_90a
    name: str
    threads: int  # at most in a block, by its launch bounds; else 0
    registers: int
    stack: int  # bytes, as local and shared
    local: int
    shared: int  # static; a launch may request more
    instructions: Counter[str] = field(default_factory=Counter)

    def count(self, instruction: str) -> int:
        """Including its wider forms, such as FFMA2."""
        return sum(n for name, n in self.instructions.items() if name.startswith(instruction))

    @property
    def recurrence(self) -> tuple[str, str] | None:
        """Compute type and algorithm of a kernel that multiplies with W_hh."""
        if streamed := re.match(r"(?:Forward|Backward)Streamed<(\w+)>", self.name):
            return streamed[1], "streaming"
        found = re.match(r"(?:Forward|Backward)<(\w+), (\d)", self.name)
        return (found[1], ALGORITHMS[int(found[2])]) if found else None

    @property
    def lacks_clusters(self) -> bool:
        """A cluster's kernel on a GPU without them consists of a trap."""
        return (
            self.recurrence is not None
            and self.recurrence[1] == "persistent_cluster"
            and int(self.arch[3:].rstrip("af")) < 90
        )

    def wrong(self) -> list[str]:
        reasons = []
        spilled = sum(self.instructions[name] for name in LOCAL_ACCESSES)
        if self.stack or self.local or spilled:
            reasons.append(
                f"{self.stack} bytes of stack, {self.local} of local memory, {spilled} instructions that use them"
            )
        if self.registers * self.threads > REGISTERS:
            reasons.append(f"{self.registers} registers of {self.threads} threads are more than {REGISTERS}")
        if self.recurrence and not self.threads:
            reasons.append("no launch bounds")
        if self.recurrence and not self.lacks_clusters:
            exact = self.recurrence[0] == "Exact"
            if exact and not self.count("FFMA"):
                reasons.append("no FFMA")
            if exact == bool(self.count("HMMA")):
                reasons.append(
                    "exact products by tensor cores" if exact else "no tensor core's instruction (HMMA)"
                )
        return reasons


class Unreadable(Exception):
    """The message says why."""


def tool(*names: str) -> str:
    """A program of the CUDA toolkit, else of Triton or the host compiler."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    folders = [Path(nvcc).resolve().parent]
    if triton := importlib.util.find_spec("triton"):
        folders += [Path(place) / "backends/nvidia/bin" for place in triton.submodule_search_locations or ()]
    for name in names:
        for folder in folders:
            if (folder / name).exists():
                return str(folder / name)
        if found := shutil.which(name):
            return found
    raise Unreadable(f"{' or '.join(names)} was not found in {', '.join(map(str, folders))} or on the PATH")


def read(path: Path) -> list[Kernel]:
    """All kernels of a file, by architecture and name."""
    if not path.exists():
        raise Unreadable(f"{path} does not exist")
    cuobjdump = tool("cuobjdump")
    kernels = {(k.arch, k.name): k for k in parse_usage(_lines([cuobjdump, "-res-usage", str(path)]))}
    if not kernels:
        raise Unreadable(f"{path} holds no CUDA code")
    for arch, name, threads in parse_bounds(_lines([cuobjdump, "-elf", str(path)])):
        kernels[arch, name].threads = threads
    for arch, name, instruction in parse_code(_lines([cuobjdump, "-sass", str(path)])):
        kernels[arch, name].instructions[instruction] += 1
    names = dict(zip((mangled := sorted({name for _, name in kernels})), readable(mangled), strict=True))
    for kernel in kernels.values():
        kernel.name = names[kernel.name]
    return sorted(kernels.values(), key=lambda k: (int(k.arch[3:].rstrip("af")), k.name))


def parse_usage(lines: Iterator[str]) -> Iterator[Kernel]:
    arch = name = ""
    for line in lines:
        if found := re.match(r"arch = (sm_\w+)", line):
            arch = found[1]
        elif found := re.match(r" *Function (\S+):", line):
            name = found[1]
        elif found := re.match(r" *REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, found.groups())
            yield Kernel(arch, name, 0, registers, stack, local, shared)


def parse_bounds(lines: Iterator[str]) -> Iterator[tuple[str, str, int]]:
    """Architecture, kernel and the most threads that its launch bounds allow."""
    arch = name = attribute = ""
    for line in lines:
        if found := re.match(r"\.nv\.info\.(\S+)$", line):
            name = found[1]
        elif found := re.match(r"\s*Attribute:\s+(\w+)", line):
            attribute = found[1]
        elif attribute == "EIATTR_MAX_THREADS" and (
            found := re.match(r"\s*Value:\s+(\w+) (\w+) (\w+)", line)
        ):
            x, y, z = (int(n, 16) for n in found.groups())
            yield arch, name, x * y * z
        elif found := re.match(r"arch = (sm_\w+)", line):
            arch = found[1]


def parse_code(lines: Iterator[str]) -> Iterator[tuple[str, str, str]]:
    """Architecture, kernel and base name of every instruction."""
    arch = name = ""
    for line in lines:
        # /*0010*/   @!P0 FFMA.FTZ R1, R2, R3, R4 ;
        if found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_]*)", line):
            yield arch, name, found[1]
        elif found := re.match(r"\s*Function : (\S+)", line):
            name = found[1]
        elif found := re.match(r"arch = (sm_\w+)", line):
            arch = found[1]


def readable(mangled: Sequence[str]) -> list[str]:
    """Names as they stand in the source, shortened."""
    done = subprocess.run(
        [tool("cu++filt", "c++filt")], input="\n".join(mangled), capture_output=True, text=True, check=True
    )
    return [shortened(line) for line in done.stdout.splitlines()]


def shortened(name: str) -> str:
    """``Forward<Exact, 0>`` of ``void cnnlstm::entry<cnnlstm::Forward<cnnlstm::Exact, 0> >(...)``."""
    name = re.sub(r"\bcnnlstm::|\(anonymous namespace\)::|^void ", "", name).replace(" >", ">")
    if name.startswith("entry<"):
        return name[len("entry<") : name.rindex(">(")]
    return name.partition("(")[0]


def _lines(command: list[str]) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        yield from process.stdout
        error = process.stderr.read().strip()
    if process.returncode:
        raise Unreadable(f"{' '.join(command)} failed: {error or 'no output'}")


def table(kernels: Sequence[Kernel]) -> Table:
    found = Table(title="CUDA kernels", title_justify="left")
    found.add_column("architecture")
    found.add_column("kernel", overflow="fold")
    for name in ("threads", "registers", "stack", "local", "shared", "HMMA", "FFMA", "instructions"):
        found.add_column(name, justify="right")
    found.add_column("")
    for k in kernels:
        counts = [k.threads, k.registers, k.stack, k.local, k.shared, k.count("HMMA"), k.count("FFMA")]
        state = "WRONG" if k.wrong() else "no clusters here" if k.lacks_clusters else ""
        found.add_row(k.arch, k.name, *map(str, counts), str(k.instructions.total()), state)
    return found


def main(arguments: Sequence[str]) -> int:
    paths = [Path(a) for a in arguments] or [LIBRARY]
    try:
        # Several files may hold the same kernel.
        kernels = list({(k.arch, k.name): k for path in paths for k in read(path)}.values())
    except Unreadable as error:
        print(f"cuda_resources: {error}", file=sys.stderr)
        return 2
    Console(width=None if sys.stdout.isatty() else 150).print(table(kernels))
    wrong = [f"{k.arch} {k.name}: {reason}" for k in kernels for reason in k.wrong()]
    print("\n".join(wrong) or f"{len(kernels)} kernels: no local memory, and registers for all threads.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
