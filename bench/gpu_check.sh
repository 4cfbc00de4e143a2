#!/usr/bin/env bash
# The check on a machine with an NVIDIA GPU and no network: bench/gpu_check.sh OUTDIR [--budget SECONDS]
# Builds in place with the interpreter $PYTHON (python3), which has PyTorch, cmake, ninja, pybind11, numpy, rich, hypothesis,
# pytest, pytest-xdist and pytest-timeout; runs every GPU test, then as many rows of the suite `gpu` as fit the budget (480 s
# in all), the most important first, and lists those that it dropped. Writes facts.json, micro.json (costs of the parts of a
# step), tests.xml, gpu.json, table.txt and log.txt (with the resources of every kernel, and each test's result as it comes)
# to OUTDIR. What may end a process on an error or a hang of the GPU runs in one of its own. Exit status: 3 without a GPU, 1
# if something failed.
set -uo pipefail
python=${PYTHON:-python3}
usage="usage: bench/gpu_check.sh OUTDIR [--budget SECONDS]"
out=$(realpath -m "${1:?$usage}") || exit 2
cd "$(dirname "$0")/.."
budget=480
if [ "${2:-}" = --budget ]; then budget=${3:?$usage}; elif [ $# -gt 1 ]; then echo "$usage" >&2; exit 2; fi

if ! why=$("$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else
  f"PyTorch {torch.__version__} sees no NVIDIA GPU")' 2>&1); then
  echo "gpu_check: $why" >&2
  exit 3
fi
mkdir -p "$out"
exec > >(tee "$out/log.txt") 2>&1
failed=0
within() { # seconds at most, command...
  timeout --signal INT --kill-after 10 "$@" || { failed=1; echo "FAILED ($?): ${*:2}"; }
}

echo "== build ($SECONDS s)"
CNNLSTM_NATIVE=1 CNNLSTM_CUDA=1 CNNLSTM_CUDA_ARCHS=${CNNLSTM_CUDA_ARCHS:-native} \
  "$python" setup.py -q build_native --inplace || exit 1
within 60 "$python" - "$out/facts.json" << 'PY'
import json, sys
import torch
from bench.roofline.peaks import measure
from cnnlstm_fast import _native
if not _native.available:
    sys.exit(_native.reason)
facts = _native.facts() | {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
facts["roofline"] = measure("cuda").as_dict()
text = json.dumps(facts, indent=1, default=str)
open(sys.argv[1], "w").write(text + "\n")
print(text)
PY

echo "== kernels ($SECONDS s)"
within 60 "$python" tests/cuda_resources.py
within 60 "$python" -m bench.calibrate.micro --json "$out/micro.json"

echo "== tests ($SECONDS s)"
# A worker that a hang or a sticky error ends is replaced by another (tests/conftest.py).
left=$((budget - SECONDS))
within $((left * 2 / 3)) "$python" -m pytest -v -m gpu tests -n 12 --max-worker-restart 1000 --timeout 60 \
  --timeout-method thread --benchmark-disable --junitxml="$out/tests.xml"

echo "== benchmark ($SECONDS s)"
left=$((budget - SECONDS - 10))
within $((left + 5)) "$python" -m bench --suite gpu --budget "$left" --json "$out/gpu.json" > "$out/table.txt"
cat "$out/table.txt"
echo "== done after $SECONDS s, $([ $failed = 0 ] && echo passed || echo FAILED)"
exit $failed
