"""What people do to a model with PyTorch's tracers and other tools, done to an optimized one. ``test_transforms.py``
has the whole of torch.func, ``test_flops.py`` FlopCounterMode."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.parametrizations import weight_norm

import cnnlstm_fast

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)


class Tagger(nn.Module):
    """x (B, T, 8) -> (B, 3): a bidirectional LSTM of two layers, and a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=2, batch_first=True, bidirectional=True)
        self.cell, self.head = nn.LSTMCell(32, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.lstm(x)[0]
        h, c = self.cell(found[:, 0])
        h, c = self.cell(found[:, 1], (h, c))
        return self.head(h + c)


def jit_trace(model: nn.Module, x: Tensor) -> Tensor:
    return torch.jit.trace(model, x)(x)


def jit_trace_saved(model: nn.Module, x: Tensor) -> Tensor:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, x), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)(x[:2])


def jit_script(model: nn.Module, x: Tensor) -> Tensor:
    return torch.jit.script(model)(x)


def onnx_by_trace(model: nn.Module, x: Tensor) -> Tensor:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    buffer: Any = io.BytesIO()
    torch.onnx.export(model, (x,), buffer, dynamo=False, input_names=["x"])
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def onnx_by_dynamo(model: nn.Module, x: Tensor) -> Tensor:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def fx_trace(model: nn.Module, x: Tensor) -> Tensor:
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["lstm", "cell", "cell", "head"]
    return traced(x)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def joined(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten(1 if g.dim() > 1 else 0).flatten() for g in gradients.values()])


def func_grad(model: nn.Module, x: Tensor) -> Tensor:
    def loss(given: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, given, (x,)).pow(2).sum()

    return joined(torch.func.grad(loss)({name: 2.0 * p for name, p in parameters(model).items()}))


def per_sample_gradients(model: nn.Module, x: Tensor) -> Tensor:
    """Of the LSTM: PyTorch's cell has no batching rule."""
    layer: Any = model.lstm

    def loss(given: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(layer, given, (sample[None],))[0].pow(2).sum()

    return joined(torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters(layer), x))


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    return torch.func.jacrev(model)(x)


def gradients_by_vmap(model: nn.Module, x: Tensor) -> Tensor:
    """Of the LSTM's input: PyTorch's layer has a vmap of its gradients alone."""
    layer: Any = model.lstm
    pairs = torch.stack([x, -2.0 * x], 1)  # two sequences for each sample
    return torch.func.vmap(torch.func.grad(lambda sample: layer(sample)[0].pow(2).sum()))(pairs)


def quantized(model: nn.Module, x: Tensor) -> Tensor:
    model = copy.deepcopy(model)
    cnnlstm_fast.revert(model)
    found: Any = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM, nn.LSTMCell})
    kinds = [torch.ao.nn.quantized.dynamic.LSTM, torch.ao.nn.quantized.dynamic.LSTMCell]
    assert [type(found.lstm), type(found.cell)] == kinds
    return found(x)


def functional_call(model: nn.Module, x: Tensor) -> Tensor:
    return torch.func.functional_call(model, {name: -p for name, p in parameters(model).items()}, (x,))


OPERATIONS = (
    *(jit_trace, jit_trace_saved, jit_script, onnx_by_trace, onnx_by_dynamo, fx_trace),
    *(func_grad, per_sample_gradients, gradients_by_vmap, jacobian, functional_call, quantized),
)


def fast(model: nn.Module) -> nn.Module:
    return cnnlstm_fast.optimize(copy.deepcopy(model))


@pytest.fixture
def model() -> nn.Module:
    return Tagger().eval()


@pytest.mark.parametrize(
    "operation",
    [pytest.param(f, marks=[pytest.mark.slow] if f is onnx_by_dynamo else []) for f in OPERATIONS],
    ids=[f.__name__ for f in OPERATIONS],
)
def test_as_on_the_plain_model(operation: Callable[[nn.Module, Tensor], Tensor], model: nn.Module) -> None:
    x = torch.randn(4, 6, 8)
    ours, expected = operation(fast(model), x), operation(model, x)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_gradients_of_torch_func_are_those_of_autograd(model: nn.Module) -> None:
    x = torch.randn(4, 6, 8)
    doubled = copy.deepcopy(model)
    with torch.no_grad():
        for p in doubled.parameters():
            p.mul_(2.0)
    doubled(x).pow(2).sum().backward()
    expected = joined({name: p.grad for name, p in doubled.named_parameters() if p.grad is not None})
    torch.testing.assert_close(func_grad(fast(model), x), expected, rtol=1e-4, atol=1e-5)


def test_a_traced_model_has_pytorchs_operators(model: nn.Module) -> None:
    text = str(torch.jit.trace(fast(model), torch.randn(4, 6, 8)).inlined_graph)
    assert "aten::lstm(" in text and "cnnlstm_fast::" not in text


def test_openvino_converts_it(model: nn.Module) -> None:
    openvino = pytest.importorskip("openvino")
    x = torch.randn(4, 6, 8)
    converted = openvino.convert_model(fast(model), example_input=x)
    kinds = {operator.get_type_name() for operator in converted.get_ops()}
    assert kinds & {"LSTMSequence", "LSTMCell", "TensorIterator", "Loop"}, kinds
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16, where the processor has it
    found = openvino.compile_model(converted, "CPU", exact)(x.numpy())[0]
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


def test_vmap_is_a_call_of_the_whole_batch(model: nn.Module) -> None:
    """PyTorch has it for neither layer."""
    x = torch.randn(4, 6, 8)
    found = torch.func.vmap(lambda sample: fast(model)(sample[None])[0])(x)
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-6)


def test_quantize_dynamic_leaves_the_layers_as_they_are(model: nn.Module) -> None:
    optimized, x = fast(model), torch.randn(4, 6, 8)
    found: Any = torch.ao.quantization.quantize_dynamic(optimized, {nn.LSTM, nn.LSTMCell})
    assert [type(found.lstm), type(found.cell)] == [cnnlstm_fast.LSTM, cnnlstm_fast.LSTMCell]
    torch.testing.assert_close(found(x), model(x), rtol=1e-4, atol=1e-6)


def test_the_layer_is_fast_again_afterwards_and_explain_tells_of_it(model: nn.Module) -> None:
    optimized, x = fast(model), torch.randn(4, 6, 8)
    before = cnnlstm_fast.explain(optimized, x)
    assert "ran as nn.LSTM's" not in before
    jit_trace(optimized, x)
    func_grad(optimized, x)  # by the operator
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(optimized, (x,), (x,))
    step: Any = torch.ones(4, 32)
    torch.func.jvp(optimized.cell, (step,), (step,))
    after = cnnlstm_fast.explain(optimized, x)
    for tracer in ("torch.func.jvp", "torch.jit.trace"):
        assert after.count(f"calls under {tracer} ran as nn.LSTM's, by PyTorch's own operators") == 2
    kept = [line for line in after.splitlines() if "ran as nn.LSTM's" not in line]
    assert kept == before.splitlines()


def test_forward_mode_derivatives_are_never_lost(model: nn.Module) -> None:
    """PyTorch has none for an LSTM on a CPU, and says so."""
    optimized, x = fast(model), torch.randn(4, 6, 8)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(NotImplementedError, match="forward AD"):
                optimized(dual)
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(optimized, (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("argument", ["lengths", "reset", "all_cells"])
def test_what_nn_lstm_lacks_is_refused_by_name(argument: str) -> None:
    layer, x = cnnlstm_fast.LSTM(8, 16), torch.randn(6, 4, 8)
    value: Any = {"lengths": torch.tensor([6, 5, 4, 1]), "reset": torch.zeros(6, 4, dtype=torch.bool)}.get(
        argument, True
    )

    def loss(x: Tensor) -> Tensor:
        return layer(x, **{argument: value})[0].sum()

    with pytest.raises(
        RuntimeError, match=r"lengths, reset, all_cells: torch\.func\.jvp takes only what nn\.LSTM has"
    ):
        torch.func.jvp(loss, (x,), (x,))


class Doubled(nn.LSTM):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        output, states = super().forward(2.0 * input, hx)
        return output + 1.0, states


def test_subclasses_keep_their_forward() -> None:
    plain, x = nn.Sequential(Doubled(8, 16), First()), torch.randn(6, 4, 8)
    optimized = fast(plain)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(optimized, x)(x), plain(x))
    for model in (plain, optimized):  # the forward of a subclass is traced, and nn.LSTM's has branches
        with pytest.raises(torch.fx.proxy.TraceError, match="control flow"):
            torch.fx.symbolic_trace(model)


class First(nn.Module):
    def forward(self, found: Any) -> Tensor:
        return found[0]


@pytest.mark.parametrize("bias", [True, False])
def test_weights_that_a_parametrization_computes(bias: bool) -> None:
    for layer, name in (
        (nn.LSTM(8, 16, bias=bias), "weight_hh_l0"),
        (nn.LSTMCell(8, 16, bias=bias), "weight_hh"),
    ):
        plain = nn.Sequential(weight_norm(layer, name), First())
        x = torch.randn(4, 8)
        with torch.no_grad():
            expected = plain(x)
            for operation in (jit_trace, fx_trace_of_leaves):
                torch.testing.assert_close(operation(fast(plain), x), expected)

        def loss(model: nn.Module) -> Tensor:
            return torch.func.grad(lambda given: model(given).pow(2).sum())(torch.ones(4, 8))

        torch.testing.assert_close(loss(fast(plain)), loss(plain))


def fx_trace_of_leaves(model: nn.Module, x: Tensor) -> Tensor:
    return torch.fx.symbolic_trace(model)(x)
