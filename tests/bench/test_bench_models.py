"""Whole models and encoders: they are what their cases say, and every candidate computes what PyTorch does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_bench_peers import python_prints
from torch import nn

from bench.accuracy import accuracy_errors, eager_errors
from bench.cases import CASES, DTYPES, Case
from bench.measure.candidates import candidate
from bench.measure.jobs import ModelInputs, ModelJob, build, flat, model, oracle_job, pytorch_job
from bench.models import MODELS, make
from bench.peers import PEERS
from bench.peers.onnx_call import onnx_call
from bench.report.record import OURS

BY_MODEL = {case.model: case for case in CASES.values() if case.model}
ENGINES = ("pytorch", "torch-compile", "torch-compile-frozen", "onnxruntime", "openvino")
TINY = [replace(BY_MODEL["forecaster"], T=6, B=2), replace(BY_MODEL["lenet5"], B=2)]


def short(case: Case, B: int) -> Case:
    """A few steps of it."""
    return replace(case, T=min(case.T, 4), B=B)


def test_every_model_is_measured() -> None:
    assert BY_MODEL.keys() == MODELS.keys()


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_models_run_and_depend_on_their_inputs(name: str, B: int) -> None:
    case = short(BY_MODEL[name], B)
    module, inputs = make(name, case.T, B, seed=1)
    sizes: list[tuple[int, ...]] = []
    for lstm in (m for m in module.modules() if isinstance(m, nn.LSTM)):
        sizes.append((lstm.input_size, lstm.hidden_size, lstm.num_layers, lstm.bidirectional))
    with torch.no_grad():
        first, second = (flat(module.eval()(*x)) for x in inputs[:2])
    for a, b in zip(first, second, strict=True):
        assert a.shape == b.shape and a.isfinite().all()
        assert (a - b).norm() > 0.02 * a.norm()
    if case.layers:
        assert sizes[0][:2] == (case.I, case.H) and sizes[0][3] == case.bidirectional
        assert sum(size[2] for size in sizes) == case.layers
    else:
        assert not sizes and first[0].size(0) == B


@pytest.mark.parametrize("name", [name for name, case in BY_MODEL.items() if case.layers])
def test_its_lstm_makes_the_steps_that_the_case_names(name: str) -> None:
    case = BY_MODEL[name]
    with torch.device("meta"):  # only the sizes matter
        module, x = MODELS[name].build(), MODELS[name].draw(case.T, 1)
    lstm = next(m for m in module.modules() if isinstance(m, nn.LSTM))
    steps: list[int] = []
    axis = 1 if lstm.batch_first else 0
    lstm.register_forward_pre_hook(lambda module, args: steps.append(args[0].size(axis)))
    with torch.no_grad():
        module(*x)
    assert steps == [case.T]


def test_batch_norms_have_the_statistics_of_their_inputs() -> None:
    module, (x, *_) = make("resnet18", 1, 4, seed=1)
    scales: list[float] = []
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (
            norm.momentum == 0.1 and norm.running_var is not None and norm.running_var.dtype == torch.float32
        )
        norm.register_forward_hook(lambda module, args, output: scales.append(output.std().item()))
    with torch.no_grad():
        module.eval()(*x)
    assert len(scales) == 20 and all(0.8 < scale < 1.25 for scale in scales)


def test_axes_are_those_that_vary() -> None:
    assert MODELS["policy-rollout"].axes() == [[0, 1], [1], [1]]
    assert MODELS["video-loop"].axes() == [[0]]
    assert MODELS["text-vgg"].axes() == [[0, 3]]


def test_the_same_numbers_in_every_process() -> None:
    script = (
        "import torch; from bench.models import make; module, (x, *_) = make('words', 8, 1, 3);"
        "print(float(sum(t.double().sum() for t in module.state_dict().values())), float(x[0].double().sum()))"
    )
    first, second = (python_prints(script).split() for _ in range(2))
    module, (x, *_) = make("words", 8, 1, 3)
    here = sum(t.double().sum().item() for t in module.state_dict().values())
    assert first == second and here == pytest.approx(float(first[0]), rel=1e-12)
    assert x[0].double().sum().item() == float(first[1])


def test_a_copy_shares_parameters_and_has_the_dropout_of_the_case() -> None:
    case = replace(BY_MODEL["sentiment"], T=6, dropout=0.4)
    inputs = build(case, torch.float32)
    assert isinstance(inputs, ModelInputs)
    copied = model(case, inputs, "training")
    assert copied is not inputs.module and copied.training
    assert all(a is b for a, b in zip(copied.parameters(), inputs.module.parameters(), strict=True))
    assert [m.p for m in copied.modules() if isinstance(m, nn.Dropout)] == [0.4]
    assert not model(case, inputs, "inference").training


def test_training_results_are_the_gradients_of_half_the_mean_squares() -> None:
    case = replace(BY_MODEL["policy-rollout"], T=3, B=2)
    job = oracle_job(case, build(case, torch.float32), "training")
    assert isinstance(job, ModelJob)
    found = job.results()
    job.module.zero_grad()
    loss = sum(output.square().mean() / 2 for output in flat(job.module(*job.inputs.x)))
    loss.backward()  # type: ignore[union-attr]
    for name, p in job.module.named_parameters():
        torch.testing.assert_close(found[f"gradient of {name}"], p.grad)


def test_inference_results_cover_all_inputs() -> None:
    case = TINY[0]
    inputs = build(case, torch.float32)
    found = pytorch_job(case, inputs, "inference").results()
    assert isinstance(inputs, ModelInputs) and len(inputs.more) == 15
    assert found["output 0"].shape == (16, 2, 24)
    with torch.no_grad():
        last = inputs.module.eval()(*inputs.more[-1])
    torch.testing.assert_close(found["output 0"][-1], last)


def test_an_export_leaves_the_axes_open() -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    inputs = build(TINY[0], torch.float32)
    session = runtime.InferenceSession(onnx_call(TINY[0], inputs).graph)
    assert isinstance(inputs, ModelInputs)
    (other,) = MODELS["forecaster"].draw(11, 5)
    with torch.no_grad():
        expected = inputs.module.eval()(other)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x0": other.numpy()})[0]), expected)


def test_int8_and_single_layers_are_not_for_whole_models() -> None:
    for name in ("onnxruntime-int8", "torch-ao-int8"):
        assert PEERS[name].supports(TINY[0], "inference", "f32", "cpu") == "set up for the layer alone"
    assert candidate(f"{OURS}:cpu").supports(TINY[1], "inference", "f32", "cpu") == "there is no LSTM in it"
    assert candidate(f"{OURS}:cpu").supports(TINY[0], "inference", "f32", "cpu") is None


def disagreements(case: Case, mode: str, dtype: str, names: list[str]) -> dict[str, Any]:
    """Which candidates computed something, and the results that break the contract."""
    inputs = build(case, DTYPES[dtype])
    exact = oracle_job(case, inputs, mode).results()
    amp = dtype == "amp"
    eager = eager_errors(pytorch_job(case, inputs, mode, amp=amp).results(), exact, dtype, whole_model=True)
    ran, wrong = [], []
    for name in names:
        peer = candidate(name)
        if peer.supports(case, mode, dtype, "cpu") is None and not peer.missing():
            found = peer.prepare(case, inputs, mode, dtype).results()
            ran.append(name)
            rows = accuracy_errors(found, exact, eager, dtype, dtype, whole_model=True)
            wrong += [f"{name}: {row}" for row in rows if not row.ok]
    return {"ran": ran, "wrong": wrong}


def found_apart(case: Case, mode: str, dtype: str, names: list[str]) -> dict[str, Any]:
    """The same in a process of its own, for engines change global state. Ours measures for a short time: it is not to
    choose well."""
    call = f"tests.disagreements({case!r}, {mode!r}, {dtype!r}, {names})"
    script = (
        "import json, torch, warnings; warnings.simplefilter('ignore'); torch.set_num_threads(1)\n"
        "from cnnlstm_fast.encoder import choose; choose.MEASURE_SECONDS = 0.2\n"
        f"import test_bench_models as tests; from bench.cases import Case\nprint(json.dumps({call}))"
    )
    return json.loads(python_prints(script).splitlines()[-1])


@pytest.mark.parametrize("dtype", ["f32", "amp"])
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.model)
def test_quick_candidates_agree(case: Case, dtype: str) -> None:
    names = [name for name in (OURS, *ENGINES) if not candidate(name).slow_setup]
    found = found_apart(case, "inference", dtype, names)
    expected = [name for name in names if not candidate(name).missing()]
    assert found == {"ran": expected, "wrong": []}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.model)
def test_all_candidates_agree(case: Case, mode: str) -> None:
    found = found_apart(case, mode, "f32", [OURS, *ENGINES])
    assert found["wrong"] == []
    least = {"inference": 6, "training": 3}[mode] - sum(bool(candidate(name).missing()) for name in ENGINES)
    assert len(found["ran"]) >= least, found


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [case.model for case in BY_MODEL.values() if "model" in case.suites])
def test_quick_candidates_agree_on_whole_models(name: str) -> None:
    """Without the compilers, which take half a minute for each."""
    names = [name for name in (OURS, *ENGINES) if not candidate(name).slow_setup]
    found = found_apart(short(BY_MODEL[name], 2), "inference", "f32", names)
    assert found["wrong"] == []
    assert len(found["ran"]) >= 4 - sum(bool(candidate(name).missing()) for name in names), found


def test_flips_are_allowed_in_gradients_of_whole_models_alone() -> None:
    exact = {what: torch.ones(4) for what in ("output 0", "gradient of w")}
    found = {what: result * 1.01 for what, result in exact.items()}
    for whole_model, ok in ((True, [False, True]), (False, [False, False])):
        rows = accuracy_errors(found, exact, {}, "f32", "f32", whole_model)
        assert [row.ok for row in rows] == ok
    rows = accuracy_errors(
        {what: result * 1.1 for what, result in exact.items()}, exact, {}, "f32", "f32", True
    )
    assert not any(row.ok for row in rows)
