"""Plants one fault at a time in a copy of this checkout, and lets the fast tests find it.

    python tests/planted_faults.py [TEXT ...]    only the faults whose names contain one of these

A fault is a line of code made wrong. The copy is built again where that takes it, and the tests named beside the fault
run as `make test` runs them; the first that fails has found it. Exit status 1: a fault was not found. Use it after a
change of the tests or of what they cover; all faults take about half an hour on two cores. A fault whose line is no
longer in the code is an error: give it the line that took its place.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Fault(NamedTuple):
    name: str
    file: str
    right: str
    wrong: str
    tests: str  # arguments of pytest
    nth: int = 0  # which of the places where the right line is


BACKENDS = "tests/recurrent/test_backends.py"
CUDA = "tests/cuda/test_cuda.py"
TRITON = "tests/triton/test_triton.py tests/triton/test_triton_barrier.py"
PREPACKED = "tests/recurrent/test_prepacked.py"
KNOWN = "tests/recurrent/test_known_calls.py"
RUNNER = "tests/encoder/test_runner.py"
PREPARE = "tests/encoder/test_prepare.py"
FRAMES = "tests/encoder/test_frames.py"
TRAINING = "tests/encoder/test_training.py"
TRANSFORMS = "tests/recurrent/test_transforms.py"
FIRST_USE = "tests/recurrent/test_first_use.py"
INT8 = "tests/recurrent/test_int8.py tests/recurrent/test_prepacked.py"

FAULTS = [
    Fault(
        "torch.func: the stacked calls in another order",
        "cnnlstm_fast/recurrent/transforms.py",
        "arg = arg.movedim(dim, axis)",
        "arg = arg.movedim(dim, axis + 1)",
        TRANSFORMS,
    ),
    Fault(
        "torch.func: one gradient of the weights for all samples",
        "cnnlstm_fast/recurrent/transforms.py",
        "batch_sizes is None and not weights_need_grad",
        "batch_sizes is None",
        TRANSFORMS,
    ),
    Fault(
        "torch.func: a tangent is lost",
        "cnnlstm_fast/recurrent/functional.py",
        "if spec.grad or forward_ad._current_level >= 0:",
        "if spec.grad:",
        TRANSFORMS,
    ),
    Fault(
        "flops: the input's gradient is counted where nobody asked for it",
        "cnnlstm_fast/recurrent/flops.py",
        "(0 if input_needs_grad else of_input)",
        "0",
        "tests/recurrent/test_flops.py",
    ),
    Fault(
        "training: dropout draws in another order",
        "cnnlstm_fast/encoder/rewrites.py",
        "inplace or not training else",
        "True else",
        TRAINING,
    ),
    Fault(
        "training: a failed call is not undone",
        "cnnlstm_fast/encoder/training.py",
        "            before.restore()\n            found",
        "            found",
        TRAINING,
    ),
    Fault(
        "training: gradient of a linear layer's input",
        "cnnlstm_fast/encoder/rewrites.py",
        "_Product.apply(grad, b.t())",
        "_Product.apply(-grad, b.t())",
        TRAINING,
    ),
    # a wrong sign in each kernel
    Fault(
        "cpu forward: sign",
        "csrc/cpu/forward.h",
        "fma(f, load(state), i * g)",
        "fma(f, load(state), -i * g)",
        BACKENDS,
    ),
    Fault(
        "cpu backward: sign",
        "csrc/cpu/backward.h",
        "grad_c * i * (1.0f - g * g)",
        "grad_c * i * (1.0f + g * g)",
        BACKENDS,
    ),
    Fault("cpu int8: sign", "csrc/cpu/quantize.h", "(vf)(sum * -128)", "(vf)(sum * 128)", INT8),
    Fault(
        "cuda forward: sign",
        "csrc/cuda/cell.cuh",
        "now.f * c_prev + now.i * now.g",
        "now.f * c_prev - now.i * now.g",
        CUDA,
    ),
    Fault(
        "cuda backward: sign",
        "csrc/cuda/cell.cuh",
        "dc * i * (1.0f - g * g)",
        "dc * i * (1.0f + g * g)",
        CUDA,
    ),
    Fault("cuda per step: sign", "csrc/cuda/elementwise.cuh", "{b.x + x.x, b.y", "{b.x - x.x, b.y", CUDA),
    Fault(
        "triton forward: sign",
        "kernels/cell.py",
        "    c = f * c_prev + i * g\n    return",
        "    c = f * c_prev - i * g\n    return",
        TRITON,
    ),
    Fault(
        "triton backward: sign", "kernels/cell.py", "dc * i * (1.0 - g * g)", "dc * i * (1.0 + g * g)", TRITON
    ),
    Fault(
        "triton projection: gradient",
        "kernels/projected.py",
        "matmul(part.t(), m[",
        "-matmul(part.t(), m[",
        TRITON,
    ),
    Fault(
        "reference: sign",
        "cnnlstm_fast/recurrent/reference.py",
        "torch.sigmoid(f) * c +",
        "torch.sigmoid(f) * c -",
        "tests/recurrent/test_reference.py",
    ),
    # a barrier, a wait or an index left out
    Fault(
        "cpu forward: no barrier in a step",
        "csrc/cpu/thread_partition.h",
        "if (!split_rows) barrier->wait(size);",
        "",
        f"{BACKENDS} tests/recurrent/test_cpu_random.py tests/recurrent/test_threads.py",
    ),
    Fault(
        "cpu backward: no barrier at the end",
        "csrc/cpu/backward.h",
        "  partition.wait();\n",
        "",
        f"{BACKENDS} tests/recurrent/test_cpu_random.py tests/recurrent/test_threads.py",
        1,
    ),
    Fault(
        "cuda forward: no barrier",
        "csrc/cuda/forward.cuh",
        "        device::block_barrier();\n        if (owner) {",
        "        if (owner) {",
        CUDA,
    ),
    Fault(
        "cuda backward: no barrier", "csrc/cuda/backward.cuh", "      device::block_barrier();\n", "", CUDA
    ),
    Fault(
        "cuda streaming: no barrier",
        "csrc/cuda/streamed.cuh",
        "      device::block_barrier();\n      const char*",
        "      const char*",
        CUDA,
    ),
    Fault(
        "triton forward: waits for too few",
        "kernels/forward.py",
        "wait(counter, s - s_begin,",
        "wait(counter, s - s_begin - 1,",
        TRITON,
    ),
    Fault(
        "triton backward: waits for too few",
        "kernels/backward.py",
        "wait(counter, n - n_begin,",
        "wait(counter, n - n_begin - 1,",
        TRITON,
    ),
    Fault(
        "triton forward, streaming: waits for too few",
        "kernels/forward_streamed.py",
        "wait(arrivals + group, s - s_begin,",
        "wait(arrivals + group, s - s_begin - 1,",
        TRITON,
    ),
    Fault(
        "triton backward, streaming: waits for too few",
        "kernels/backward_streamed.py",
        "wait(arrivals + group, n - n_begin,",
        "wait(arrivals + group, n - n_begin - 1,",
        TRITON,
    ),
    # what is kept from call to call
    Fault(
        "prepacked weights: the version is no part of the key",
        "csrc/torch/cpu/prepacked.cpp",
        "found->second.version == version_of(use.weight)",
        "true",
        INT8,
    ),
    Fault(
        "prepacked weights: the contents are not compared",
        "csrc/torch/cpu/prepacked.cpp",
        "return !use.made.defined() || use.span.fingerprint != use.packed_fingerprint;",
        "return !use.made.defined();",
        PREPACKED,
    ),
    Fault(
        "prepacked weights: a promise taken back leaves what was made meanwhile",
        "csrc/torch/cpu/prepacked.cpp",
        "std::erase_if(process_cache->entries, [&]",
        "if (false) std::erase_if(process_cache->entries, [&]",
        "tests/recurrent/test_frozen.py",
    ),
    Fault(
        "prepacked weights: a forked child uses the parent's mutex",
        "csrc/torch/cpu/prepacked.cpp",
        "[] { process_cache = new Cache; }",
        "[] {}",
        PREPACKED,
    ),
    Fault(
        "known calls: the sizes are no part of the key",
        "csrc/torch/python/known_calls.cpp",
        "call.key.append(to.sizes().begin(), to.sizes().end());",
        "",
        KNOWN,
    ),
    Fault(
        "known calls: a weight's gradient is not asked for",
        "csrc/torch/python/known_calls.cpp",
        "std::all_of(call.weights.begin(), call.weights.end(), fits)",
        "true",
        KNOWN,
    ),
    Fault(
        "known calls: a call under a mode or a transform is answered",
        "csrc/torch/python/known_calls.cpp",
        "if (!is_plain_state() || !read_layer(layer, call)) return false;",
        "if (!read_layer(layer, call)) return false;",
        KNOWN,
    ),
    Fault(
        "products: oneDNN's forgets what was there",
        "csrc/torch/cpu/gemm.cpp",
        "onednn_product(to, a, b, 1.0f);",
        "onednn_product(to, a, b, 0.0f);",
        "tests/recurrent/test_gemm.py",
    ),
    Fault(
        "prepacked weights: late chunks are not read",
        "csrc/cpu/prepack.h",
        "const int64_t period = k == 0 ? 1 : span.sampling_period;",
        "const int64_t period = 1;\n            if (k > 2) continue;",
        PREPACKED,
    ),
    Fault(
        "cached choice: grad is no part of the key",
        "cnnlstm_fast/recurrent/functional.py",
        "        all_cells,\n        grad,\n        tracing,",
        "        all_cells,\n        False,\n        tracing,",
        "tests/recurrent/test_functional.py tests/recurrent/test_modules.py tests/recurrent/test_dispatch.py",
    ),
    Fault(
        "cached choice: the dtype is no part of the key",
        "cnnlstm_fast/recurrent/canonical.py",
        "return tensor.shape, tensor.dtype, tensor.device",
        "return tensor.shape, torch.float32, tensor.device",
        "tests/recurrent/test_functional.py tests/recurrent/test_canonical.py tests/recurrent/test_dispatch.py",
    ),
    Fault(
        "threads: a new Python thread's number is not asked for",
        "csrc/torch/ops.cpp",
        "  at::internal::lazy_init_num_threads();\n",
        "",
        "tests/recurrent/test_threads.py",
    ),
    Fault(
        "pickles name the files' modules",
        "cnnlstm_fast/__init__.py",
        ".__module__ = __name__",
        ".__doc__ = None",
        "tests/recurrent/test_pickles.py",
    ),
    # what the engines must not run, or run wrong
    Fault(
        "runner: weights edited",
        "csrc/torch/python/gate.cpp",
        "if (verdict != Verdict::kUnchanged || threads_",
        "if (threads_",
        RUNNER,
    ),
    Fault(
        "runner: changed otherwise",
        "csrc/torch/python/gate.cpp",
        "if (verdict == Verdict::kChanged)",
        "if (false)",
        RUNNER,
    ),
    Fault(
        "runner: gradients",
        "csrc/torch/python/gate.cpp",
        "if (c10::GradMode::is_enabled() &&",
        "if (false &&",
        RUNNER,
    ),
    Fault(
        "runner: a shallow copy",
        "csrc/torch/python/gate.cpp",
        "if (module != module_ || ",
        "if (",
        RUNNER,
    ),
    Fault(
        "runner: an edited copy",
        "cnnlstm_fast/encoder/runner.py",
        "structure(module) != self.structure",
        "False",
        RUNNER,
    ),
    Fault(
        "runner: new sizes untested",
        "cnnlstm_fast/encoder/runner.py",
        "bound.kinds[kind] = self._agrees(bound, module, args, kwargs, tensors)",
        "bound.kinds[kind] = True",
        RUNNER,
    ),
    Fault(
        "capture: the user's strides",
        "cnnlstm_fast/encoder/capture.py",
        'if not result.meta["val"].is_contiguous():',
        "if True:",
        RUNNER,
    ),
    Fault(
        "capture: hooks inside",
        "cnnlstm_fast/encoder/capture.py",
        "if part is not module and not isinstance(hook",
        "if False and not isinstance(hook",
        PREPARE,
    ),
    Fault(
        "prepare: calls leave attributes",
        "cnnlstm_fast/encoder/observe.py",
        "module.__dict__.update({k: v for k, v in before.items() if k != RUNNER})",
        "pass",
        PREPARE,
    ),
    Fault(
        "choose: a wrong engine",
        "cnnlstm_fast/encoder/engines/check.py",
        "        if not row.ok:",
        "        if False:",
        PREPARE,
    ),
    Fault(
        "whole: h and c exchanged",
        "cnnlstm_fast/encoder/lstm_call.py",
        "(x, [h0, c0], list(weights)",
        "(x, [c0, h0], list(weights)",
        "tests/encoder/test_whole.py",
    ),
    Fault(
        "whole: what no other engine has",
        "cnnlstm_fast/encoder/lstm_call.py",
        "if any(given is not None for given in (batch_sizes, lengths, reset, mask)) or all_cells:",
        "if False:",
        "tests/encoder/test_whole.py",
    ),
    Fault(
        "runner: the module's own hooks",
        "cnnlstm_fast/encoder/runner.py",
        "plain = _called_plainly(module) and all",
        "plain = all",
        PREPARE,
    ),
    Fault(
        "runner: arguments in another order",
        "csrc/torch/python/pattern.cpp",
        "PyDict_GetItemWithError(object, key)",
        "PyDict_GetItemWithError(example, key)",
        RUNNER,
    ),
    Fault(
        "idle team: does not end by itself",
        "csrc/torch/python/idle_team.cpp",
        "kWhile{200}",
        "kWhile{200000}",
        "tests/encoder/test_idle_team.py -m serial",
    ),
    Fault(
        "idle team: an engine that does not use it",
        "cnnlstm_fast/encoder/engines/onnxruntime.py",
        "            use_idle_team()",
        "            pass",
        "tests/encoder/test_idle_team.py",
    ),
    Fault(
        "inside: the choice without the model around it",
        "cnnlstm_fast/encoder/inside.py",
        "_place(others if pytorch < BETTER * own else chosen)",
        "_place(chosen)",
        "tests/encoder/test_inside.py",
    ),
    Fault(
        "inside: timed beside the idle team",
        "cnnlstm_fast/encoder/turns.py",
        "            end_idle_team()",
        "            pass",
        "tests/encoder/test_inside.py",
    ),
    Fault(
        "edits: another part than the one that was written",
        "cnnlstm_fast/encoder/functional.py",
        " and source.args[2:] == node.args[1:]",
        "",
        "tests/encoder/test_edits.py",
    ),
    Fault(
        "edits: parts of another shape or dtype",
        "cnnlstm_fast/encoder/functional.py",
        'return node.meta["spec"] == other.meta["spec"]',
        "return True",
        "tests/encoder/test_edits.py",
    ),
    Fault(
        "edits: of a buffer",
        "cnnlstm_fast/encoder/functional.py",
        "    if edited:",
        "    if False:",
        "tests/encoder/test_edits.py",
    ),
    Fault(
        "check: beyond the budget",
        "cnnlstm_fast/encoder/engines/check.py",
        "if k > 0 and time.monotonic() > options.deadline",
        "if False",
        "tests/encoder/test_engines.py",
    ),
    Fault(
        "training: gradients that are zero",
        "cnnlstm_fast/encoder/training.py",
        "scale = total if is_gradient(name) else 0.0",
        "scale = 0.0",
        TRAINING,
    ),
    Fault(
        "guard: contents",
        "csrc/torch/python/tensor_state.cpp",
        " && hash_of_sample() == sample_",
        "",
        "tests/encoder/test_guard.py",
    ),
    Fault(
        "cache: code not in the key",
        "cnnlstm_fast/encoder/fingerprint.py",
        'return f"{_digest(value.__code__)}{related}"',
        "return value.__qualname__",
        PREPARE,
    ),
    Fault(
        "cache: names unchecked",
        "cnnlstm_fast/encoder/serialize.py",
        "if not target.isidentifier() and op",
        "if False and op",
        PREPARE,
    ),
    Fault(
        "frames: edited since",
        "cnnlstm_fast/encoder/frame_runner.py",
        " and _same_bits(frame, wanted)",
        "",
        FRAMES,
    ),
    Fault(
        "frames: older weights",
        "cnnlstm_fast/encoder/frame_runner.py",
        "ahead.bound is not bound or ",
        "",
        FRAMES,
    ),
    Fault(
        "frames: results share memory",
        "cnnlstm_fast/encoder/frame_runner.py",
        "result[self._next - 1].clone()",
        "result[self._next - 1]",
        FRAMES,
    ),
    Fault(
        "frames: more rows than the example has",
        "cnnlstm_fast/encoder/frame_runner.py",
        "min(len(following), self.record.loop.rows // frame.size(0))",
        "len(following)",
        FRAMES,
    ),
    Fault(
        "fold: rows that depend on each other for some numbers",
        "cnnlstm_fast/encoder/fold.py",
        "problem = _mixed(chosen.plan) or install",
        "problem = install",
        FRAMES,
    ),
    Fault(
        "regions: a view of an engine's output",
        "cnnlstm_fast/encoder/regions.py",
        "node.target = aten.reshape.default",
        "pass",
        "tests/encoder",
    ),
    Fault(
        "dynamo: another set of weights",
        "cnnlstm_fast/encoder/dynamo.py",
        "self._owners.get(key) or",
        "next(iter(self._owners.values()), None) or",
        "tests/encoder/test_dynamo.py",
    ),
    Fault(
        "deferred: hooks run twice",
        "cnnlstm_fast/encoder/deferred.py",
        "and not (module._forward_hooks or module._forward_pre_hooks or has_hooks(module))",
        "",
        "tests/encoder/test_deferred.py",
    ),
    Fault(
        "onnx: a model of other weights",
        "cnnlstm_fast/encoder/engines/onnx_model.py",
        "for name, tensor in region.weights().items():\n        found",
        "for name, tensor in ():\n        found",
        "tests/encoder/test_engines.py",
    ),
    Fault(
        "onnx: slices to the example's sizes",
        "cnnlstm_fast/encoder/engines/onnx_model.py",
        "elif node.target is torch.ops.aten.slice.Tensor:",
        "elif False:",
        "tests/encoder/test_engines.py",
    ),
    Fault(
        "capture: a batch of one refused",
        "cnnlstm_fast/encoder/capture.py",
        'if "!=" in text or _NOT_ONE.fullmatch(text)',
        'if "!=" in text',
        PREPARE,
    ),
    Fault(
        "tracers: lost tangents",
        "cnnlstm_fast/recurrent/tracers.py",
        "if forward_ad._current_level >= 0:",
        "if False:",
        "tests/recurrent/test_tracers.py",
    ),
    # the measurement at first use
    Fault(
        "first use: not asked of a measurement",
        "cnnlstm_fast/recurrent/backends/first_use.py",
        'MeasuredSpeed(estimate.slow, f"{estimate}, measured',
        'MeasuredSpeed(False, f"{estimate}, measured',
        FIRST_USE,
    ),
    Fault(
        "first use: measured in a checkpoint",
        "cnnlstm_fast/recurrent/backends/first_use.py",
        "torch._C._autograd._top_saved_tensors_default_hooks(True) is not None",
        "False",
        FIRST_USE,
    ),
    Fault(
        "first use: no bound in a process",
        "cnnlstm_fast/recurrent/backends/first_use.py",
        "self._in_all -= seconds",
        "self._in_all -= 0.0",
        FIRST_USE,
    ),
    Fault(
        "first use: no bound at once",
        "cnnlstm_fast/recurrent/backends/first_use.py",
        "self._left -= seconds",
        "self._left -= 0.0",
        FIRST_USE,
    ),
    Fault(
        "first use: two threads measure",
        "cnnlstm_fast/recurrent/backends/first_use.py",
        "calls_here.find(here, name, *sizes) or _measure",
        "_measure",
        FIRST_USE,
    ),
    Fault(
        "first use: measured in a forked child",
        "cnnlstm_fast/recurrent/backends/first_use.py",
        "os.getpid() != _process",
        "False",
        FIRST_USE,
    ),
    Fault(
        "first use: identity without the processor",
        "cnnlstm_fast/recurrent/backends/this_machine.py",
        "hashlib.sha256(repr(self).encode())",
        "hashlib.sha256(repr(self[2:]).encode())",
        FIRST_USE,
    ),
    Fault(
        "first use: a file of another machine",
        "cnnlstm_fast/recurrent/backends/calls_here.py",
        "if found.made == _made(here)",
        "if found.made",
        FIRST_USE,
    ),
    Fault(
        "first use: other processes' calls are lost",
        "cnnlstm_fast/recurrent/backends/calls_here.py",
        "kinds = _read(here, path)",
        "kinds = {kind: _points(here)[kind][:-1]}",
        FIRST_USE,
    ),
    Fault(
        "first use: a warning for every look",
        "cnnlstm_fast/recurrent/backends/measured.py",
        "_warn_of_damage(path, str(error))",
        "_warn_of_damage.__wrapped__(path, str(error))",
        FIRST_USE,
    ),
    Fault(
        "first use: a single step like two",
        "cnnlstm_fast/recurrent/backends/calls_here.py",
        "return math.inf if min(a, b) <= 1 else",
        "return",
        FIRST_USE,
    ),
    Fault(
        "first use: tables of other processors are this one's",
        "cnnlstm_fast/recurrent/backends/measured.py",
        'kind in table.kinds and table.kinds[kind].made.get("cpu") == this_machine.cpu_name()',
        "kind in table.kinds",
        FIRST_USE,
    ),
    Fault(
        "first use: cannot be turned off",
        "cnnlstm_fast/recurrent/backends/this_machine.py",
        'os.environ.get("CNNLSTM_CALIBRATE") != "0"',
        "True",
        FIRST_USE,
    ),
    Fault(
        "first use: seen by the caller's modes",
        "cnnlstm_fast/recurrent/backends/probe.py",
        "torch._C.DisableTorchFunction(),",
        "torch.no_grad(),",
        FIRST_USE,
    ),
    Fault(
        "first use: a disturbed measurement is kept",
        "cnnlstm_fast/recurrent/backends/probe.py",
        "return ratio.high > WIDEST * ratio.low or others",
        "return others",
        FIRST_USE,
    ),
    Fault(
        "first use: other work is not seen",
        "cnnlstm_fast/recurrent/backends/probe.py",
        "> (free + OTHERS) * passed + TICKS",
        "> math.inf",
        FIRST_USE,
    ),
    Fault(
        "cache: a file is written in place",
        "cnnlstm_fast/files.py",
        "os.replace(temporary, path)",
        "path.write_bytes(data)",
        FIRST_USE,
    ),
]


def planted(text: str, fault: Fault) -> str:
    places = [match.start() for match in re.finditer(re.escape(fault.right), text)]
    if len(places) <= fault.nth:
        raise SystemExit(f"{fault.name}: {fault.file} no longer holds {fault.right!r}")
    at = places[fault.nth]
    return text[:at] + fault.wrong + text[at + len(fault.right) :]


def build(copy: Path, fault: Fault) -> None:
    if not fault.file.startswith("csrc/"):
        return
    targets = ["build_emulator"] if fault.file.startswith("csrc/cuda/") else ["build_native", "--inplace"]
    # The emulator's CUDA kernels and the CPU's are separate libraries: the CUDA part itself need not be compiled.
    environment = os.environ | {"CNNLSTM_NATIVE": "1", "CNNLSTM_CUDA": "0"}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *targets],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(
            f"{fault.name}: the copy does not compile:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def find(copy: Path, fault: Fault) -> str | None:
    """The first test that fails, or None."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n",
        "2",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run([*command, *fault.tests.split()], cwd=copy, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.M)
    if done.returncode not in (1, 2) or failed is None:
        raise SystemExit(
            f"{fault.name}: pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return failed[1]


def main(wanted: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not wanted or any(text in fault.name for text in wanted)]
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv", "build", "results", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=ignored)
        shutil.copytree(ROOT / "build" / "emulator", copy / "build" / "emulator")
        # An editable installation knows where this checkout's kernels lie; the copy's own are nearer as submodules.
        (copy / "cnnlstm_fast" / "kernels").symlink_to(copy / "kernels")
        os.environ.update(CCACHE_BASEDIR=str(copy), CCACHE_NOHASHDIR="1")
        for fault in chosen:
            start = time.monotonic()
            path = copy / fault.file
            text = path.read_text()
            path.write_text(planted(text, fault))
            build(copy, fault)
            found = find(copy, fault)
            path.write_text(text)
            build(copy, fault)
            lost += found is None
            print(f"{fault.name}: {found or 'NOT FOUND'} ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"{len(chosen) - lost} of {len(chosen)} faults found")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
