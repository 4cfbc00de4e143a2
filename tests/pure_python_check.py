"""Run by .ci/run where the wheel without libraries is installed: it must work and say what it lacks."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

warnings.simplefilter("error", UserWarning)  # a package that is pure on purpose warns of nothing

import torch  # noqa: E402

import cnnlstm_fast  # noqa: E402
from cnnlstm_fast import _native  # noqa: E402

environment = Path(sys.argv[1]).resolve()
assert Path(cnnlstm_fast.__file__).resolve().is_relative_to(environment), cnnlstm_fast.__file__
assert not _native.available
assert "CNNLSTM_NATIVE=0" in (_native.reason or ""), _native.reason

told = subprocess.run([environment / "bin" / "cnnlstm-fast", "info"], capture_output=True, text=True)
assert told.returncode == 0, told.stderr
assert "CNNLSTM_NATIVE=0" in " ".join(told.stdout.split()), told.stdout

torch.manual_seed(0)
reference = torch.nn.LSTM(5, 7, num_layers=2, bidirectional=True)
layer = cnnlstm_fast.LSTM(5, 7, num_layers=2, bidirectional=True)
layer.load_state_dict(reference.state_dict())
x = torch.randn(4, 3, 5)
torch.testing.assert_close(layer(x)[0], reference(x)[0])
layer(x)[0].sum().backward()
assert all(parameter.grad is not None for parameter in layer.parameters())
print("pure Python:", _native.reason)
