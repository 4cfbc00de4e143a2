"""Whole models as ONNX graphs, as users export them: varying dimensions stay open, and weights are constants.

By the exporter of TorchScript: it needs no other package than ``onnx`` and takes a second, the newer one several.
"""

from __future__ import annotations

import io

import torch

from ..cases import Case
from ..measure.jobs import ModelInputs, model
from ..models import MODELS
from .onnx_graph import OPSET


def input_names(case: Case) -> list[str]:
    return [f"x{k}" for k in range(len(MODELS[case.model].axes()))]


def graph(case: Case, inputs: ModelInputs) -> bytes:
    """The serialized model in float32."""
    names = input_names(case)
    open_axes = zip(names, MODELS[case.model].axes(), strict=True)
    file = io.BytesIO()
    torch.onnx.export(
        model(case, inputs, "inference"),
        inputs.x,
        file,
        dynamo=False,
        opset_version=OPSET,
        input_names=names,
        dynamic_axes={name: {axis: f"{name}_{axis}" for axis in axes} for name, axes in open_axes},
    )
    return file.getvalue()
