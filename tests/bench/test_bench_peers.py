"""The benchmark's peers: what they say they support, they compute right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from bench.cases import DTYPES, MODES, Case, calls
from bench.measure.jobs import build, oracle_job
from bench.peers import PEERS
from bench.peers.base import Peer
from cnnlstm_fast.contract import relative_error

ROOT = Path(__file__).parents[2]
ENGINES = ("onnx", "onnxruntime", "openvino", "torchrl", "triton")
LIMITS = {"f32": 1e-6, "bf16": 2e-2, "fp16": 2e-3, "amp": 2e-2, "int8": 5e-2, "tf32": 5e-3}
if not torch.cpu._is_vnni_supported():
    LIMITS["int8"] = 0.4  # ONNX Runtime's products of 8 bits saturate without VNNI: 0.29 was seen

BASE = Case("base", 9, 5, 6, 8, 2, True, "test")
SMALL = (
    BASE,
    Case("narrow", 7, 3, 5, 4, 1, False, "test"),
    Case("text", 26, 2, 40, 32, 2, True, "test"),
    Case("step", 1, 1, 128, 128, 1, False, "test", states=True),
    replace(BASE, name="states", states=True),
    replace(BASE, name="strided", strided=True),
    replace(BASE, name="lengths", lengths=(0.3, 0.9), states=True),
    replace(BASE, name="packed", lengths=(0.3, 1.0), packed=True, states=True),
    replace(BASE, name="empty", lengths=(0.3, 1.0), empty=2),
    replace(BASE, name="empty-states", lengths=(0.3, 1.0), empty=2, states=True),
    replace(BASE, name="projection", proj_size=3),
    Case("resets", 9, 5, 6, 8, 1, False, "test", resets=0.3, states=True),
)
TINY = (Case("tiny", 2, 3, 5, 4, 1, False, "test", states=True),)

QUICK = [name for name, peer in PEERS.items() if not peer.slow_setup]
SLOW = [name for name, peer in PEERS.items() if peer.slow_setup]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def test_table() -> None:
    assert all(name == peer.name for name, peer in PEERS.items())
    assert all(peer.summary and peer.modules and peer.pip for peer in PEERS.values())
    nowhere = Peer("nowhere", "", ("torch", "no_such_module"), "", lambda *_: None, lambda *_: None)
    assert nowhere.missing() == ["no_such_module"]


def test_asking_imports_no_engine() -> None:
    script = f"""
import sys
from bench.cases import calls
from bench.peers import PEERS
for peer in PEERS.values():
    peer.missing()
    for device in ("cpu", "cuda"):
        for case, mode, dtype in calls("all", device=device):
            reason = peer.supports(case, mode, dtype, device)
            assert reason is None or reason.strip(), (peer.name, case.name)
print(*sys.modules.keys() & set({ENGINES}))
"""
    assert python_prints(script).split() == []


@pytest.mark.parametrize("name", PEERS)
def test_some_row_is_for_it(name: str) -> None:
    rows = [(*call, device) for device in ("cpu", "cuda") for call in calls("all", device=device)]
    assert any(PEERS[name].supports(*row) is None for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", QUICK)
def test_numbers(name: str, device: str) -> None:
    _check(name, device)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SLOW)
def test_numbers_of_slow_setups(name: str, device: str) -> None:
    _check(name, device)


def _check(name: str, device: str) -> None:
    """In a process of its own, for an engine may end its process."""
    peer = PEERS[name]
    if peer.missing():
        pytest.skip(f"no module {', '.join(peer.missing())}: pip install {peer.pip}")
    if not list(_supported(peer, device)):
        pytest.skip(f"not for {device}")
    script = f"import test_bench_peers as tests; tests.print_errors({name!r}, {device!r})"
    errors = json.loads(python_prints(script).splitlines()[-1])
    assert errors
    assert {what: (error, limit) for what, (error, limit) in errors.items() if not error <= limit} == {}


def print_errors(name: str, device: str) -> None:
    """The process of ``_check``: prints what was compared, its error and its limit."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    peer, errors = PEERS[name], {}
    for case, mode, dtype in _supported(peer, device):
        inputs = build(case, DTYPES[dtype], device)
        found = peer.prepare(case, inputs, mode, dtype).results()
        exact = oracle_job(case, inputs, mode).results()
        assert found.keys() == exact.keys()
        for what, tensor in exact.items():
            error = relative_error(found[what], tensor)
            errors[f"{case.name} {mode} {dtype} {what}"] = error, LIMITS[peer.precision or dtype]
    print(json.dumps(errors))


def _supported(peer: Peer, device: str) -> Iterator[tuple[Case, str, str]]:
    for case, mode, dtype in product(TINY if peer.slow_setup else SMALL, MODES, DTYPES):
        for_gpu, for_training = dtype == "fp16", dtype == "amp"
        if (for_gpu and device == "cpu") or (for_training and mode != "training"):
            continue
        if peer.supports(case, mode, dtype, device) is None:
            yield case, mode, dtype


def python_prints(script: str) -> str:
    """What a script prints in a process of its own, with the tests of this folder importable."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout
