"""The structure of the repository: which part may depend on which."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
SOURCES = {".h", ".cpp", ".cu", ".cuh"}


def included(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files of a folder of C++ and CUDA, each with every header that it includes."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in SOURCES:
            yield from ((path, header) for header in INCLUDE.findall(path.read_text()))


def imported(path: Path) -> Iterator[str]:
    """The absolute names of the modules and attributes that a Python file imports."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*parents, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", ["cpu", "cuda", "cuda_emulator", "benchmarks"])
def test_kernels_do_not_depend_on_pytorch(folder: str) -> None:
    found = list(included(ROOT / "csrc" / folder))
    assert found
    pytorch = re.compile(r"(.*/)?(torch|ATen|c10|pybind11)/")
    assert not [f"{path.name}: {header}" for path, header in found if pytorch.match(header)]


def test_the_lstm_does_not_depend_on_the_tools_around_it() -> None:
    tools = re.compile(
        r"cnnlstm_fast\.(optimize|verify|cli|demo)\b|cnnlstm_fast\.(explain|revert)$|cnnlstm_fast$"
    )
    files = sorted((ROOT / "cnnlstm_fast" / "recurrent").rglob("*.py"))
    found = [(path, name) for path in files for name in imported(path)]
    assert ("dispatch.py", "cnnlstm_fast.recurrent.backends.BACKENDS") in [(p.name, n) for p, n in found]
    assert not [f"{path.name}: {name}" for path, name in found if tools.match(name)]
