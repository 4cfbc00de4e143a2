"""The choice of a backend, with made-up backends in the table."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import pytest
import torch

import cnnlstm_fast
from cnnlstm_fast import BACKENDS, _native
from cnnlstm_fast.recurrent import dispatch
from cnnlstm_fast.recurrent.backends import Backend, MeasuredSpeed, cuda, cuda_plan
from cnnlstm_fast.recurrent.canonical import LSTMSpec

SPEC = LSTMSpec(
    device="cpu",
    dtype=torch.float32,
    T=5,
    B=2,
    input_size=4,
    hidden_size=8,
    proj_size=0,
    num_layers=1,
    bidirectional=False,
    bias=True,
    packed=False,
    lengths=False,
    reset=False,
    dropout=False,
    all_cells=False,
    grad=False,
    tracing=False,
)
SLOW = MeasuredSpeed(True, "it is slow at B=2")

optimize_module = sys.modules["cnnlstm_fast.optimize"]  # the package has a function of that name


def backend(name: str, refuses: str | None = None, speed: MeasuredSpeed | None = None) -> Backend:
    return Backend(name, f"summary of {name}", lambda spec: refuses, lambda spec: speed)


def explained(backend: str, spec: LSTMSpec = SPEC) -> list[str]:
    """The lines of ``explain`` on a call."""
    return [line.strip() for line in optimize_module._choice_lines(spec, backend)]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch):
    def use(*backends: Backend) -> None:
        for module in (dispatch, optimize_module):
            monkeypatch.setattr(module, "BACKENDS", {b.name: b for b in backends})

    return use


def test_the_first_that_can_is_taken(table) -> None:
    table(backend("one"), backend("two"))
    choice = dispatch.select(SPEC)
    assert choice.backend.name == "one" and choice.rejected == {} and choice.reason


@pytest.mark.parametrize("plan", [None, "two blocks"])
def test_explain_tells_how_whoever_chose(plan: str | None, table) -> None:
    table(replace(backend("one"), plan=lambda spec: plan))
    how = "summary of one" if plan is None else "summary of one; two blocks"
    for name, why in (("auto", "the first in order"), ("one", "named by the caller")):
        (line,) = explained(name)
        assert line.startswith(f"backend:  one: {why}") and line.endswith(f"; {how}")


def test_explain_tells_how_those_that_could_would_run_the_call(table) -> None:
    def never(spec: LSTMSpec) -> str:
        raise AssertionError("asked for a plan of a call that it cannot take")

    cannot = replace(backend("one", refuses="not here"), plan=never)
    passed_over = replace(backend("two", speed=SLOW), plan=lambda spec: "two blocks")
    table(cannot, passed_over, backend("three"))
    assert explained("auto")[1:] == [
        "rejected: one: not here",
        "rejected: two: it is slow at B=2; summary of two; two blocks",
    ]


@pytest.mark.parametrize("name", BACKENDS)
def test_the_plan_is_the_same_whether_named_or_chosen(name: str, table) -> None:
    if BACKENDS[name].supports(SPEC) is not None or BACKENDS[name].approximate:
        pytest.skip("auto cannot choose it here")
    (named,) = explained(name)
    table(BACKENDS[name])
    (chosen,) = explained("auto")
    assert named != chosen
    for line in (named, chosen):
        assert line.endswith(f"; {BACKENDS[name].describe(SPEC)}")


@pytest.mark.skipif(_native._C is None, reason="without the native part there are no plans")
@pytest.mark.parametrize("grad", [False, True])
def test_the_plan_of_the_cuda_kernels_is_told(grad: bool, table, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that is not there."""
    gpu = {
        "sm": 90,
        "multiprocessors": 132,
        "shared_bytes": 227 << 10,
        "largest_cluster": 16,
        "l2_bytes": 50 << 20,
        "measured": False,
        "costs": _native._C.gpu_costs("a GPU that nobody has", 90),
    }
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU that nobody has")
    monkeypatch.setattr(cuda, "_gpu", lambda index: gpu)
    monkeypatch.setattr(_native._C, "cuda_registers", lambda *_: 118, raising=False)
    table(replace(BACKENDS["cuda"], supports=lambda spec: None), BACKENDS["aten"])
    spec = SPEC._replace(device="cuda", grad=grad)
    plan = cuda_plan.describe(spec, gpu, _native._C.cuda_registers)
    assert ("backward: " in plan) == grad and "118 registers" in plan
    (named,) = explained("cuda", spec)
    passed_over = explained("auto", spec)[1]
    assert passed_over.startswith("rejected: cuda: nothing is known of its speed")
    for line in (named, passed_over):
        assert line.endswith(f"; fused CUDA kernels for NVIDIA GPUs; {plan}")


def test_every_rejection_has_its_reason(table) -> None:
    table(backend("one", refuses="no lengths"), backend("two", speed=SLOW), backend("three"))
    choice = dispatch.select(SPEC)
    assert choice.backend.name == "three"
    assert "no lengths" in choice.rejected["one"] and "it is slow at B=2" in choice.rejected["two"]


def test_the_one_that_is_taken_has_its_figures(table) -> None:
    table(backend("one", speed=MeasuredSpeed(False, "twice as fast as two")), backend("two"))
    assert dispatch.select(SPEC).reason == "twice as fast as two"


def test_a_slow_one_is_better_than_none(table) -> None:
    table(backend("one", refuses="not here"), backend("two", speed=SLOW), backend("three", speed=SLOW))
    choice = dispatch.select(SPEC)
    assert choice.backend.name == "two"
    assert choice.rejected.get("one") == "not here"


def test_none_at_all(table) -> None:
    table(backend("one", refuses="not here"), backend("two", refuses="not there"))
    with pytest.raises(RuntimeError, match="one: not here; two: not there"):
        dispatch.select(SPEC)


def test_a_named_one_is_taken_even_if_slow(table) -> None:
    table(backend("one"), backend("two", speed=SLOW))
    assert dispatch.select(SPEC, "two").backend.name == "two"


def test_a_named_one_that_cannot_says_why_and_who_can(table) -> None:
    table(backend("one", refuses="it is too warm"), backend("two"), backend("three", refuses="no"))
    with pytest.raises(RuntimeError) as caught:
        dispatch.select(SPEC, "one")
    message = str(caught.value)
    assert "'one'" in message and "it is too warm" in message and "two" in message and "three" not in message
    assert message.endswith(".")


def test_an_unknown_name_lists_the_known_ones() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, backend="cudnn9")
    with pytest.raises(ValueError) as caught:
        layer(torch.zeros(5, 2, 4))
    message = str(caught.value)
    assert "'cudnn9'" in message and all(name in message for name in BACKENDS) and message.endswith(".")
    layer.backend = "auto"
    layer(torch.zeros(5, 2, 4))


def test_an_unavailable_one_says_why() -> None:
    layer = cnnlstm_fast.LSTM(4, 8, backend="aten")
    with pytest.raises(RuntimeError) as caught:
        layer(torch.zeros(5, 2, 4), lengths=torch.tensor([1, 2]))
    assert all(word in str(caught.value) for word in ("'aten'", "lengths", "reference"))
    layer(torch.zeros(5, 2, 4))


def test_the_reference_takes_everything() -> None:
    odd = SPEC._replace(dtype=torch.float16, lengths=True, reset=True, all_cells=True, grad=True, T=0)
    assert BACKENDS["reference"].supports(odd) is None


@pytest.mark.parametrize("name", BACKENDS)
def test_refusals_are_sentences_fit_to_be_joined(name: str) -> None:
    for spec in (
        SPEC,
        SPEC._replace(dtype=torch.float16),
        SPEC._replace(T=None, B=None, tracing=True, reset=True),
    ):
        reason = BACKENDS[name].supports(spec)
        assert reason is None or (reason and not reason.endswith("."))


def test_onednns_wrong_gradients_are_refused() -> None:
    wrong = SPEC._replace(dtype=torch.bfloat16, hidden_size=1024, grad=True)
    refuses = BACKENDS["aten"].supports
    for also in (wrong, wrong._replace(packed=True)):
        assert "gradients are wrong" in (refuses(also) or "")
    for right in (
        wrong._replace(grad=False),
        wrong._replace(hidden_size=1023),
        wrong._replace(dtype=torch.float32),
        wrong._replace(proj_size=8),
        wrong._replace(device="cuda"),
    ):
        assert refuses(right) is None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("proj_size", [0, 16])
def test_bfloat16_gradients_of_wide_layers_are_right(packed: bool, proj_size: int) -> None:
    """Also where auto takes what PyTorch has."""
    T, B, I, H = 2, 40, 16, 1024
    exact = torch.nn.LSTM(I, H, proj_size=proj_size)
    fast = cnnlstm_fast.optimize(copy.deepcopy(exact).bfloat16())
    exact.load_state_dict(fast.state_dict())
    found = []
    rows = torch.randn(T, B, I).bfloat16().float()
    for layer in (fast, exact):
        x = rows.detach().to(layer.weight_ih_l0.dtype).requires_grad_()
        fed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.full((B,), T)) if packed else x
        output = layer(fed)[0]
        (output.data if packed else output).sum().backward()
        found.append((x.grad, *[weight.grad for weight in layer.parameters()]))
    for got, want in zip(*found, strict=True):
        assert (got.float() - want).norm() < 0.05 * want.norm()


def test_plans_are_made_once_per_facts() -> None:
    layer = cnnlstm_fast.LSTM(4, 8)
    layer(torch.zeros(5, 2, 4))
    before = dispatch.cached_plan.cache_info()
    layer(torch.zeros(5, 2, 4))
    after = dispatch.cached_plan.cache_info()
    assert after.hits == before.hits + 1 and after.misses == before.misses


def test_the_choice_does_not_outlive_a_change_of_sizes_or_dtype() -> None:
    layer = cnnlstm_fast.LSTM(4, 8)
    layer(torch.zeros(5, 2, 4))
    assert layer(torch.zeros(9, 1, 4))[0].shape == (9, 1, 8)
    assert layer.double()(torch.zeros(5, 2, 4).double())[0].dtype == torch.float64


def test_a_backend_is_differentiable_unless_it_has_a_backward() -> None:
    code = backend("one")
    assert code.differentiable and not code.saves
    assert not replace(code, backward=lambda: None).differentiable
    assert not replace(code, native=True).differentiable and replace(code, native=True).saves


def test_auto_takes_the_compiled_backend_where_it_is_there() -> None:
    choice = dispatch.select(SPEC)
    able = [b.name for b in BACKENDS.values() if b.supports(SPEC) is None]
    assert choice.backend.name in able
    assert set(choice.rejected) == set(list(BACKENDS)[: list(BACKENDS).index(choice.backend.name)])
