#!/usr/bin/env bash
# The check on a machine with an NVIDIA GPU and no network: bench/gpu_check.sh OUTDIR [--budget SECONDS]
# Builds in place with the interpreter $PYTHON (python3), which has PyTorch, cmake, ninja, pybind11, pytest, numpy and
# rich; runs every GPU test, then as many rows of the suite `gpu` as fit the budget (480 s in all), the most important
# first, and lists those that it dropped. Writes facts.json, micro.json (costs of the parts of a step), tests.xml,
# gpu.json, table.txt and log.txt (with the resources of every kernel) to OUTDIR. Exit status: 3 without a GPU, 1 if
# something failed.
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

echo "== build ($SECONDS s)"
CNNLSTM_NATIVE=1 CNNLSTM_CUDA=1 CNNLSTM_CUDA_ARCHS=${CNNLSTM_CUDA_ARCHS:-native} \
  "$python" setup.py -q build_native --inplace || exit 1
"$python" - "$out/facts.json" << 'PY' || failed=1
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
"$python" tests/cuda_resources.py || failed=1
"$python" -m bench.calibrate.micro --json "$out/micro.json" || failed=1

echo "== tests ($SECONDS s)"
left=$((budget - SECONDS))
timeout --signal INT --kill-after 20 $((left * 2 / 3)) "$python" -m pytest -q -m gpu tests --junitxml="$out/tests.xml" || failed=1

echo "== benchmark ($SECONDS s)"
left=$((budget - SECONDS - 10))
"$python" -m bench --suite gpu --budget "$left" --json "$out/gpu.json" > "$out/table.txt" || failed=1
cat "$out/table.txt"
echo "== done after $SECONDS s, $([ $failed = 0 ] && echo passed || echo FAILED)"
exit $failed
