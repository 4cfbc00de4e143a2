"""Every backend by the contract: its error against the float64 reference beside PyTorch's own."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from helpers import (
    DEVICES,
    EXACT,
    INTERPRETED,
    INTERPRETED_T,
    SEED,
    Case,
    Data,
    Run,
    arguments,
    check_case,
    fast,
    make,
    nan_memory,
    one_thread,
    require,
    require_spec,
    results,
    spec_of,
    threads,
)
from torch import nn

from cnnlstm_fast import BACKENDS, _native
from cnnlstm_fast.recurrent import functional

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(autouse=True)
def _nan_memory():
    with nan_memory():
        yield


@pytest.fixture(autouse=True)
def _two_threads(request: pytest.FixtureRequest):
    """Of the C++ kernel, so that its threads have to wait for each other."""
    callspec = getattr(request.node, "callspec", None)
    with threads(2) if callspec and callspec.params.get("backend") == "cpu" else nullcontext():
        yield


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=EXACT)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


def random_case(generator: random.Random) -> Case:
    """Odd sizes and flags, without the largest of all at once."""
    pick = generator.choice
    kind = pick(["padded", "padded", "packed", "lengths", "reset", "lengths+reset"])
    H = pick([1, 3, 16, 17, 33, 64, 200])
    T, B, I = pick([1, 2, 5, 13, 50]), pick([1, 2, 3, 8, 9, 37]), pick([1, 5, 40, 64, 257])
    if T * B * H > 50_000:
        T = 7
    layouts = ["contiguous", "nchw", "batch_first", "slice"] + (["expanded"] if kind != "packed" else [])
    return Case(
        T,
        B,
        I,
        H,
        layers=pick([1, 1, 2, 3]),
        bidirectional=pick([False, True]),
        bias=pick([True, True, False]),
        proj=pick([0, 0, 0, 1, H // 2]) if H > 1 else 0,
        kind=kind,
        states=pick([False, True]),
        cells=pick([False, False, True]),
        layout=pick(layouts),
    )


_GENERATOR = random.Random(2024)
RANDOM_CASES = [random_case(_GENERATOR) for _ in range(60)]

CHOSEN_CASES = [
    *[Case(T=6, B=5, I=11, H=H, layers=2, bidirectional=True) for H in (1, 3, 16, 17, 64, 200)],
    *[Case(T=6, B=5, I=I, H=24) for I in (1, 40, 257)],
    *[Case(T=3, B=B, I=24, H=32) for B in (1, 2, 7, 16, 37)],
    *[Case(T=T, B=3, I=24, H=32, bidirectional=True) for T in (1, 2, 50)],
    *[Case(layout=layout, H=32) for layout in ("nchw", "batch_first", "expanded", "slice")],
    # rows that lie T apart, enough of them for every way to multiply the inputs
    *[Case(T=20, B=8, I=I, H=32, bidirectional=True, layout="batch_first") for I in (1, 33, 64)],
    *[Case(kind=kind, B=6, H=32, layers=2, bidirectional=True) for kind in ("packed", "lengths", "reset")],
    Case(kind="lengths+reset", B=6, H=32, layers=2, bidirectional=True, cells=True),
    Case(bias=False, H=32, layers=2),
    Case(proj=5, H=32, layers=2, bidirectional=True, kind="packed"),
    Case(proj=7, H=40, layers=3, cells=True),
    Case(states=False, H=32, layers=2, bidirectional=True, cells=True),
    Case(H=32, scale=1e-4),
    Case(T=30, B=2, I=16, H=64, layers=2, scale=0.3),
]


# A draw that fails asks for 31 more, which take minutes where kernels are interpreted.
@pytest.mark.timeout(600)
@pytest.mark.sampled(5, "interpreted")
@pytest.mark.parametrize("case", CHOSEN_CASES, ids=str)
def test_chosen_case(case: Case, backend: str, dtype: torch.dtype, device: str) -> None:
    check_case(case, backend, dtype, device)


@pytest.mark.timeout(600)
@pytest.mark.sampled(7, "interpreted")
@pytest.mark.parametrize("case", RANDOM_CASES, ids=str)
def test_random_case(case: Case, backend: str, dtype: torch.dtype, device: str) -> None:
    check_case(case, backend, dtype, device)


@pytest.mark.parametrize(
    "case", [Case(H=32, layers=2, bidirectional=True), Case(proj=3, kind="packed")], ids=str
)
@pytest.mark.parametrize("other", [torch.float64, torch.float16])
def test_other_dtypes(case: Case, backend: str, other: torch.dtype, device: str) -> None:
    check_case(case, backend, other, device)


@pytest.mark.parametrize(
    "case", [Case(T=0, layers=2), Case(B=0, bidirectional=True), Case(T=0, B=0)], ids=str
)
def test_nothing_to_do(case: Case, backend: str, dtype: torch.dtype, device: str) -> None:
    check_case(case, backend, dtype, device)


@pytest.mark.parametrize("cells", [False, True])
def test_inference_gives_the_numbers_of_training(
    cells: bool, backend: str, dtype: torch.dtype, device: str
) -> None:
    case = Case(T=9, B=5, I=24, H=48, layers=2, bidirectional=True, cells=cells)
    check_case(case, backend, dtype, device, backward=False)


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_gradient_of_one_result_alone(which: int, backend: str, dtype: torch.dtype, device: str) -> None:
    """The cotangents of the other results are absent, not zero."""

    def only(run: Run) -> Run:
        def one(data: Data, leaves: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            outs = run(data, leaves)
            return tuple(o if k == which else o.detach() for k, o in enumerate(outs))

        return one

    case = Case(T=5, B=3, I=8, H=16, layers=2, bidirectional=True, cells=which == 3)
    check_case(case, backend, dtype, device, part=only)


@pytest.mark.parametrize("wanted", [["x"], ["h0"], ["c0"], ["weight 1"], ["x", "weight 3"]], ids=str)
def test_gradient_of_some_inputs_alone(wanted: list[str], backend: str, device: str) -> None:
    dtype = torch.float32
    data = make(Case(T=5, B=3, I=8, H=16, layers=2), dtype)
    there = data.to(dtype, device)
    require(backend, there)
    every = results(fast(backend), there)
    leaves = [
        t.clone().requires_grad_(name in wanted) for name, t in zip(there.names, there.leaves, strict=True)
    ]
    outs = fast(backend)(there, leaves)
    picked = [leaf for leaf in leaves if leaf.requires_grad]
    for name, grad in zip(wanted, torch.autograd.grad(outs, picked, there.cotangents), strict=True):
        torch.testing.assert_close(grad, every[f"gradient of {name}"])


@pytest.mark.parametrize(
    "case",
    [
        Case(T=20, B=9, I=40, H=64, layers=2, bidirectional=True),
        Case(T=20, B=9, I=40, H=17, kind="lengths"),
        Case(T=12, B=5, I=40, H=64, kind="packed", proj=8),
        Case(T=1, B=1, I=64, H=128),
    ],
    ids=str,
)
def test_same_bits_run_to_run(case: Case, backend: str, dtype: torch.dtype, device: str) -> None:
    if backend in INTERPRETED:
        case = case._replace(T=min(case.T, INTERPRETED_T))
    data = make(case, dtype).to(dtype, device)
    require(backend, data)
    first = results(fast(backend), data)
    for _ in range(3):
        for name, again in results(fast(backend), data).items():
            assert torch.equal(again, first[name]), name


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_dropout_by_seed(backend: str, bidirectional: bool, packed: bool, device: str) -> None:
    """The same seed gives the same result, and on the CPU nn.LSTM's."""
    layer = nn.LSTM(6, 16, 3, dropout=0.4, bidirectional=bidirectional, device=device)
    x = torch.randn(5, 4, 6, device=device)
    given = (
        nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 5, 1, 4]), enforce_sorted=False)
        if packed
        else x
    )
    options = dict(num_layers=3, bidirectional=bidirectional, dropout=0.4)
    require_spec(backend, spec_of(given, None, layer._flat_weights, **options))

    def run(call, seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        output, states = call(given)
        rows = output.data if packed else output
        loss = rows.sum() + states[0].sum() + states[1].sum()
        return [rows, *states, *torch.autograd.grad(loss, list(layer.parameters()))]

    def ours(given):
        return functional.lstm(given, None, layer._flat_weights, **options, backend=backend)

    first = run(ours, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, run(ours, 7), strict=True))
    assert not torch.equal(first[0], run(ours, 8)[0])
    if device == "cpu":
        torch.testing.assert_close(first, run(layer, 7))


def test_dropout_of_everything(backend: str) -> None:
    """With p=1 the second layer sees zeros: its output does not depend on x."""
    layer = nn.LSTM(3, 8, 2)
    options = dict(num_layers=2, dropout=1.0)
    x = torch.randn(4, 2, 3)
    require_spec(backend, spec_of(x, None, layer._flat_weights, **options))
    a, b = (
        functional.lstm(given, None, layer._flat_weights, **options, backend=backend)[0]
        for given in (x, 2 * x)
    )
    assert torch.equal(a, b) and a.isfinite().all()


@pytest.mark.parametrize("value", [1e4, -1e4, 3e38])
def test_extreme_inputs_stay_finite(value: float, backend: str, dtype: torch.dtype, device: str) -> None:
    """Saturated gates give the limits of sigmoid and tanh, and finite gradients."""
    data = make(Case(T=4, B=3, I=8, H=17, layers=2, bidirectional=True), dtype).to(dtype, device)
    require(backend, data)
    for t in data.leaves[1:]:
        t.clamp_(-1, 1)
    for scaled in (data.leaves[0], data.leaves[4] if value < 1e30 else data.leaves[0]):
        scaled.fill_(value)
    # one sign a row, so that a sum of huge products is huge and never inf - inf
    data.leaves[3].copy_(
        data.leaves[3].sign()[:, :1].expand_as(data.leaves[3]) * (1.0 if value < 1e30 else 1e-3)
    )
    for name, t in results(fast(backend), data).items():
        assert t.isfinite().all(), name


def test_large_negative_gates_close(backend: str, dtype: torch.dtype, device: str) -> None:
    data = make(Case(T=3, B=2, I=4, H=8, states=False), dtype).to(dtype, device)
    require(backend, data)
    data.leaves[3].fill_(-1e4)  # b_ih: every gate at its lower end, tanh at -1
    found = results(fast(backend), data)
    assert found["output"].abs().max() < 1e-30 and found["c_n"].abs().max() < 1e-30
    assert all(t.isfinite().all() for t in found.values())


@pytest.mark.parametrize("kind", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("B", [3, 20])
def test_nan_stays_in_its_sequence(kind: str, B: int, backend: str, dtype: torch.dtype, device: str) -> None:
    # PyTorch's own bfloat16 product of an odd inner size lets a NaN through to the row next to it
    H = 16 if BACKENDS[backend].differentiable and dtype == torch.bfloat16 else 17
    data = make(Case(T=6, B=B, I=8, H=H, layers=2, kind=kind), dtype).to(dtype, device)
    require(backend, data)
    if data.lengths is not None:
        data.lengths[1] = 6
    clean = results(fast(backend), data, backward=False)
    data.leaves[0][2, 1, 3] = float("nan")
    dirty = results(fast(backend), data, backward=False)
    assert dirty["output"][2:, 1].isnan().all() and dirty["h_n"][:, 1].isnan().all()
    assert torch.equal(dirty["output"][:2, 1], clean["output"][:2, 1])
    others = [b for b in range(B) if b != 1]
    for name, t in dirty.items():
        assert torch.equal(t[:, others], clean[name][:, others]), name


def test_what_lies_beyond_a_length_does_not_matter(backend: str, dtype: torch.dtype, device: str) -> None:
    data = make(Case(T=6, B=5, I=8, H=17, layers=2, bidirectional=True, kind="lengths"), dtype).to(
        dtype, device
    )
    require(backend, data)
    clean = results(fast(backend), data)
    for b, n in enumerate(data.lengths.tolist()):
        data.leaves[0][n:, b] = 7.0
    for name, t in results(fast(backend), data).items():
        assert torch.equal(t, clean[name]), name


def test_lengths_may_change_between_forward_and_backward(backend: str, device: str) -> None:
    """Autograd notices, or the call kept its own copy; a wrong gradient is the one thing not allowed."""
    data = make(Case(T=5, B=3, I=4, H=8, kind="lengths"), torch.float32).to(torch.float32, device)
    require(backend, data)
    want = results(fast(backend), data)
    leaves = [t.clone().requires_grad_() for t in data.leaves]
    outs = fast(backend)(data, leaves)
    data.lengths.fill_(1)
    try:
        grads = torch.autograd.grad(outs, leaves, data.cotangents)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
        return
    for name, grad in zip(data.names, grads, strict=True):
        torch.testing.assert_close(grad, want[f"gradient of {name}"])


def test_arguments_are_left_alone(backend: str, dtype: torch.dtype, device: str) -> None:
    data = make(Case(T=5, B=3, layers=2, kind="lengths+reset", cells=True), dtype).to(dtype, device)
    require(backend, data)
    before = data.to(dtype, device)
    results(fast(backend), data)
    for a, b in zip(before.leaves, data.leaves, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(before.lengths, data.lengths) and torch.equal(before.reset, data.reset)


def test_results_share_no_memory(backend: str, dtype: torch.dtype, device: str) -> None:
    """Writing into one result, or into the given state, must not change another."""
    data = make(Case(T=1, B=2, layers=2, cells=True), dtype).to(dtype, device)
    require(backend, data)
    with torch.no_grad():
        outs = fast(backend)(data, data.leaves)
    copies = [o.clone() for o in outs]
    data.leaves[1].fill_(5.0)
    data.leaves[2].fill_(5.0)
    for k, out in enumerate(outs):
        assert torch.equal(out, copies[k])
        out.fill_(9.0)


def test_one_thread(backend: str, dtype: torch.dtype) -> None:
    """``torch.set_num_threads(1)`` changes no result beyond the contract."""
    case = Case(T=20, B=9, I=40, H=96, layers=2, bidirectional=True)
    with one_thread():
        check_case(case, backend, dtype)


def test_weights_of_one_view_of_one_storage(backend: str, device: str) -> None:
    """Weights that are slices of one flat tensor, as cuDNN's flattened ones and optimizers' buffers are."""
    data = make(Case(T=4, B=2, I=6, H=16, layers=2), torch.float32).to(torch.float32, device)
    require(backend, data)
    want = results(fast(backend), data, backward=False)
    flat = torch.cat([w.reshape(-1) for w in data.leaves[3:]])
    pieces = flat.split([w.numel() for w in data.leaves[3:]])
    views = [piece.view_as(w) for piece, w in zip(pieces, data.leaves[3:], strict=True)]
    got = fast(backend)(data, [*data.leaves[:3], *views])
    torch.testing.assert_close(got[0], want["output"])


def test_strided_weights_and_states(backend: str, device: str) -> None:
    data = make(Case(T=4, B=3, I=6, H=16), torch.float32).to(torch.float32, device)
    require(backend, data)
    want = results(fast(backend), data)
    for k, t in enumerate(data.leaves):
        if t.dim() > 1:
            data.leaves[k] = t.transpose(-1, -2).contiguous().transpose(-1, -2)
        else:
            data.leaves[k] = t.repeat_interleave(2)[::2]
    torch.testing.assert_close(results(fast(backend), data), want)


def test_large_case_once(backend: str, dtype: torch.dtype, device: str) -> None:
    """Above the sizes where kernels choose other paths: several thread shares, blocks and panels."""
    check_case(Case(T=12, B=48, I=200, H=264, bidirectional=True), backend, dtype, device)


CPU = _native.facts()["cpu"] if _native.available else {"isas": [], "active_isa": ""}
OTHER_ISAS = [isa for isa in CPU["isas"] if isa != CPU["active_isa"]]


@pytest.mark.parametrize("isa", OTHER_ISAS)
def test_other_instruction_sets(isa: str) -> None:
    """The chosen cases again in a process of its own, since the choice is made once a process."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", "chosen and cpu-float32-cpu"],
        env={**os.environ, "CNNLSTM_CPU_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]


def test_the_table_has_unique_names_and_summaries() -> None:
    assert list(BACKENDS) == [b.name for b in BACKENDS.values()]
    assert all(b.summary for b in BACKENDS.values())
    assert SEED >= 0


def test_something_always_takes_the_call() -> None:
    data = make(Case(kind="lengths+reset", cells=True))
    args, kwargs = arguments(data, data.leaves)
    assert any(b.supports(spec_of(*args, **kwargs)) is None for b in BACKENDS.values())
