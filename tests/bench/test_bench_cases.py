"""The cases are what they say, and the accuracy check rejects wrong results."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

from bench.accuracy import check_accuracy, unsupported_reason
from bench.cases import CASES, DTYPES, MODES, SUITES, TABLE, Case, calls, calls_of, of_shape
from bench.measure.jobs import build, fast_job, oracle_job, pytorch_job
from cnnlstm_fast.recurrent.backends import BACKENDS, Backend, reference
from cnnlstm_fast.recurrent.canonical import validate

SMALL = Case("small", 5, 3, 6, 4, 1, True, "test")


CORE = {case.name: case for case in TABLE if "core" in case.suites} | {
    name: CASES[name] for name in ("train-policy", "train-clicks", "policy-b8", "video-b1")
}


@pytest.fixture(params=CORE.values(), ids=CORE)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_names_are_unique() -> None:
    assert len(CASES) == len(TABLE)


def test_suites() -> None:
    assert all(calls(suite) for suite in SUITES if suite != "model")
    assert {mode for _, mode, _ in calls("cpu")} == {"inference"}
    assert {mode for _, mode, _ in calls("train")} == {"training"}
    assert {dtype for *_, dtype in calls("train")} == {"f32", "bf16", "amp"}
    assert set(calls("cpu")) | set(calls("train")) | set(calls("quick")) | set(calls("core")) <= set(
        calls("all")
    )
    assert "train-speech" not in {case.name for case, *_ in calls("all")}
    on_gpu = calls("gpu", device="cuda")
    assert {"train-speech"} <= {case.name for case, *_ in on_gpu}
    assert {dtype for *_, dtype in on_gpu} == {"f32", "bf16", "amp", "fp16"}
    assert on_gpu[: len(calls("quick", device="cuda"))] == calls("quick", device="cuda")
    assert {case.name for case, *_ in calls("all", "diarization")} == {
        "diarization-b1",
        "diarization-b32",
        "train-diarization",
    }
    assert calls("quick", "no such row") == []


def test_inputs_are_what_the_case_says(case: Case) -> None:
    inputs = build(case, torch.float32)
    D, P = 1 + case.bidirectional, case.proj_size or case.H
    x = inputs.x
    assert isinstance(x, PackedSequence) == case.packed
    if isinstance(x, PackedSequence):
        assert x.batch_sizes.numel() == case.T and x.batch_sizes[0] == case.B
        assert x.data.shape == (int(inputs.lengths.sum()), case.I)
        assert inputs.grad_output.shape == (*x.data.shape[:1], D * P)
    else:
        assert x.shape == (case.T, case.B, case.I)
        assert inputs.grad_output.shape == (case.T, case.B, D * P)
        assert x.stride() == ((1, case.I * case.T, case.T) if case.strided else (case.B * case.I, case.I, 1))
    assert inputs.h0.shape == (case.layers * D, case.B, P)
    assert inputs.c0.shape == (case.layers * D, case.B, case.H)
    assert (inputs.lengths is None) == (case.lengths is None)
    if case.lengths is not None:
        low, high = case.lengths
        given = inputs.lengths[inputs.lengths > 0]
        assert inputs.lengths.shape == (case.B,) and given.numel() == case.B - case.empty
        assert (given.min(), given.max()) == (round(low * case.T), round(high * case.T))
        assert not inputs.lengths.sort(descending=True).values.equal(inputs.lengths)


def test_inputs_do_not_change_from_call_to_call(case: Case) -> None:
    state = torch.get_rng_state()
    first, second = build(case, torch.float32), build(case, torch.float32)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.grad_output, second.grad_output)
    assert torch.equal(first.weights["weight_ih_l0"], second.weights["weight_ih_l0"])


def test_a_strided_input_stays_strided_in_the_job() -> None:
    case = CASES["strided-map"]
    seen: list[tuple[int, ...]] = []
    job = fast_job(case, build(case, torch.bfloat16), "inference", "aten")
    job.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].stride()))
    job()
    assert seen == [(1, case.I * case.T, case.T)]


@pytest.mark.parametrize("mode", MODES)
def test_spec_is_what_the_dispatcher_sees(case: Case, mode: str) -> None:
    inputs = build(case, torch.float32)
    job = fast_job(case, inputs, mode, "auto")
    job.module.train(mode == "training")
    lengths = None if case.packed else inputs.lengths
    with torch.set_grad_enabled(mode == "training"):
        seen = validate(job.module.call(inputs.x, None, lengths=lengths, reset=inputs.reset).key)  # type: ignore[operator]
    assert case.spec(mode, "f32") == seen


def test_a_case_that_contradicts_itself_is_refused() -> None:
    for wrong in (
        {"packed": True},
        {"empty": 1},
        {"lengths": (0.5, 1.0), "packed": True, "strided": True},
        {"resets": 0.1},
    ):
        with pytest.raises(ValueError, match="small: "):
            replace(SMALL, **wrong)


def test_a_shape_of_ones_own() -> None:
    case = of_shape("26,1,512,256,2,2")
    assert (case.T, case.B, case.I, case.H, case.layers, case.bidirectional) == (26, 1, 512, 256, 2, True)
    case = of_shape("1,2,3,4")
    assert (case.T, case.B, case.I, case.H, case.layers, case.bidirectional) == (1, 2, 3, 4, 1, False)
    assert [(mode, dtype) for _, mode, dtype in calls_of([case])] == [
        ("inference", "f32"),
        ("inference", "bf16"),
        ("training", "f32"),
        ("training", "bf16"),
    ]


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "1,2,3,4,5,6,7", "1,2,3,x", "0,1,1,1", "1,1,1,-1", "1,1,1,1,1,3"]
)
def test_a_shape_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"--shape: expected "):
        of_shape(text)


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        replace(SMALL, lengths=(0.4, 1.0)),
        replace(SMALL, lengths=(0.4, 1.0), packed=True),
        replace(SMALL, lengths=(0.4, 1.0), empty=1),
        replace(SMALL, strided=True, proj_size=2),
        replace(SMALL, bidirectional=False, layers=2, resets=0.2, T=20),
    ],
)
def test_pytorch_users_call_computes_the_same(case: Case, states: bool) -> None:
    inputs = build(case, torch.float64)
    exact = oracle_job(case, inputs, "training", states).results()
    eager = pytorch_job(case, inputs, "training", states).results()
    assert exact.keys() == eager.keys()
    for what, ref in exact.items():
        torch.testing.assert_close(eager[what], ref, rtol=1e-9, atol=1e-12, msg=what)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_accuracy_check_accepts_right_results(backend: str, dtype: str, mode: str) -> None:
    reason = unsupported_reason(backend, SMALL, mode, dtype)
    if reason is not None:
        pytest.skip(reason)
    errors = check_accuracy(SMALL, mode, dtype, backend)
    assert any("gradient of weight_hh_l0" in row.what for row in errors) == (mode == "training")


def _wrong_output(*args: Any, **kwargs: Any) -> Any:
    found = reference.BACKEND.forward(*args, **kwargs)
    return found._replace(output=found.output * 1.05)


def _wrong_state(*args: Any, **kwargs: Any) -> Any:
    found = reference.BACKEND.forward(*args, **kwargs)
    return found._replace(c_n=found.c_n + 0.1)


def _no_gradient_of_h0(x: Any, h0: Any, *args: Any, **kwargs: Any) -> Any:
    return reference.BACKEND.forward(x, h0.detach(), *args, **kwargs)


def _unwritten(*args: Any, **kwargs: Any) -> Any:
    found = reference.BACKEND.forward(*args, **kwargs)
    kept = torch.empty_like(found.output)
    kept[:-1] = found.output[:-1]
    return found._replace(output=kept)


@pytest.mark.parametrize(
    ("forward", "mode", "failure"),
    [
        (_wrong_output, "inference", "output: error"),
        (_wrong_output, "training", "gradient of weight_ih_l0: error"),
        (_wrong_state, "inference", "c_n: error"),
        (_no_gradient_of_h0, "training", r"gradient of h0 \(with initial states\): error"),
        (_unwritten, "inference", "output: error inf"),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_accuracy_check_rejects_a_wrong_backend(
    monkeypatch: pytest.MonkeyPatch, forward: Any, mode: str, failure: str, dtype: str
) -> None:
    name = f"wrong{forward.__name__}"
    wrong = Backend(name, "wrong on purpose", lambda spec: None, forward=forward)
    monkeypatch.setitem(BACKENDS, name, wrong)
    with pytest.raises(
        AssertionError, match=rf"{name} on small, {mode}, {dtype}: accuracy check failed: .*{failure}"
    ):
        check_accuracy(SMALL, mode, dtype, name)


def test_accuracy_check_fails_when_oracle_and_pytorch_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(SMALL, name="disagreeing")
    monkeypatch.setattr(
        "bench.accuracy.oracle_job", lambda case, inputs, *rest: pytorch_job(case, _other(case), *rest)
    )
    with pytest.raises(AssertionError, match="disagreeing, inference, f32: the oracle and PyTorch disagree"):
        check_accuracy(case, "inference", "f32", "aten")


def _other(case: Case) -> Any:
    return build(replace(case, name="other"), torch.float64)


def test_the_oracle_is_timed_only_where_it_is_the_last_resort() -> None:
    for case in CORE.values():
        able = [b for b in BACKENDS if unsupported_reason(b, case, "inference", "f32") is None]
        assert able, case.name
        assert able == ["reference"] or "reference" not in able
