"""A call of an engine that runs ONNX graphs: the layer's own graph, or an exported model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..cases import Case
from ..measure.jobs import Inputs, ModelInputs, on_all_inputs
from . import onnx_export, onnx_graph

Run = Callable[[tuple[Tensor, ...]], list[Tensor]]
"""Runs the graph on tensors of any strides; the results, in the graph's order, may be overwritten by the next run."""


@dataclass(frozen=True)
class OnnxCall:
    """Inputs are handed over in every run, constants once."""

    graph: bytes
    inputs: dict[str, Tensor]
    results: Callable[[Run], dict[str, Tensor]]
    constants: dict[str, np.ndarray] = field(default_factory=dict)


def onnx_call(case: Case, inputs: Inputs | ModelInputs) -> OnnxCall:
    if isinstance(inputs, ModelInputs):
        names = onnx_export.input_names(case)
        return OnnxCall(
            onnx_export.graph(case, inputs),
            dict(zip(names, inputs.x, strict=True)),
            lambda run: on_all_inputs(run, inputs),
        )
    x = onnx_graph.padded(case, inputs)
    return OnnxCall(
        onnx_graph.model(case, inputs).SerializeToString(),
        {"x": x},
        lambda run: onnx_graph.as_results(case, inputs, run((x,))),
        onnx_graph.constants(case, inputs),
    )


class OnnxJob(ABC):
    """A prepared engine. ``run`` is a ``Run``."""

    def __init__(self, call: OnnxCall) -> None:
        self.call = call
        self._x = tuple(call.inputs.values())

    @abstractmethod
    def run(self, tensors: tuple[Tensor, ...]) -> list[Tensor]: ...

    def __call__(self) -> list[Tensor]:
        return self.run(self._x)

    def results(self) -> dict[str, Tensor]:
        return self.call.results(self.run)
