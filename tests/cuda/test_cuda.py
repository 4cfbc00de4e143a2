"""The CUDA kernels and the operators on them, compiled for the CPU: every algorithm, in addition to the tests of all
backends (test_backends.py)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import emulator
import pytest
import torch
from helpers import (
    SEED,
    Case,
    check_case,
    check_tf32,
    fast,
    make,
    nan_memory,
    oracle,
    results,
    spec_of,
)
from torch import Tensor

from cnnlstm_fast import _native
from cnnlstm_fast.contract import relative_error
from cnnlstm_fast.recurrent.backends import BACKENDS, cuda

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

FUSED = [name for name in emulator.ALGORITHMS if name != "per_step"]
"""The algorithms whose kernels also compute the recurrent product."""

# More units than a group has, more sequences than a tile, and sizes that fill neither.
CASES = [
    Case(T=5, B=3, I=7, H=40, bidirectional=True),
    Case(T=4, B=18, I=5, H=33, layers=2, states=False),
    Case(T=6, B=5, I=5, H=17, layers=2, bidirectional=True, kind="packed"),
    Case(T=6, B=5, I=5, H=35, bidirectional=True, kind="lengths", cells=True),
    Case(T=6, B=11, I=5, H=20, bidirectional=True, kind="lengths+reset", bias=False),
    Case(T=5, B=4, I=5, H=36, bidirectional=True, kind="reset", layout="nchw"),
    Case(T=6, B=5, I=5, H=24, proj=7, bidirectional=True, kind="lengths+reset"),
    Case(T=6, B=5, I=5, H=24, proj=9, layers=2, bidirectional=True, kind="packed"),
    Case(T=1, B=1, I=3, H=1),
]


def sized(case: Case, algorithm: str, compute_type: str) -> Case:
    """The case, with more units than one block can hold or has where several blocks have to share them."""
    held = 64 if DTYPES[compute_type] == torch.float32 else 128
    more = {"persistent_cluster": held, "persistent_grid": held, "streaming": 16}
    return case._replace(H=case.H + more.get(algorithm, 0))


@pytest.fixture(autouse=True)
def _host_library() -> Iterator[None]:
    if not _native.available:
        pytest.skip(f"the compiled extension is not here: {_native.reason}")
    assert emulator.LIBRARY.exists(), f"{emulator.LIBRARY} is missing: `make test` builds it"
    emulator.seed(SEED)
    with nan_memory():
        yield


@pytest.mark.sampled(4)
@pytest.mark.parametrize("compute_type", DTYPES)
@pytest.mark.parametrize("algorithm", emulator.ALGORITHMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_algorithm(case: Case, algorithm: str, compute_type: str) -> None:
    case = sized(case, algorithm, compute_type)
    with emulator.configured(algorithm, tf32=compute_type == "tf32"):
        if compute_type == "tf32":
            check_tf32(case, "cuda")
        else:
            check_case(case, "cuda", DTYPES[compute_type])


@pytest.mark.parametrize("algorithm", FUSED)
def test_tf32_is_not_float32(algorithm: str) -> None:
    data = make(sized(CASES[0], algorithm, "tf32"), torch.float32).to(torch.float32)
    found = []
    for tf32 in (False, True):
        with emulator.configured(algorithm, tf32=tf32):
            found.append(results(fast("cuda"), data))
    assert not torch.equal(found[0]["output"], found[1]["output"])


@pytest.mark.parametrize("nth", range(1, 5))
@pytest.mark.parametrize("algorithm", ["persistent_cluster", "persistent_grid"])
def test_other_plans_of_an_algorithm(algorithm: str, nth: int) -> None:
    with emulator.configured(algorithm, nth):
        check_case(Case(T=4, B=9, I=5, H=150, bidirectional=True, kind="lengths"), "cuda", torch.bfloat16)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("compute_type", ["float32", "bfloat16"])
@pytest.mark.parametrize("nth", range(6))
@pytest.mark.parametrize(
    "case", [Case(T=4, B=21, I=5, H=100, kind="lengths+reset"), Case(T=3, B=35, I=5, H=150)]
)
def test_turns_and_batches_of_streaming(case: Case, nth: int, compute_type: str) -> None:
    """From blocks of one group, which read all of k at once for 32 sequences, to blocks of eight: turns of other sizes,
    a last turn that is not full, and tiles of 8 to 32 sequences, of which the last is not full either."""
    with emulator.configured("streaming", nth):
        check_case(case, "cuda", DTYPES[compute_type])


@pytest.mark.parametrize("algorithm", emulator.ALGORITHMS)
@pytest.mark.parametrize("case", [*CASES[:4], *CASES[6:8]], ids=str)
def test_gate_inputs_in_chunks(case: Case, algorithm: str) -> None:
    """Two steps at a time: the states pass from launch to launch, and sequences end in any of them."""
    case = sized(case, algorithm, "float32")
    D = 2 if case.bidirectional else 1
    with emulator.configured(algorithm, most_gate_inputs=2 * case.B * 16 * case.H * D):
        check_case(case, "cuda", torch.float32)


@pytest.mark.parametrize("algorithm", emulator.ALGORITHMS)
def test_no_order_of_the_threads_changes_a_bit(algorithm: str) -> None:
    case = sized(Case(T=4, B=9, I=5, H=24, bidirectional=True, kind="lengths+reset"), algorithm, "bfloat16")
    data = make(case, torch.bfloat16).to(torch.bfloat16)
    with emulator.configured(algorithm):
        first = results(fast("cuda"), data)
        for seed, switching in itertools.product(range(3), (0.0, 0.2)):
            emulator.seed(seed, switching)
            for name, again in results(fast("cuda"), data).items():
                assert torch.equal(again, first[name]), name


FAULTS = {
    "block barrier": FUSED,
    "copy wait": FUSED,
    "matrices swapped": FUSED,
    "word lost": ["persistent_grid", "streaming"],
    "send lost": ["persistent_cluster"],
    "arrival lost": ["persistent_cluster"],
}


@pytest.mark.parametrize(
    ("fault", "algorithm"), [(fault, algorithm) for fault, which in FAULTS.items() for algorithm in which]
)
def test_a_fault_of_the_machine_is_found(fault: str, algorithm: str) -> None:
    """By an error or a wrong result, in most orders of the threads."""
    case = sized(Case(T=6, B=9, I=5, H=40), algorithm, "bfloat16")
    data = make(case, torch.bfloat16)
    there, exact = data.to(torch.bfloat16), results(oracle, data)
    found = 0
    with emulator.configured(algorithm), emulator.planted(fault):
        for seed in range(4):
            emulator.seed(seed)
            try:
                got = results(fast("cuda"), there)
            except RuntimeError:
                found += 1
            else:
                found += any(not relative_error(got[name], exact[name]) < 0.05 for name in exact)
    assert found >= 3
    with emulator.configured(algorithm):  # the fault leaves no trace
        check_case(case, "cuda", torch.bfloat16)


SMALL = Case(T=4, B=3, H=8, layers=2)


def operands(case: Case = SMALL) -> dict[str, Any]:
    """The operator's arguments by name."""
    data = make(case, torch.float32).to(torch.float32)
    x, (h0, c0), weights = data.view(data.leaves)
    return dict(
        input=x,
        h0=h0,
        c0=c0,
        weights=weights,
        batch_sizes=None,
        lengths=None,
        reset=None,
        dropout_mask=None,
        bidirectional=case.bidirectional,
    )


def forward(backend: str = "cuda", **arguments: Any) -> tuple[Tensor, ...]:
    return torch.ops.cnnlstm_fast.lstm(**arguments, for_backward=True, all_cells=True, backend=backend)


WRONG = {
    "float64 input": (lambda a: a | {"input": a["input"].double()}, "h0 must be"),
    "float64": (
        lambda a: {k: _double(v) for k, v in a.items()},
        "input must be float32, bfloat16 or float16",
    ),
    "rank": (lambda a: a | {"input": a["input"][0]}, "input must have 3 dimensions"),
    "batch": (lambda a: a | {"h0": a["h0"][:, :2]}, "c0 must be|h0 must be|input must be"),
    "width": (lambda a: a | {"h0": a["h0"][..., :5]}, "as wide as c0"),
    "layers": (lambda a: a | {"weights": a["weights"][:3]}, "weights must hold"),
    "weight": (lambda a: a | {"weights": [w[:-1] for w in a["weights"]]}, r"w_ih\) must be"),
    "lengths": (lambda a: a | {"lengths": torch.ones(2, dtype=torch.int64)}, "lengths must be"),
    "lengths' dtype": (lambda a: a | {"lengths": torch.ones(3, dtype=torch.int32)}, "lengths must be"),
    "reset": (lambda a: a | {"reset": torch.ones(3, 3, dtype=torch.bool)}, "reset must be"),
    "reset's dtype": (lambda a: a | {"reset": torch.ones(4, 3)}, "reset must be"),
    "mask": (lambda a: a | {"dropout_mask": torch.ones(1, 4, 3, 7)}, "dropout_mask must be"),
    "growing": (
        lambda a: a | {"input": a["input"][0], "batch_sizes": torch.tensor([1, 2])},
        "must never increase",
    ),
    "sum": (lambda a: a | {"input": a["input"][0], "batch_sizes": torch.tensor([3, 2])}, "must sum to the 3"),
}


def _double(value: Any) -> Any:
    if isinstance(value, list):
        return [w.double() for w in value]
    return value.double() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("what", WRONG)
def test_arguments_that_do_not_fit_are_rejected(what: str) -> None:
    change, message = WRONG[what]
    with pytest.raises(RuntimeError, match=message):
        forward(**change(operands()))


@pytest.mark.parametrize(
    "what", ["output", "cells", "gates", "hidden", "grad_output", "grad_h_n", "grad_c_n"]
)
def test_what_the_backward_pass_is_given_is_checked(what: str) -> None:
    given = operands()
    output, h_n, c_n, cells, gates, hidden = forward(**given)
    saved = dict(output=output, cells=cells, gates=gates, hidden=hidden)
    grads = dict(grad_output=output, grad_h_n=h_n, grad_c_n=c_n, grad_cells=None)
    flags = dict(input_needs_grad=True, weights_need_grad=True, backend="cuda")
    torch.ops.cnnlstm_fast.lstm_backward(**grads, **given, **saved, **flags)
    (saved if what in saved else grads)[what] = torch.zeros(3)
    with pytest.raises(RuntimeError, match=f"{what} must be"):
        torch.ops.cnnlstm_fast.lstm_backward(**grads, **given, **saved, **flags)


@pytest.mark.parametrize("algorithm", ["persistent_block", "per_step"])
@pytest.mark.parametrize("proj", [0, 5])
def test_lengths_out_of_range_stay_within_the_arrays(algorithm: str, proj: int) -> None:
    """The host cannot check them: such a sequence has undefined results, all others are unaffected."""
    case = Case(T=4, B=3, H=16, bidirectional=True, proj=proj, kind="lengths")
    with emulator.configured(algorithm):
        wild, tame = (
            forward(**operands(case) | {"lengths": torch.tensor(lengths)})
            for lengths in ([1 << 40, -5, 2], [4, 0, 2])
        )
    for k, (a, b) in enumerate(zip(wild[:4], tame[:4], strict=True)):
        assert torch.equal(*(t.select(2 if k == 3 else 1, 2) for t in (a, b)))


def test_gates_lie_beside_each_other() -> None:
    """The order in which the backward pass of the backend expects them."""
    case = Case(T=3, B=2, H=8)
    ours, theirs = forward(**operands(case)), forward("cpu", **operands(case))
    torch.testing.assert_close(ours[4].unflatten(-1, (8, 4)).transpose(-1, -2).flatten(-2), theirs[4])


def test_more_sequences_than_a_packed_batch_has() -> None:
    """The state of a sequence without steps is unchanged."""
    given = operands(Case(T=1, B=4, I=5, H=8, bidirectional=True))
    rows, sizes = given["input"][0, :3], torch.tensor([2, 1])
    output, h_n, c_n, *_ = forward(**given | {"input": rows, "batch_sizes": sizes})
    assert output.isfinite().all()
    assert torch.equal(h_n[:, 2:], given["h0"][:, 2:]) and torch.equal(c_n[:, 2:], given["c0"][:, 2:])


@pytest.mark.parametrize(
    ("archs", "runs", "rejects"),
    [
        (["80", "90a"], [80, 86, 89, 90, 100, 120], [75]),  # as PTX of 80 everywhere
        (["90a"], [90], [80, 89, 100, 120]),
        (["100f"], [100, 103], [90, 120]),
        (["86", "100"], [86, 89, 100, 103, 120], [80, 90]),
    ],
)
def test_which_gpus_a_build_runs_on(archs: list[str], runs: list[int], rejects: list[int]) -> None:
    assert all(cuda.has_code(archs, sm) for sm in runs)
    assert not any(cuda.has_code(archs, sm) for sm in rejects)


SPEC = spec_of(torch.zeros(3, 2, 4), None, [torch.zeros(s) for s in ((32, 4), (32, 8), (32,), (32,))])


@pytest.mark.parametrize(
    ("notes", "capability", "reason"),
    [
        ({"cuda": True, "cuda_archs": ["80"]}, (8, 6), None),
        ({"cuda": True, "cuda_archs": ["80"]}, (7, 5), "compute capability 8.0 or later"),
        ({"cuda": True, "cuda_archs": ["90a"]}, (10, 0), "architectures 90a, this GPU has 100"),
        ({"cuda": False, "cuda_reason": "no CUDA toolkit"}, (9, 0), "without its CUDA part: no CUDA toolkit"),
    ],
)
def test_why_a_gpu_is_not_supported(
    notes: dict[str, Any], capability: tuple[int, int], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "notes", notes)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = BACKENDS["cuda"].supports(SPEC._replace(device="cuda"))
    assert found is None if reason is None else reason in (found or "")
    wide = BACKENDS["cuda"].supports(SPEC._replace(device="cuda", dtype=torch.float64))
    assert wide is not None


def test_without_the_host_library_it_rejects_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_host", None)
    assert "the tensors are on cpu" in (BACKENDS["cuda"].supports(SPEC) or "")
    with pytest.raises(RuntimeError, match="runs on NVIDIA GPUs"):
        forward(**operands())


def test_auto_leaves_the_cpu_to_others() -> None:
    speed = BACKENDS["cuda"].measured_speed(SPEC)
    assert speed is not None and speed.slow
