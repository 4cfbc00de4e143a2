"""The graph that the passes of the engine ``onednn`` rewrite, with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def targets(names: str) -> frozenset[Any]:
    """The operators of these names, each without its overload."""
    return frozenset(getattr(aten, name) for name in names.split())


CONVOLUTIONS = targets("conv1d conv2d conv3d")
TRANSPOSED = targets("conv_transpose1d conv_transpose2d conv_transpose3d")
PRODUCTS = (
    CONVOLUTIONS | TRANSPOSED | targets("linear matmul mm bmm addmm baddbmm scaled_dot_product_attention")
)
UNARY = targets(
    "relu relu6 sigmoid tanh silu gelu elu selu celu leaky_relu hardtanh hardswish hardsigmoid clamp "
    "clamp_min clamp_max softplus mish log_sigmoid abs exp neg sqrt rsqrt square"
)
"""Functions of each element, whose one tensor is the first argument."""


@dataclass
class Draft:
    graph: fx.Graph
    tensors: dict[str, Tensor]

    def tensor(self, node: Any) -> Tensor | None:
        """The weight that the node is, None if it is none."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        return self.tensors[str(node.target)]

    def add(self, tensor: Tensor) -> fx.Node:
        """A new weight, at the graph's insertion point."""
        name = f"packed_{len(self.tensors)}"
        self.tensors[name] = tensor
        return self.graph.create_node("get_attr", name)

    def replace(
        self, node: fx.Node, target: Any, args: tuple[Any, ...], like: fx.Node | None = None
    ) -> fx.Node:
        """Replaces a node by a call, and returns the call. ``like``: what the result is like, the node by default."""
        with self.graph.inserting_before(node):
            new = self.graph.call_function(target, args)
        new.meta = dict((like or node).meta)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)
        return new

    def clean(self) -> None:
        """Erases what nothing uses, except for placeholders."""
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)


def shape(node: Any) -> tuple[Any, ...] | None:
    """The symbolic shape, None for what is no tensor."""
    spec = node.meta.get("spec") if isinstance(node, fx.Node) else None
    return spec.shape if spec is not None else None
