"""Programs that were exported where the native part is, loaded where it is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cnnlstm_fast
from cnnlstm_fast import _native, optimize
from cnnlstm_fast.contract import APPROXIMATE, relative_error

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")

# Loads every program of a folder and writes what it computes; prints what was warned of.
LOADED = """
import json, sys, warnings
from pathlib import Path
import torch
import cnnlstm_fast
from cnnlstm_fast import _native

folder = Path(sys.argv[1])
assert not _native.available
assert Path(cnnlstm_fast.__file__).parents[1] == folder, cnnlstm_fast.__file__
told = []
for path in sorted(folder.glob("*.pt2")):
    inputs = torch.load(path.with_suffix(".inputs"))
    model = torch.export.load(path).module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = {}
        for _ in range(2):
            with torch.no_grad():
                found["output"] = model(*inputs)
            if path.stem.startswith("training"):
                leaves = [inputs[0].requires_grad_(), *model.parameters()]
                output = model(*inputs)
                grads = torch.autograd.grad(output.square().sum(), leaves)
                found |= {f"gradient {k}": grad for k, grad in enumerate(grads)}
    told += [str(w.message) for w in caught if "cnnlstm_fast" in str(w.message)]
    torch.save(found, path.with_suffix(".found"))
print(json.dumps(told))
"""


class Model(nn.Module):
    """Convolution and LSTM; with lengths, which PyTorch's LSTM does not take, where they are given."""

    def __init__(self, backend: str, **options: object) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.lstm = optimize(nn.LSTM(8, 16, **options), backend=backend)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        output, (_, c_n) = self.lstm(self.conv(x).permute(2, 0, 1), lengths=lengths)
        return output + c_n[-1].mean(1, keepdim=True)


def _want(model: nn.Module, inputs: tuple[Tensor, ...], training: bool) -> dict[str, Tensor]:
    with torch.no_grad():
        want = {"output": model(*inputs)}
    if training:
        leaves = [inputs[0].clone().requires_grad_(), *model.parameters()]
        grads = torch.autograd.grad(model(leaves[0], *inputs[1:]).square().sum(), leaves)
        want |= {f"gradient {k}": grad for k, grad in enumerate(grads)}
    return want


def _without_native(folder: Path) -> None:
    """A copy of the package without what was compiled."""
    package = Path(cnnlstm_fast.__file__).parent
    ignored = shutil.ignore_patterns("*.so", "_build_notes.json", "__pycache__", "demo")
    shutil.copytree(package, folder / package.name, ignore=ignored)
    notes = {"native": False, "native_reason": "switched off by a test", "cuda": False}
    (folder / package.name / "_build_notes.json").write_text(json.dumps(notes))


@pytest.mark.slow
def test_an_exported_program_runs_without_the_native_part(tmp_path: Path) -> None:
    """Inference and gradients, by PyTorch's LSTM and by the reference; one warning for each backend that is missing."""
    x, lengths = torch.randn(3, 4, 7), torch.tensor([7, 2, 5])
    stack = dict(num_layers=2, bidirectional=True)
    programs = {
        "inference": (Model("auto", **stack), (x,)),
        "inference_lengths": (Model("auto", **stack), (x, lengths)),
        "inference_int8": (Model("cpu-int8"), (x,)),
        "training": (Model("auto", **stack), (x,)),
        "training_lengths": (Model("cpu", proj_size=5, bias=False), (x, lengths)),
    }
    wanted = {}
    for name, (model, inputs) in programs.items():
        training = name.startswith("training")
        with torch.set_grad_enabled(training):
            program = torch.export.export(model.eval(), inputs)
        operators = [n for n in program.graph.nodes if n.target is torch.ops.cnnlstm_fast.lstm.default]
        assert [n.args[-1] for n in operators] == ["cpu-int8" if "int8" in name else "cpu"]
        torch.export.save(program, tmp_path / f"{name}.pt2")
        torch.save(inputs, tmp_path / f"{name}.inputs")
        wanted[name] = _want(model, inputs, training)
    _without_native(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, want in wanted.items():
        found = torch.load(tmp_path / f"{name}.found")
        assert found.keys() == want.keys()
        for what in want:
            limit = APPROXIMATE if "int8" in name else 2e-6
            assert relative_error(found[what], want[what]) <= limit, f"{name}: {what}"
    told = json.loads(done.stdout)
    assert len(told) == 2, told
    for backend in ("'cpu'", "'cpu-int8'"):
        (said,) = [line for line in told if backend in line]
        assert "the native part was not built: switched off by a test" in said
