"""A region's graph in another floating-point dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..region import Region

aten = torch.ops.aten


def cast(region: Region, dtype: torch.dtype, borders: bool = False) -> fx.GraphModule:
    """A copy of ``region.module`` that computes in ``dtype`` instead of float32, with weights of its own.

    It takes the inputs as they are. It returns what it computes or, with ``borders``, the dtypes of ``region.outputs``.
    """

    def other(value: Any) -> Any:
        return dtype if value is torch.float32 else value

    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in region.module.graph.nodes:
        if node.op == "output":
            found = [copied[n] for n in node.args[0]]
            if borders:
                found = [
                    graph.call_function(aten._to_copy.default, (n,), {"dtype": spec.dtype})
                    for n, spec in zip(found, region.outputs, strict=True)
                ]
            graph.output(tuple(found))
            continue
        new = graph.node_copy(node, copied.__getitem__)
        new.args = fx.node.map_aggregate(new.args, other)
        new.kwargs = fx.node.map_aggregate(new.kwargs, other)
        copied[node] = new
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node, spec in zip(inputs, region.inputs, strict=True):
        if spec.dtype == torch.float32:
            with graph.inserting_after(inputs[-1]):
                new = graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})
            node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
    root = nn.Module()
    for name, tensor in region.weights().items():
        root.register_buffer(name, _converted(tensor, dtype))
    return fx.GraphModule(root, graph)


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor.clone()
