"""Builds the native libraries with CMake and Ninja, or records in one line why it did not.

What does not change from build to build stands in pyproject.toml. Switches (environment):

CNNLSTM_NATIVE      auto (default): compile if this machine can, else make a pure-Python package; 0: never;
                    1: fail if it cannot.
CNNLSTM_CUDA        the same three for the CUDA part. The toolkit decides, never a visible GPU: $CUDA_HOME if
                    set, else nvcc on the PATH, else /usr/local/cuda.
CNNLSTM_CUDA_ARCHS  "80;90a"-like list, or "native" for the GPUs of this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
PACKAGE = "cnnlstm_fast"
DEFAULT_ARCHS = "80;86;89;90a;100;120"
NATIVE_FILES = ("_C*.so", "_guard*.so", "libcnnlstm_*.so", "_build_notes.json")
EMULATOR_FILES = ("libcnnlstm_emulator.so", "emulator_test")


class CannotBuild(Exception):
    """A part cannot be built here; the message is the reason in one line."""


def say(text: str) -> None:
    print(f"cnnlstm_fast: {text}", flush=True)


def switch(name: str) -> str:
    value = os.environ.get(name) or "auto"
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"cnnlstm_fast: {name}={value} is unknown; use auto, 0 or 1.")
    return value


def which(*names: str) -> str | None:
    # The scripts of this very Python first: its environment need not be activated.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def base_arguments(version: str) -> list[str]:
    """CMake's arguments for the CPU part; raises CannotBuild when a tool is missing."""
    wanted = os.environ.get("CXX")
    compiler = which(wanted.split()[0]) if wanted else which("c++", "g++", "clang++")
    if compiler is None:
        raise CannotBuild(
            f"the C++ compiler {wanted} was not found" if wanted else "there is no C++ compiler"
        )
    cmake = which("cmake")
    if cmake is None:
        raise CannotBuild("cmake was not found (pip install cmake ninja)")
    # A build environment of pip's own hides the environment that the package goes into, and PyTorch with it.
    sys.path.append(sysconfig.get_path("purelib"))
    try:
        import pybind11
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise CannotBuild(
            f"there is no {error.name} to build with; install PyTorch, pybind11, cmake and ninja first, then this "
            "package with `pip install --no-build-isolation`"
        ) from None
    arguments = [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DCNNLSTM_VERSION={version}",
        f"-DTORCH_VERSION={torch.__version__}",
        f"-DTORCH_INCLUDE_DIRS={';'.join(cpp_extension.include_paths())}",
        f"-DTORCH_LIBRARY_DIR={Path(torch.__file__).parent / 'lib'}",
        f"-DTORCH_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
    ]
    if wanted is None:
        arguments.append(f"-DCMAKE_CXX_COMPILER={compiler}")
    if ninja := which("ninja"):
        arguments += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if ccache := which("ccache"):
        arguments += [f"-DCMAKE_{language}_COMPILER_LAUNCHER={ccache}" for language in ("CXX", "CUDA")]
    return [cmake, "--log-level=NOTICE", "-S", str(ROOT), "-DCMAKE_BUILD_TYPE=Release", *arguments]


def cuda_arguments() -> list[str]:
    """CMake's further arguments for the CUDA part; raises CannotBuild when there is no toolkit."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else which("nvcc", "/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        where = f"under CUDA_HOME={home}" if home else "on the PATH or under /usr/local/cuda"
        raise CannotBuild(f"no CUDA toolkit: nvcc was not found {where}")
    listing = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    known = set(re.findall(r"compute_(\d+)", listing.stdout))
    if not known:
        raise CannotBuild(f"{nvcc} does not run: {(listing.stderr.strip() or 'no output').splitlines()[-1]}")
    asked = (os.environ.get("CNNLSTM_CUDA_ARCHS") or DEFAULT_ARCHS).replace(",", ";")
    if asked == "native":
        asked = gpu_archs() or "80;90a"
    archs = [arch for arch in asked.split(";") if re.fullmatch(r"\d+[af]?", arch)]
    if bad := sorted(set(asked.split(";")) - set(archs)):
        raise SystemExit(f"cnnlstm_fast: CNNLSTM_CUDA_ARCHS has {', '.join(bad)}; use 80;90a or native.")
    if dropped := [arch for arch in archs if arch.rstrip("af") not in known]:
        say(f"this nvcc does not know sm_{', sm_'.join(dropped)}: left out")
        archs = [arch for arch in archs if arch not in dropped]
    if not archs:
        raise CannotBuild(f"nvcc knows none of the architectures {asked}")
    return ["-DCNNLSTM_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCNNLSTM_CUDA_ARCHS={';'.join(archs)}"]


def gpu_archs() -> str:
    """The architectures of this machine's GPUs, '' where it has none."""
    smi = shutil.which("nvidia-smi")
    query = [smi, "--query-gpu=compute_cap", "--format=csv,noheader"] if smi else ["false"]
    found = subprocess.run(query, capture_output=True, text=True).stdout
    archs = sorted({major + minor for major, minor in re.findall(r"^(\d+)\.(\d)$", found, re.M)})
    return ";".join("90a" if arch == "90" else arch for arch in archs)


def run(step: str, command: list[str]) -> None:
    """Runs a command with its output shown; a failure becomes CannotBuild with the first error line."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        lines = []
        for line in process.stdout or ():
            sys.stdout.write(line)
            lines.append(line)
    sys.stdout.flush()
    if process.returncode:
        print("".join(lines[-30:]), file=sys.stderr, flush=True)
        errors = [line for line in lines if re.search(r"\berror\b", line, re.I) and "FAILED" not in line]
        first = (errors or lines[-1:] or ["no output\n"])[0].strip().replace(f"{ROOT}/", "")
        raise CannotBuild(f"{step} failed: {first}")


def cmake(configure: list[str], target: str) -> Path:
    """Configures and builds; one folder per configuration, so that each stays incremental. Where its results lie."""
    key = hashlib.sha256("\n".join([*configure, os.environ.get("CXX", "")]).encode()).hexdigest()[:8]
    folder = ROOT / "build" / "native" / f"{sys.implementation.cache_tag}-{key}"
    run("configuring", [*configure, "-B", str(folder)])
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
    run("compiling", [configure[0], "--build", str(folder), "--target", target, "--parallel", jobs])
    return folder / "out"


class build_native(Command):
    """Compiles the libraries into the package: into the source tree when editable or --inplace."""

    description = "compile the native libraries with CMake"
    user_options = [("inplace", "i", "put the libraries into the source tree")]  # noqa: RUF012
    boolean_options = ["inplace"]  # noqa: RUF012
    editable_mode = False

    def initialize_options(self) -> None:
        self.inplace = False
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        version = self.distribution.get_version()
        notes: dict[str, object] = {"version": version, "native": False, "cuda": False}
        built: list[Path] = []
        native, cuda = switch("CNNLSTM_NATIVE"), switch("CNNLSTM_CUDA")
        try:
            if native == "0":
                raise CannotBuild("switched off by CNNLSTM_NATIVE=0")
            arguments = base_arguments(version)
            try:
                if cuda == "0":
                    raise CannotBuild("switched off by CNNLSTM_CUDA=0")
                with_cuda = arguments + cuda_arguments()
                cmake(with_cuda, "cnnlstm_cuda")
                arguments = with_cuda
            except CannotBuild as error:
                notes["cuda_reason"] = str(error)
                if cuda == "1":
                    raise SystemExit(f"cnnlstm_fast: CNNLSTM_CUDA=1, but {error}.") from None
                say(f"CUDA part skipped: {error}")
            out = cmake(arguments, "all")
            built = sorted(out.glob("*.so"))
            notes |= json.loads((out / "facts.json").read_text())
        except CannotBuild as error:
            if native == "1":
                raise SystemExit(f"cnnlstm_fast: CNNLSTM_NATIVE=1, but {error}.") from None
            if cuda == "1":
                raise SystemExit(
                    f"cnnlstm_fast: CNNLSTM_CUDA=1, but without the native part: {error}."
                ) from None
            notes["native_reason"] = str(error)
            notes.setdefault("cuda_reason", "the native part was not built")
            say(f"native part skipped, this is a pure-Python package: {error}")
        inplace = self.editable_mode or self.inplace
        target = (ROOT if inplace else Path(str(self.build_lib))) / PACKAGE
        target.mkdir(parents=True, exist_ok=True)
        for stale in (path for pattern in NATIVE_FILES for path in target.glob(pattern)):
            stale.unlink()
        for path in built:
            # A new inode: a process that has the old library mapped keeps it.
            shutil.copy2(path, target / path.name)
        (target / "_build_notes.json").write_text(json.dumps(notes, indent=1) + "\n")
        self.distribution.native = bool(built)


class build_emulator(Command):
    """Compiles the CUDA kernels for the CPU into build/emulator, where the tests find them."""

    description = "compile the CUDA kernels for the CPU, for tests"
    user_options = []  # noqa: RUF012

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        target = ROOT / "build" / "emulator"
        shutil.rmtree(target, ignore_errors=True)
        native = switch("CNNLSTM_NATIVE")
        try:
            if native == "0":
                raise CannotBuild("switched off by CNNLSTM_NATIVE=0")
            boost = Path(sysconfig.get_path("purelib")) / "cmeel.prefix"
            if not (boost / "include" / "boost" / "context").is_dir():
                raise CannotBuild("there is no Boost (pip install cmeel-boost)")
            arguments = base_arguments(self.distribution.get_version())
            out = cmake([*arguments, "-DCNNLSTM_EMULATOR=ON", f"-DCMAKE_PREFIX_PATH={boost}"], "emulator")
        except CannotBuild as error:
            if native == "1":
                raise SystemExit(f"cnnlstm_fast: CNNLSTM_NATIVE=1, but {error}.") from None
            return say(f"the CUDA kernels for the CPU skipped: {error}")
        target.mkdir(parents=True)
        for name in EMULATOR_FILES:
            shutil.copy2(out / name, target / name)


class NativeDistribution(Distribution):
    native = False

    def has_ext_modules(self) -> bool:
        return self.native


class build_all(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]  # noqa: RUF012


class bdist_wheel_after_build(bdist_wheel):
    """The wheel's tag depends on whether the libraries were built, which is known only after the build."""

    def run(self) -> None:
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()


# The benchmark and the Triton kernels lie at the top level of the checkout and are installed inside the package:
# top-level modules `bench` and `kernels` would collide with other people's.
BENCH = ["bench", *(f"bench.{name}" for name in find_packages("bench"))]

setup(
    packages=[
        *find_packages(include=["cnnlstm_fast*"]),
        *(f"{PACKAGE}.{name}" for name in BENCH),
        f"{PACKAGE}.kernels",
    ],
    package_dir={f"{PACKAGE}.{name}": name for name in ("bench", "kernels")},
    distclass=NativeDistribution,
    cmdclass={
        "build": build_all,
        "build_native": build_native,
        "build_emulator": build_emulator,
        "bdist_wheel": bdist_wheel_after_build,
    },
)
