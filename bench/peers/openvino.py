"""OpenVINO on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..cases import Case
from ..measure.jobs import Inputs
from . import onnx_graph
from .base import Peer, first_reason


def _supports(case: Case, mode: str, dtype: str, device: str) -> str | None:
    return onnx_graph.unsupported_reason(case, mode, device) or first_reason(
        (dtype not in ("f32", "bf16"), "set up for float32 and bfloat16"),
        (case.empty > 0 and case.states, "it returns wrong final states of an empty sequence"),
    )


class _Compiled:
    """Tensors are float32 in either dtype; bfloat16 is only the precision of the products."""

    def __init__(self, case: Case, inputs: Inputs, precision: str) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(onnx_graph.model(case, inputs).SerializeToString())
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._request = core.compile_model(model, "CPU", options).create_infer_request()
        self._case, self._inputs = case, inputs
        self._x = onnx_graph.padded(case, inputs)
        self._feeds = onnx_graph.feeds(case, inputs)

    def __call__(self) -> Any:
        feeds = {"x": self._x.contiguous().numpy(), **self._feeds}
        return self._request.infer(feeds, share_inputs=True, share_outputs=True)

    def results(self) -> dict[str, Tensor]:
        found = self()
        return onnx_graph.as_results(self._case, self._inputs, [found[name] for name in onnx_graph.OUTPUTS])


def _prepare(case: Case, inputs: Inputs, mode: str, dtype: str) -> _Compiled:
    return _Compiled(case, inputs, dtype)


PEER = Peer(
    "openvino",
    "OpenVINO, CPU plugin",
    modules=("openvino", "onnx"),
    pip="openvino onnx",
    supports=_supports,
    prepare=_prepare,
)
