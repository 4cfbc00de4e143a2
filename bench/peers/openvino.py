"""OpenVINO on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import Case
from ..measure.jobs import Inputs, ModelInputs
from . import onnx_graph
from .base import Peer, first_reason
from .onnx_call import OnnxCall, OnnxJob, onnx_call

PRECISIONS = {"f32": "f32", "bf16": "bf16", "amp": "bf16"}
"""Of the products, by a row's dtype. The tensors are float32 in any case."""


def _supports(case: Case, mode: str, dtype: str, device: str) -> str | None:
    return onnx_graph.unsupported_reason(case, mode, device) or first_reason(
        (dtype not in PRECISIONS, "set up for float32 and bfloat16"),
        (case.empty > 0 and case.states, "it returns wrong final states of an empty sequence"),
    )


class _Compiled(OnnxJob):
    def __init__(self, call: OnnxCall, precision: str) -> None:
        import openvino

        super().__init__(call)
        core = openvino.Core()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = core.compile_model(core.read_model(call.graph), "CPU", options)
        self._request = compiled.create_infer_request()
        self._outputs = range(len(compiled.outputs))

    def run(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        feeds = {name: x.contiguous().numpy() for name, x in zip(self.call.inputs, tensors, strict=True)}
        found = self._request.infer(feeds | self.call.constants, share_inputs=True, share_outputs=True)
        return [torch.from_numpy(found[k]) for k in self._outputs]


def _prepare(case: Case, inputs: Inputs | ModelInputs, mode: str, dtype: str) -> _Compiled:
    return _Compiled(onnx_call(case, inputs), PRECISIONS[dtype])


PEER = Peer(
    "openvino",
    "OpenVINO, CPU plugin",
    modules=("openvino", "onnx"),
    pip="openvino onnx",
    supports=_supports,
    prepare=_prepare,
)
