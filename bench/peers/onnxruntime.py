"""ONNX Runtime on the CPU, in float32 and dynamically quantized to int8."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..cases import Case
from ..measure.jobs import Inputs, ModelInputs
from . import onnx_graph
from .base import Peer, first_reason
from .onnx_call import OnnxCall, OnnxJob, onnx_call


def _supports(case: Case, mode: str, dtype: str, device: str) -> str | None:
    # a whole model computes in float32 where others may use bfloat16 products: its users have no other choice
    tensors = "f32" if dtype == "amp" and case.model else dtype
    return onnx_graph.unsupported_reason(case, mode, device) or first_reason(
        (tensors != "f32", "its LSTM has no 16-bit kernel"),
        (case.empty > 0 and case.states, "it returns zeros as the final states of an empty sequence"),
    )


def _supports_int8(case: Case, mode: str, dtype: str, device: str) -> str | None:
    return first_reason((bool(case.model), "set up for the layer alone")) or _supports(
        case, mode, dtype, device
    )


class _Session(OnnxJob):
    def __init__(self, call: OnnxCall) -> None:
        import onnxruntime

        super().__init__(call)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(call.graph, options, providers=["CPUExecutionProvider"])
        # bound once, as performance-conscious callers do: Session.run takes 5 microseconds more
        self._binding = self._session.io_binding()
        for name, array in call.constants.items():  # the call keeps them alive: the binding does not own them
            self._binding.bind_cpu_input(name, array)
        feeds = {name: x.contiguous().numpy() for name, x in call.inputs.items()} | call.constants
        self._found = []
        for output, found in zip(
            self._session.get_outputs(), self._session.run(None, feeds), strict=True
        ):  # its sizes are known from a first run
            value = onnxruntime.OrtValue.ortvalue_from_numpy(found)
            self._binding.bind_ortvalue_output(output.name, value)
            self._found.append(value)

    def run(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        arrays = [
            x.contiguous().numpy() for x in tensors
        ]  # a variable keeps them alive until the run is over
        for name, array in zip(self.call.inputs, arrays, strict=True):
            self._binding.bind_cpu_input(name, array)
        self._session.run_with_iobinding(self._binding)
        return self._results

    @property
    def _results(self) -> list[Tensor]:
        return [torch.from_numpy(found.numpy()) for found in self._found]


def _prepare(int8: bool, case: Case, inputs: Inputs | ModelInputs, mode: str, dtype: str) -> _Session:
    call = onnx_call(case, inputs)
    return _Session(replace(call, graph=_quantized(call.graph)) if int8 else call)


def _quantized(graph: bytes) -> bytes:
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(onnx.load_from_string(graph), path)
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
    supports=_supports_int8,
    prepare=partial(_prepare, True),
    precision="int8",
)
