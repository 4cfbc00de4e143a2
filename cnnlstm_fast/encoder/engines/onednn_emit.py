"""Last pass: what may work in place does, and the graph becomes one Python function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..operator_call import packet
from .onednn_draft import CONVOLUTIONS, TRANSPOSED, UNARY, Draft, aten, shape, targets
from .onednn_fuse import mkldnn

FRESH = (
    CONVOLUTIONS
    | TRANSPOSED
    | UNARY
    | targets(
        "linear matmul mm bmm addmm batch_norm layer_norm group_norm max_pool2d max_pool3d avg_pool2d avg_pool3d "
        "adaptive_avg_pool2d adaptive_avg_pool3d cat glu add sub mul div embedding prelu constant_pad_nd "
        "upsample_nearest2d upsample_bilinear2d"
    )
    | {mkldnn._convolution_pointwise, mkldnn._convolution_transpose_pointwise, mkldnn._linear_pointwise}
)
"""Operators that return a tensor of their own."""
VIEWS = targets("permute transpose squeeze unsqueeze reshape flatten")
POINTWISE = targets("add sub mul div")


def work_in_place(draft: Draft) -> None:
    for node in draft.graph.nodes:
        name = packet(node)
        if name in UNARY:
            _edit(node)
        elif name in POINTWISE and isinstance(node.args[1], fx.Node) and not _edit(node) and _commutes(node):
            first, second = node.args
            node.args = (second, first)
            if not _edit(node):
                node.args = (first, second)


def _commutes(node: fx.Node) -> bool:
    return packet(node) in (aten.add, aten.mul) and len(node.args) == 2 and not node.kwargs


def _edit(node: fx.Node) -> bool:
    """Has the operator overwrite its first argument, if nobody else uses that. Returns whether it does."""
    edited: Any = node.args[0]
    in_place = getattr(aten, node.target._schema.name.removeprefix("aten::") + "_", None)  # type: ignore[union-attr]
    overload = getattr(in_place, node.target._overloadname, None)  # type: ignore[union-attr]
    if overload is None or not _is_own(edited) or shape(edited) != shape(node):
        return False
    if edited.meta["example"].dtype != node.meta["example"].dtype or edited in node.args[1:]:
        return False
    node.target = overload
    return True


def _is_own(node: Any) -> bool:
    """Whether the tensor shares no memory with any that is used elsewhere."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    if packet(node) in VIEWS:
        return _is_own(node.args[0])
    return packet(node) in FRESH or getattr(node.target, "_name", "").partition(".")[0].endswith("_")


def compile_function(draft: Draft) -> Callable[..., tuple[Tensor, ...]]:
    """The graph as a Python function. Its operators, weights and constants are its globals."""
    known: dict[str, Any] = {}
    names: dict[fx.Node, str] = {}

    def constant(prefix: str, value: Any) -> str:
        name = f"{prefix}{len(known)}"
        known[name] = value
        return name

    def text(value: Any) -> str:
        if isinstance(value, fx.Node):
            return names[value]
        if isinstance(value, (list, tuple)) and _has_node(value):
            return f"[{', '.join(map(text, value))}]"
        return (
            repr(value) if value is None or isinstance(value, (bool, int, str)) else constant("value_", value)
        )

    nodes = list(draft.graph.nodes)
    last_user = {used: node for node in nodes for used in node.all_input_nodes}
    parameters, body = [], []
    for node in nodes:
        if node.op == "get_attr":
            names[node] = constant("weight_", draft.tensors[node.target])
            continue
        names[node] = node.name
        if node.op == "placeholder":
            parameters.append(node.name)
        elif node.op == "output":
            body.append(f"return ({''.join(text(n) + ', ' for n in node.args[0])})")
        else:
            called = [text(a) for a in node.args] + [f"{key}={text(a)}" for key, a in node.kwargs.items()]
            body.append(f"{node.name} = {constant('call_', _callable(node.target))}({', '.join(called)})")
            done = [n.name for n in node.all_input_nodes if n.op != "get_attr" and last_user[n] is node]
            if done:
                body.append(f"del {', '.join(done)}")  # as soon as possible, so that its memory is used again
    source = "\n    ".join([f"def run({', '.join(parameters)}):", *body])
    exec(compile(source, "<engine onednn>", "exec"), known)
    return known["run"]


def _has_node(value: Any) -> bool:
    return any(isinstance(v, fx.Node) or (isinstance(v, (list, tuple)) and _has_node(v)) for v in value)


def _callable(target: Any) -> Any:
    """What is called for an operator: the Python binding, which costs half of what the operator's object does."""
    if not isinstance(target, torch._ops.OpOverload):
        return target
    if target is aten.sym_size.int:
        return torch.Tensor.size
    name = target._schema.name.removeprefix("aten::")
    if target.namespace == "aten" and name in BINDINGS:
        return getattr(torch, name, None) or getattr(torch._C._nn, name, None) or getattr(torch.Tensor, name)
    return target._op


BINDINGS = frozenset(
    name + suffix
    for suffix in ("", "_")
    for name in (
        *(
            "add",
            "adaptive_avg_pool2d",
            "avg_pool2d",
            "batch_norm",
            "cat",
            "clamp",
            "contiguous",
            "conv1d",
            "conv2d",
        ),
        *(
            "conv3d",
            "elu",
            "flatten",
            "gelu",
            "group_norm",
            "hardsigmoid",
            "hardswish",
            "hardtanh",
            "layer_norm",
        ),
        *(
            "leaky_relu",
            "linear",
            "matmul",
            "max_pool2d",
            "mean",
            "mul",
            "permute",
            "relu",
            "reshape",
            "sigmoid",
        ),
        *("silu", "squeeze", "tanh", "transpose", "unsqueeze"),
    )
)
"""Operators whose Python binding takes the arguments of every overload."""
