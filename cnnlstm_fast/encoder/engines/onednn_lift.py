"""Second pass: chains of operators on (B, C, L) run on (B, C, 1, L), for which channels_last exists.

oneDNN is fastest there, and a transpose to (B, L, C), which an LSTM needs, is then free.
"""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.fx.node import map_arg

from ..operator_call import arguments, numbers, packet
from ..region import TensorSpec
from .onednn_draft import UNARY, Draft, aten, shape, targets

SAME = UNARY | targets("batch_norm group_norm instance_norm prelu add sub mul div")
"""They mean the same on both shapes. Any that takes a tensor at (B, C, L) takes it at (B, C, 1, L)."""


def lift(draft: Draft) -> None:
    lifted: dict[fx.Node, fx.Node] = {}  # the node at (B, C, 1, L)
    for node in list(draft.graph.nodes):
        call = _call(draft, node, lifted)
        if call is None:
            continue
        target, args, kwargs = call
        with draft.graph.inserting_before(node):

            def tensor(n: fx.Node) -> fx.Node:
                if len(shape(n) or ()) == 3 and n not in lifted:
                    lifted[n] = draft.graph.call_function(aten.unsqueeze.default, (n, 2))
                    lifted[n].meta = _meta(n)
                return lifted.get(n, n)

            def weight(n: fx.Node) -> fx.Node:
                found = draft.tensor(n)
                return n if found is None or found.dim() != 3 else draft.add(found.unsqueeze(2))

            def place(n: fx.Node) -> fx.Node:
                return weight(n) if n.op == "get_attr" else tensor(n)

            new = draft.graph.call_function(target, map_arg(args, place), map_arg(kwargs, place))
            new.meta = _meta(node)
            lifted[node] = new
            back = draft.graph.call_function(aten.squeeze.dim, (new, 2))
            back.meta = dict(node.meta)
        node.replace_all_uses_with(back)
        draft.graph.erase_node(node)
        lifted[back] = lifted.pop(node)
    draft.clean()


def _meta(node: fx.Node) -> dict[str, Any]:
    spec = node.meta["spec"]
    batch, channels, length = spec.shape
    return dict(node.meta) | {"spec": TensorSpec(spec.dtype, (batch, channels, 1, length))}


def _call(
    draft: Draft, node: fx.Node, lifted: dict[fx.Node, fx.Node]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """The operator on (B, C, 1, L) and its arguments, or None where the node stays as it is."""
    operator = packet(node)
    if operator is None or len(shape(node) or ()) != 3:
        return None
    first = node.args[0][0] if operator is aten.cat else node.args[0]  # type: ignore[index]
    if not isinstance(first, fx.Node) or len(shape(first) or ()) != 3:
        return None
    if operator in CONVOLUTION_OR_POOL:
        return CONVOLUTION_OR_POOL[operator](arguments(node))
    tensors = [n for n in node.all_input_nodes if n.op != "get_attr"]
    if not any(n in lifted for n in tensors) or any(len(shape(n) or ()) != 3 for n in tensors):
        return None
    if operator in SAME:
        weights = [w for n in node.all_input_nodes if (w := draft.tensor(n)) is not None]
        if any(weight.dim() == 2 for weight in weights):  # broadcast over channels and lengths
            return None
        return node.target, node.args, dict(node.kwargs)
    given = arguments(node)
    if operator is aten.cat:
        return node.target, (given["tensors"], _dimension(given["dim"])), {}
    if operator is aten.glu:
        return node.target, (given["self"], _dimension(given["dim"])), {}
    if operator is aten.slice:
        return node.target, (given["self"], _dimension(given["dim"]), *node.args[2:]), dict(node.kwargs)
    if operator is aten.pad and len(given["pad"]) == 2:
        return node.target, (given["self"], [*given["pad"], 0, 0], given["mode"], given["value"]), {}
    return None


def _dimension(dim: int) -> int:
    dim %= 3
    return 3 if dim == 2 else dim


def _wide(value: Any, height: int) -> list[int]:
    """Of a length, the same at (height, width)."""
    return [height, *numbers(value, 1)]


def _convolution(a: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    same = isinstance(a["padding"], str)
    padding = a["padding"] if same else _wide(a["padding"], 0)
    target = aten.conv2d.padding if same else aten.conv2d.default
    return (
        target,
        (
            a["input"],
            a["weight"],
            a["bias"],
            _wide(a["stride"], 1),
            padding,
            _wide(a["dilation"], 1),
            a["groups"],
        ),
        {},
    )


def _transposed(a: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    wide = (_wide(a["stride"], 1), _wide(a["padding"], 0), _wide(a["output_padding"], 0))
    args = (a["input"], a["weight"], a["bias"], *wide, a["groups"], _wide(a["dilation"], 1))
    return aten.conv_transpose2d.input, args, {}


def _window(a: dict[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride (the kernel, if none is given) and padding of a pool."""
    kernel = numbers(a["kernel_size"], 1)
    return _wide(kernel, 1), _wide(a["stride"] or kernel, 1), _wide(a["padding"], 0)


def _max_pool(a: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return aten.max_pool2d.default, (a["self"], *_window(a), _wide(a["dilation"], 1), a["ceil_mode"]), {}


def _avg_pool(a: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return aten.avg_pool2d.default, (a["self"], *_window(a), a["ceil_mode"], a["count_include_pad"]), {}


def _adaptive_pool(a: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return aten.adaptive_avg_pool2d.default, (a["self"], _wide(a["output_size"], 1)), {}


CONVOLUTION_OR_POOL = {
    aten.conv1d: _convolution,
    aten.conv_transpose1d: _transposed,
    aten.max_pool1d: _max_pool,
    aten.avg_pool1d: _avg_pool,
    aten.adaptive_avg_pool1d: _adaptive_pool,
}
