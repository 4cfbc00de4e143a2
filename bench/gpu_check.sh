#!/usr/bin/env bash
# The check on a machine with an NVIDIA GPU: builds in place for this GPU, runs the tests that need one, and tells what
# the device is and how fast it copies. Needs PyTorch, cmake, ninja, pybind11, pytest and nvcc there, and no network.
#   PYTHON  the interpreter (python3)        OUT  where the results go (bench/results/gpu_check)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-bench/results/gpu_check}
mkdir -p "$out"
exec > >(tee "$out/log.txt") 2>&1

"$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else
  f"PyTorch {torch.__version__} sees no NVIDIA GPU")'
CNNLSTM_NATIVE=1 CNNLSTM_CUDA=1 CNNLSTM_CUDA_ARCHS=${CNNLSTM_CUDA_ARCHS:-native} \
  "$python" setup.py -q build_native --inplace
"$python" - "$out/facts.json" << 'PY'
import json, sys
import torch
from cnnlstm_fast import _native
if not _native.available:
    sys.exit(_native.reason)
facts = _native.facts() | {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
facts["copy_gb_per_s"] = round(_native._C.cuda_copy_bandwidth(1 << 30, 20), 1)
text = json.dumps(facts, indent=1, default=str)
open(sys.argv[1], "w").write(text + "\n")
print(text)
PY
"$python" -m pytest -m gpu tests --junitxml="$out/tests.xml"
