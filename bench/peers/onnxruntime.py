"""ONNX Runtime on the CPU, in float32 and dynamically quantized to int8."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cases import Case
from ..measure.jobs import Inputs
from . import onnx_graph
from .base import Peer, first_reason


def _supports(case: Case, mode: str, dtype: str, device: str) -> str | None:
    return onnx_graph.unsupported_reason(case, mode, device) or first_reason(
        (dtype != "f32", "its LSTM has no 16-bit kernel"),
        (case.empty > 0 and case.states, "it returns zeros as the final states of an empty sequence"),
    )


class _Session:
    def __init__(self, case: Case, inputs: Inputs, model: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._case, self._inputs = case, inputs
        self._x = onnx_graph.padded(case, inputs)
        # bound once, as performance-conscious callers do: Session.run takes 5 microseconds more
        self._binding = self._session.io_binding()
        self._feeds = onnx_graph.feeds(case, inputs)  # kept alive: the binding does not own them
        for name, array in self._feeds.items():
            self._binding.bind_cpu_input(name, array)
        self._found = [
            onnxruntime.OrtValue.ortvalue_from_shape_and_type(output.shape, "float32")
            for output in self._session.get_outputs()
        ]
        for name, found in zip(onnx_graph.OUTPUTS, self._found, strict=True):
            self._binding.bind_ortvalue_output(name, found)

    def __call__(self) -> None:
        x = self._x.contiguous().numpy()  # a variable keeps it alive until the run is over
        self._binding.bind_cpu_input("x", x)
        self._session.run_with_iobinding(self._binding)

    def results(self) -> dict[str, Tensor]:
        self()
        return onnx_graph.as_results(self._case, self._inputs, [found.numpy() for found in self._found])


def _prepare(int8: bool, case: Case, inputs: Inputs, mode: str, dtype: str) -> _Session:
    model = onnx_graph.model(case, inputs)
    return _Session(case, inputs, _quantized(model) if int8 else model.SerializeToString())


def _quantized(model: Any) -> bytes:
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(model, path)
        return path.read_bytes()


FLOAT = Peer(
    "onnxruntime",
    "ONNX Runtime, CPU provider",
    modules=("onnxruntime", "onnx"),
    pip="onnxruntime onnx",
    supports=_supports,
    prepare=partial(_prepare, False),
)
INT8 = Peer(
    "onnxruntime-int8",
    "ONNX Runtime, CPU provider, DynamicQuantizeLSTM",
    modules=("onnxruntime", "onnx"),
    pip="onnxruntime onnx",
    supports=_supports,
    prepare=partial(_prepare, True),
    precision="int8",
)
