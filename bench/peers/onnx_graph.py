"""An ONNX graph built from a case's weights, with static shapes: one LSTM node for each layer.

It does not use PyTorch's exporters, which lose lengths and projections.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..cases import Case
from ..measure.jobs import Inputs
from .base import first_reason

OUTPUTS = ("output", "h_n", "c_n")
OPSET = 17


def unsupported_reason(case: Case, mode: str, device: str) -> str | None:
    """None, or why the call cannot be expressed by this graph."""
    return first_reason(
        (mode != "inference", "inference only"),
        (device != "cpu", "set up for the CPU only"),
        (case.T == 0, "engines reject empty tensors"),
        (case.proj_size > 0, "ONNX's LSTM has no projections"),
        (case.resets > 0, "ONNX's LSTM has no resets"),
    )


def model(case: Case, inputs: Inputs) -> Any:
    """The onnx.ModelProto in float32: x and, where the case has them, lengths, h0, c0 -> output, h_n, c_n."""
    from onnx import TensorProto, helper

    D, L, T, B, H = case.directions, case.layers, case.T, case.B, case.H
    states = [L * D, B, H]

    def value(name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    given = [value("x", [T, B, case.I])]
    if case.lengths is not None:
        given.append(value("lengths", [B], TensorProto.INT32))
    if case.states:
        given += [value("h0", states), value("c0", states)]
    results = [value("output", [T, B, D * H]), value("h_n", states), value("c_n", states)]
    graph = helper.make_graph(list(_nodes(case)), "lstm", given, results, list(_weights(case, inputs)))
    # the oldest IR version with this opset, for engines that are older than the onnx package
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def constants(case: Case, inputs: Inputs) -> dict[str, np.ndarray]:
    """All inputs of the graph except x, which a caller may have to copy at every call."""
    found = {}
    if case.lengths is not None:
        assert inputs.lengths is not None
        found["lengths"] = inputs.lengths.to(torch.int32).numpy()
    if case.states:
        found |= {"h0": inputs.h0.float().numpy(), "c0": inputs.c0.float().numpy()}
    return found


def padded(case: Case, inputs: Inputs) -> Tensor:
    """x as the graph takes it: float32, padded."""
    x = inputs.x
    x = pad_packed_sequence(x, total_length=case.T)[0] if isinstance(x, PackedSequence) else x
    return x.float()


def as_results(case: Case, inputs: Inputs, outputs: list[Tensor]) -> dict[str, Tensor]:
    """Copies of the engine's outputs, given in the order of ``OUTPUTS``, in the case's own form (packed or padded)."""
    found = {name: output.clone() for name, output in zip(OUTPUTS, outputs, strict=True)}
    if case.packed:
        assert inputs.lengths is not None
        found["output"] = pack_padded_sequence(found["output"], inputs.lengths, enforce_sorted=False).data
    return found


def _nodes(case: Case) -> Iterator[Any]:
    from onnx.helper import make_node

    layers = range(case.layers)
    if case.states:
        for name in ("h0", "c0"):
            yield make_node("Split", [name], [f"{name}_{k}" for k in layers], axis=0)
    lengths = "lengths" if case.lengths is not None else ""
    below = "x"
    for k in layers:
        states = [f"h0_{k}", f"c0_{k}"] if case.states else []
        above = "output" if k == case.layers - 1 else f"output_{k}"
        yield make_node(
            "LSTM",
            [below, f"W_{k}", f"R_{k}", f"B_{k}", lengths, *states],
            [f"Y_{k}", f"h_n_{k}", f"c_n_{k}"],
            hidden_size=case.H,
            direction="bidirectional" if case.bidirectional else "forward",
        )
        yield make_node("Transpose", [f"Y_{k}"], [f"steps_{k}"], perm=[0, 2, 1, 3])  # to (T, B, D, H)
        yield make_node("Reshape", [f"steps_{k}", "shape"], [above])
        below = above
    for name in ("h_n", "c_n"):
        yield make_node("Concat", [f"{name}_{k}" for k in layers], [name], axis=0)


def _weights(case: Case, inputs: Inputs) -> Iterator[Any]:
    from onnx import numpy_helper

    suffixes = ("", "_reverse") if case.bidirectional else ("",)
    for k in range(case.layers):

        def stacked(part: str, k: int = k) -> Tensor:
            """(D, 4H, ...)"""
            weights = [inputs.weights[f"{part}_l{k}{suffix}"].float() for suffix in suffixes]
            return torch.stack([_in_onnx_order(weight) for weight in weights])

        yield numpy_helper.from_array(stacked("weight_ih").numpy(), f"W_{k}")
        yield numpy_helper.from_array(stacked("weight_hh").numpy(), f"R_{k}")
        biases = torch.cat([stacked("bias_ih"), stacked("bias_hh")], dim=1)
        yield numpy_helper.from_array(biases.numpy(), f"B_{k}")
    yield numpy_helper.from_array(np.array([case.T, case.B, -1]), "shape")


def _in_onnx_order(weight: Tensor) -> Tensor:
    i, f, g, o = weight.chunk(4)
    return torch.cat([i, o, f, g])
