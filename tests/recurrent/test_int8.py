"""The backend cpu-int8: as exact as int8 can be, on every instruction set alike, and only where it is named."""

from __future__ import annotations

import copy
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SEED, Case, draw_data, fast, one_thread, oracle, results
from torch import Tensor, nn

import cnnlstm_fast
from cnnlstm_fast import _native, optimize, verify
from cnnlstm_fast.contract import APPROXIMATE, relative_error
from cnnlstm_fast.recurrent import functional

pytestmark = [
    pytest.mark.skipif(not _native.available, reason="needs the native part"),
    pytest.mark.filterwarnings("ignore"),  # of torch.ao
]
INT8 = "cpu-int8"
CASES = [
    Case(T=1, B=1, I=512, H=64),
    Case(T=1, B=40, I=3, H=5),
    Case(T=20, B=1, I=64, H=128, states=False),
    Case(T=9, B=33, I=37, H=50, layers=2, bidirectional=True, cells=True),
    Case(T=9, B=7, I=17, H=31, kind="packed", bidirectional=True),
    Case(T=9, B=5, I=6, H=18, kind="lengths", layers=2, cells=True),
    Case(T=9, B=5, I=6, H=18, kind="lengths+reset", bidirectional=True),
    Case(T=9, B=6, I=30, H=40, proj=11, layers=2),
    Case(T=6, B=13, I=21, H=24, bias=False, layout="batch_first"),
    Case(T=6, B=3, I=21, H=24, layout="gap"),
    Case(T=0, B=3, I=21, H=24),
    Case(T=4, B=3, I=2100, H=20, scale=0.02),
    Case(T=5, B=33, I=512, H=256, bidirectional=True),
]


def _run(case: Case, k: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    data = draw_data(case, torch.float32, SEED + k)
    exact = results(oracle, data, backward=False)
    with torch.no_grad():
        return results(fast(INT8), data.to(torch.float32), backward=False), exact


@pytest.mark.parametrize("case", CASES, ids=str)
def test_errors_are_those_of_int8(case: Case) -> None:
    for k in range(3):
        found, exact = _run(case, k)
        assert found.keys() == exact.keys()
        for name, want in exact.items():
            error = relative_error(found[name], want)
            assert error <= 0.04, f"{name}: {error:.2e}"
            if name == "output" and case.kind != "padded":
                assert torch.equal(found[name] == 0, want == 0)


@pytest.mark.parametrize("B", range(1, 41, 3))
def test_every_batch_is_its_sequences_one_by_one(B: int) -> None:
    """A row has its own scale, so that its neighbours do not change it."""
    layer, x = cnnlstm_fast.LSTM(10, 20, backend=INT8), torch.randn(4, B, 10)
    x *= 10.0 ** torch.arange(B).remainder(5).sub(2).view(1, B, 1)
    with torch.no_grad():
        together, alone = layer(x)[0], torch.cat([layer(x[:, b : b + 1])[0] for b in range(B)], 1)
    assert relative_error(together, alone) <= 1e-6


@pytest.mark.parametrize("shape", [(20, 2, 24, 48, 1, False), (12, 3, 40, 32, 2, True)], ids=str)
def test_not_worse_than_pytorchs_dynamic_quantization(shape: tuple[Any, ...]) -> None:
    T, B, I, H, layers, both = shape
    squares = [0.0, 0.0]
    for _ in range(10):
        plain = nn.LSTM(I, H, layers, bidirectional=both).eval()
        x = torch.randn(T, B, I)
        quantized = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(copy.deepcopy(plain)), {nn.LSTM}, dtype=torch.qint8
        )
        with torch.no_grad(), one_thread():
            exact = copy.deepcopy(plain).double()(x.double())[0]
            for k, model in enumerate((optimize(copy.deepcopy(plain), backend=INT8), quantized)):
                squares[k] += relative_error(model(x)[0], exact) ** 2
    assert math.sqrt(squares[0]) <= 1.2 * math.sqrt(squares[1])


ONE_STEP = """
import pickle, sys, torch, cnnlstm_fast
torch.manual_seed(0)
found = []
for B, I, H in ((1, 5, 3), (9, 37, 50), (3, 700, 64), (40, 256, 256)):
    layer, x = cnnlstm_fast.LSTM(I, H, backend="cpu-int8"), torch.randn(1, B, I)
    with torch.no_grad():
        found.append(layer(x, (torch.randn(1, B, H), torch.randn(1, B, H)))[0].numpy())
pickle.dump(found, open(sys.argv[1], "wb"))
"""


def test_every_instruction_set_has_the_same_integers(tmp_path: Path) -> None:
    """One integer that differs by 1 in one product would show as 1e-4 and more: after one step, for later ones round
    what the activations' last bits have changed."""
    found = []
    for isa in _native.facts()["cpu"]["isas"]:
        subprocess.run(
            [sys.executable, "-c", ONE_STEP, str(tmp_path / isa)],
            env={**os.environ, "CNNLSTM_CPU_ISA": isa, "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=110,
        )
        found.append(pickle.loads((tmp_path / isa).read_bytes()))
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            assert abs(got - want).max() <= 2e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("B", [3, 40])
def test_what_is_not_finite_stays_in_its_sequence(bad: float, B: int) -> None:
    layer, x = cnnlstm_fast.LSTM(10, 20, backend=INT8), torch.randn(6, B, 10)
    with torch.no_grad():
        clean = layer(x)[0]
        x[2, 1, 3] = bad
        found = layer(x)[0]
    others = [b for b in range(B) if b != 1]
    assert torch.equal(found[:, others], clean[:, others]) and torch.equal(found[:2], clean[:2])
    assert found[2:, 1].isnan().all()


def test_rows_of_zeros_and_of_tiny_numbers() -> None:
    layer, x = cnnlstm_fast.LSTM(8, 12, backend=INT8), torch.randn(5, 4, 8)
    with torch.no_grad():
        layer.weight_ih_l0[3] = 0.0
        layer.weight_hh_l0[::2] = 0.0
        layer.weight_hh_l0[1] = 1e-42
        x[1:3, 2] = 0.0
        x[3, 1] = 1e-42
        exact = copy.deepcopy(layer).double()
        exact.backend = "reference"
        assert relative_error(layer(x)[0], exact(x.double())[0]) <= 0.02


@pytest.mark.parametrize("calls", range(4))
@pytest.mark.parametrize(
    "edit",
    [
        lambda layer: layer.weight_hh_l0.mul_(-1.0),
        lambda layer: layer.weight_ih_l0[0, :1].add_(3.0),
        lambda layer: layer.weight_ih_l0.data.mul_(-1.0),
        lambda layer: layer.load_state_dict({k: -v for k, v in layer.state_dict().items()}),
        lambda layer: setattr(layer, "weight_hh_l0", nn.Parameter(-layer.weight_hh_l0)),
    ],
    ids=["in place", "one number", "data", "state_dict", "replaced"],
)
def test_an_edit_is_seen_by_the_next_call(edit: Any, calls: int) -> None:
    layer, x = cnnlstm_fast.LSTM(24, 100, backend=INT8), torch.randn(5, 2, 24)
    with torch.no_grad():
        for _ in range(calls):
            layer(x)
        edit(layer)
        fresh = copy.deepcopy(layer)
        assert all(torch.equal(layer(x)[0], fresh(x)[0]) for _ in range(3))


def test_one_number_of_a_large_weight_that_autograd_does_not_count() -> None:
    with torch.inference_mode():
        layer, x = cnnlstm_fast.LSTM(256, 256, backend=INT8), torch.randn(2, 1, 256)
        before = [layer(x)[0] for _ in range(3)][-1]
        layer.weight_hh_l0[-1, -1] += 3.0
        layer.weight_ih_l0[-1, -1] += 3.0
        assert torch.equal(layer(x)[0], copy.deepcopy(layer)(x)[0])
        assert not torch.equal(layer(x)[0], before)


def test_both_kinds_of_panels_are_kept_side_by_side() -> None:
    layer, x = cnnlstm_fast.LSTM(24, 40), torch.randn(30, 4, 24)
    found: dict[str, list[Tensor]] = {"cpu": [], INT8: []}
    with torch.no_grad():
        for _ in range(3):
            for backend in found:
                layer.backend = backend
                found[backend].append(layer(x)[0])
    assert all(torch.equal(first, other) for first, *rest in found.values() for other in rest)
    assert 1e-4 < relative_error(found[INT8][0], found["cpu"][0]) < 0.02


def test_kept_weights_take_a_quarter_of_the_memory() -> None:
    layer, x = cnnlstm_fast.LSTM(256, 256, backend=INT8), torch.randn(3, 4, 256)
    cnnlstm_fast.clear_cache()
    with torch.no_grad():
        for _ in range(3):
            layer(x)
    kept = torch.ops.cnnlstm_fast.prepacked_bytes()
    weights = layer.weight_ih_l0.nbytes + layer.weight_hh_l0.nbytes
    assert weights / 4 <= kept <= weights / 4 * 1.05


def test_auto_never_takes_it() -> None:
    layer, x = cnnlstm_fast.LSTM(24, 40), torch.randn(30, 4, 24)
    with torch.no_grad():
        named = cnnlstm_fast.explain(optimize(nn.LSTM(24, 40), backend=INT8), x)
        assert "backend:  cpu-int8: named by the caller" in named
        assert "backend:  cpu-int8" not in cnnlstm_fast.explain(layer, x)
        assert cnnlstm_fast.BACKENDS[INT8].approximate


def test_what_it_cannot_do_is_a_sentence() -> None:
    layer, x = cnnlstm_fast.LSTM(6, 5, backend=INT8), torch.randn(3, 2, 6)
    with pytest.raises(RuntimeError, match=r"'cpu-int8' cannot take this call: it has no gradients.*no_grad"):
        layer(x)
    with (
        pytest.raises(RuntimeError, match="it takes float32 tensors, the tensors are bfloat16"),
        torch.no_grad(),
    ):
        layer.bfloat16()(x.bfloat16())
    wide = [torch.empty(4, (1 << 17) + 1, device="meta"), torch.empty(4, 1, device="meta")]
    with pytest.raises(RuntimeError, match="it runs on the CPU"):
        functional.lstm(torch.empty(1, 1, (1 << 17) + 1, device="meta"), None, wide, bias=False, backend=INT8)
    weights, wide_x = [torch.randn(4, (1 << 17) + 1), torch.randn(4, 1)], torch.randn(1, 1, (1 << 17) + 1)
    with pytest.raises(RuntimeError, match="hold 131072 features at most"):
        functional.lstm(wide_x, None, weights, bias=False, backend=INT8)


def test_the_longest_sums_fit() -> None:
    K = 1 << 17
    with torch.no_grad():
        for sign in (1.0, -1.0):
            weights = [torch.full((4, K), sign), torch.zeros(4, 1)]
            x = torch.full((1, 1, K), 1.0)
            data = functional.lstm(x * (2.0 / K), None, weights, bias=False, backend=INT8)[0]
            exact = functional.lstm(x * (2.0 / K), None, weights, bias=False, backend="reference")[0]
            assert relative_error(data, exact) <= 1e-5


def test_verify_gives_the_error_and_calls_it_approximate() -> None:
    model = nn.Sequential(nn.LSTM(16, 24, 2, bidirectional=True))
    with one_thread():
        report = verify(optimize(model, backend=INT8), torch.randn(9, 3, 16), seconds=0.0)
    assert report.ok and report.approximate == [INT8]
    assert all(1e-4 < row.fast < APPROXIMATE == row.limit for row in report.errors)
    text = str(report)
    assert "approximate by request" in text and "not the same numbers, by request (cpu-int8)" in text
    assert f"{max(row.fast for row in report.errors):.1e}" in text
    assert not any("gradient" in row.what for row in report.errors)


def test_a_traced_graph_takes_it() -> None:
    layer, x = cnnlstm_fast.LSTM(12, 20, backend=INT8), torch.randn(7, 3, 12)
    with torch.no_grad():
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x)[0], layer(x)[0])
