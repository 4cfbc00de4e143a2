"""The build's switches, what lands in a wheel, and what the build writes down."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

import cnnlstm_fast
from cnnlstm_fast import _native

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(cnnlstm_fast.__file__).parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in a source tree")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a build needs, so that the tests leave this tree's libraries alone."""
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("")
    ignored = shutil.ignore_patterns("*.so", "_build_notes.json", "__pycache__")
    for name in ("cnnlstm_fast", "csrc", "bench", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    return tmp_path


def setup_py(tree: Path, *command: str, **switches: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CNNLSTM_")}
    return subprocess.run(
        [sys.executable, "setup.py", *command],
        cwd=tree,
        env=environment | switches,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["CNNLSTM_NATIVE", "CNNLSTM_CUDA"])
def test_an_unknown_value_of_a_switch_is_one_clear_sentence(tree: Path, name: str) -> None:
    done = setup_py(tree, "build_native", "--inplace", **{name: "yes"})
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == f"cnnlstm_fast: {name}=yes is unknown; use auto, 0 or 1."


def test_cuda_that_is_demanded_without_a_toolkit_fails_with_the_reason(tree: Path, tmp_path: Path) -> None:
    done = setup_py(tree, "build_native", "--inplace", CNNLSTM_CUDA="1", CUDA_HOME=str(tmp_path / "none"))
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    if "without the native part" not in last:  # a machine without a compiler says that first
        assert last == (
            "cnnlstm_fast: CNNLSTM_CUDA=1, but no CUDA toolkit: "
            f"nvcc was not found under CUDA_HOME={tmp_path / 'none'}."
        )
    assert not list((tree / "cnnlstm_fast").glob("*.so"))


def test_native_that_is_demanded_without_a_compiler_fails_with_the_reason(tree: Path) -> None:
    done = setup_py(tree, "build_native", "--inplace", CNNLSTM_NATIVE="1", CXX="no-such-compiler")
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == (
        "cnnlstm_fast: CNNLSTM_NATIVE=1, but the C++ compiler no-such-compiler was not found."
    )


@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        ({"CNNLSTM_NATIVE": "0"}, "switched off by CNNLSTM_NATIVE=0"),
        ({"CXX": "no-such-compiler"}, "the C++ compiler no-such-compiler was not found"),
    ],
)
def test_a_wheel_without_libraries_is_pure_and_holds_the_reason(
    tree: Path, switches: dict[str, str], reason: str
) -> None:
    # What an earlier native build left in the build folder must not slip in.
    stale = tree / "build" / "lib" / "cnnlstm_fast"
    stale.mkdir(parents=True)
    (stale / "libcnnlstm_fast.so").write_text("")
    (stale / "libcnnlstm_cuda.so").write_text("")
    (tree / "cnnlstm_fast" / "_C.so").write_text("")
    done = setup_py(tree, "bdist_wheel", **switches)
    assert done.returncode == 0, done.stderr
    assert f"native part skipped, this is a pure-Python package: {reason}" in done.stdout
    (wheel,) = (tree / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        notes = json.loads(archive.read("cnnlstm_fast/_build_notes.json"))
    assert not [name for name in names if name.endswith(".so")]
    assert "cnnlstm_fast/recurrent/operators.schema" in names
    for table in (PACKAGE / "recurrent" / "backends" / "tables").rglob("*.json"):
        assert table.relative_to(PACKAGE.parent).as_posix() in names
    assert notes["native"] is False and notes["native_reason"] == reason


def test_the_version_is_the_same_everywhere() -> None:
    version = cnnlstm_fast.__version__
    assert setup_py(ROOT, "-q", "--version").stdout.split()[-1] == version
    with contextlib.suppress(
        importlib.metadata.PackageNotFoundError
    ):  # a tree that runs without installation
        assert importlib.metadata.version("cnnlstm-fast") == version
    assert f"[{version}]" in (ROOT / "CHANGELOG.md").read_text()
    if _native.notes:
        assert _native.notes["version"] == version
    if _native.available:
        assert _native.facts()["build"]["version"] == version


def test_the_build_of_this_tree_did_not_break() -> None:
    """A missing compiler or toolkit is no failure; a compile that was tried and failed is one."""
    for key in ("native_reason", "cuda_reason"):
        assert " failed: " not in _native.notes.get(key, "")
    if _native.notes.get("native"):
        assert _native.available, _native.reason


@pytest.mark.skipif(not _native.notes.get("cuda"), reason="the package was built without CUDA")
def test_the_device_code_is_in_one_library() -> None:
    """The name of its section stands in the library's table of section names."""
    holding = [path.name for path in PACKAGE.glob("*.so") if b"\0.nv_fatbin\0" in path.read_bytes()]
    assert holding == ["libcnnlstm_cuda.so"]


def test_the_operators_have_the_schema_of_the_file() -> None:
    for line in (PACKAGE / "recurrent" / "operators.schema").read_text().splitlines():
        name = line.split("(")[0]
        registered = getattr(torch.ops.cnnlstm_fast, name).default._schema
        assert str(registered) == f"cnnlstm_fast::{line}"


def test_without_build_notes_the_reason_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "notes", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _native._load() == (
            None,
            "the native part was not built: nothing was built in this folder (run `make build`)",
        )


@pytest.mark.skipif(not _native.available, reason="needs the native part")
class TestNative:
    def test_a_library_for_another_pytorch_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_native, "notes", _native.notes | {"torch": "1.2.3"})
        with pytest.warns(UserWarning, match=r"built for PyTorch 1\.2, and this is PyTorch .*Build it again"):
            _, reason = _native._load()
        assert reason is not None and "built for PyTorch 1.2" in reason

    def test_a_library_that_does_not_load_is_warned_about_in_the_linkers_words(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "libcnnlstm_fast.so").write_text("not a library")
        monkeypatch.setattr(_native, "_HERE", tmp_path)
        with pytest.warns(UserWarning, match=r"libcnnlstm_fast\.so: .*Build it again"):
            _, reason = _native._load()
        assert reason is not None and "built but cannot be used" in reason

    def test_facts(self) -> None:
        facts = _native.facts()
        assert facts["available"] and facts["reason"] is None
        assert facts["cpu"]["active_isa"] in facts["cpu"]["isas"]
        assert set(facts["build"]["isa_variants"]) >= {"portable"}
        assert facts["cpu"]["cores"] >= 1
        assert isinstance(facts["cuda_devices"], list)
        assert bool(facts["build"]["cuda"]) == facts["notes"]["cuda"]

    def test_a_wrong_instruction_set_does_not_break_the_import_of_facts(self) -> None:
        code = "from cnnlstm_fast import _native; _native.facts()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"CNNLSTM_CPU_ISA": "mmx"},
            capture_output=True,
            text=True,
        )
        assert "RuntimeError: CNNLSTM_CPU_ISA is 'mmx'" in done.stderr

    def test_roofline(self) -> None:
        module = _native._C
        assert module is not None
        # No more than that the numbers are of the right order and follow the caches: machines differ.
        near, far = module.read_bandwidth(16 << 10, 0.05), module.read_bandwidth(256 << 20, 0.2)
        assert 1 < far < near < 2000
        assert 1 < module.fma_rate(0.05) < 2000

    def test_cuda_part_where_it_was_built(self) -> None:
        module = _native._C
        assert module is not None
        if not _native.notes["cuda"]:
            assert not hasattr(module, "cuda_devices")
            pytest.skip(_native.notes["cuda_reason"])
        if not module.cuda_devices():
            with pytest.raises(RuntimeError, match="cuda"):
                module.cuda_copy_bandwidth(1 << 20, 1)

    @pytest.mark.gpu
    def test_device_facts_agree_with_pytorch(self) -> None:
        module = _native._C
        assert module is not None
        if not _native.notes["cuda"]:
            pytest.skip(_native.notes["cuda_reason"])
        devices = module.cuda_devices()
        assert len(devices) == torch.cuda.device_count()
        for index, device in enumerate(devices):
            properties = torch.cuda.get_device_properties(index)
            assert device["name"] == properties.name
            assert device["sm"] == properties.major * 10 + properties.minor
            assert device["multiprocessors"] == properties.multi_processor_count
            assert device["l2_bytes"] == properties.L2_cache_size
            assert device["registers_per_multiprocessor"] >= 1 << 16
            assert device["cluster_launch"] == (properties.major >= 9)
        assert 10 < module.cuda_copy_bandwidth() < 50000
