"""Third pass: products become oneDNN's fused operators, with their weights packed, on channels_last tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from ..operator_call import arguments, numbers, packet
from .onednn_draft import CONVOLUTIONS, TRANSPOSED, Draft, aten, shape

mkldnn = torch.ops.mkldnn
CONVOLUTION = mkldnn._convolution_pointwise.default
CONVOLUTION_ADD = mkldnn._convolution_pointwise.binary
CONVOLUTION_TRANSPOSED = mkldnn._convolution_transpose_pointwise.default
LINEAR = mkldnn._linear_pointwise.default
LINEAR_ADD = mkldnn._linear_pointwise.binary

NO_ACTIVATION: tuple[Any, ...] = ("none", [], "")
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

SMALL = 800_000
"""Multiplications up to which PyTorch's own product is faster in float32: a call of an operator of oneDNN takes 15 to
30 us whatever its size (docs/notes/encoder.md)."""
SMALL_IMAGE = 20480
"""Elements up to which ``torch.conv2d`` computes one image by a plain matrix product, not by oneDNN."""


def fuse(draft: Draft) -> None:
    # In the order of the graph, so that a product has its activation when the next one takes it.
    for node in list(draft.graph.nodes):
        operator = packet(node)
        if operator in CONVOLUTIONS:
            _convolution(draft, node)
        elif operator in TRANSPOSED:
            _transposed(draft, node)
        elif operator is aten.linear:
            _linear(draft, node)
        elif operator is aten.add:
            _absorb_add(draft, node)
        elif operator is not None:
            _absorb_activation(draft, node)
    draft.clean()


def _channels_last(draft: Draft, node: fx.Node, before: fx.Node) -> fx.Node:
    """The tensor in channels_last; fused convolutions return it so."""
    if node.target in (CONVOLUTION, CONVOLUTION_ADD, CONVOLUTION_TRANSPOSED):
        return node
    layout = CHANNELS_LAST[len(node.meta["spec"].shape)]
    known = next(
        (n for n in node.users if packet(n) is aten.contiguous and n.kwargs["memory_format"] is layout), None
    )
    if known is not None:
        return known
    with draft.graph.inserting_before(before):
        new = draft.graph.call_function(aten.contiguous.default, (node,), {"memory_format": layout})
    new.meta = dict(node.meta)
    return new


def _convolution(draft: Draft, node: fx.Node) -> None:
    given = arguments(node)
    weight, source = draft.tensor(given["weight"]), given["input"]
    if weight is None or len(shape(node) or ()) != weight.dim() or weight.dim() not in CHANNELS_LAST:
        return
    dims = weight.dim() - 2
    stride, dilation, groups = (
        numbers(given["stride"], dims),
        numbers(given["dilation"], dims),
        given["groups"],
    )
    padding = given["padding"]
    if isinstance(padding, str):
        total = [
            0 if padding == "valid" else d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)
        ]
        padding = [t // 2 for t in total]
        if any(t % 2 for t in total):  # one more at the end
            ends = [amount for t in reversed(total) for amount in (0, t % 2)]
            with draft.graph.inserting_before(node):
                source = draft.graph.call_function(aten.constant_pad_nd.default, (source, ends, 0.0))
            source.meta = {"spec": given["input"].meta["spec"]}
            example = given["input"].meta["example"]
            source.meta["example"] = example.new_empty(
                [*example.shape[:2], *(s + t % 2 for s, t in zip(example.shape[2:], total, strict=True))]
            )
    padding = numbers(padding, dims)
    image = source.meta["example"]
    work = node.meta["example"].numel() * weight[0].numel()
    plain = weight.dtype == torch.float32 and work <= SMALL and groups == 1 and dims == 2
    if plain and weight[0, 0].numel() == 1 and not any(padding) and stride == [1, 1]:
        _by_matrix(draft, node, source, weight)
        return
    source = _channels_last(draft, source, node)
    if plain and image.shape[0] == 1 and image.numel() <= SMALL_IMAGE and min(weight.shape[2:]) <= 3:
        with draft.graph.inserting_before(node):
            packed = draft.add(weight.contiguous(memory_format=torch.channels_last))
        draft.replace(
            node, aten.conv2d.default, (source, packed, given["bias"], stride, padding, dilation, groups)
        )
        return
    layout = CHANNELS_LAST[weight.dim()]
    with draft.graph.inserting_before(node):
        packed = draft.add(
            mkldnn._reorder_convolution_weight(
                weight.contiguous(memory_format=layout), padding, stride, dilation, groups, list(image.shape)
            )
        )
    draft.replace(
        node, CONVOLUTION, (source, packed, given["bias"], padding, stride, dilation, groups, *NO_ACTIVATION)
    )


def _by_matrix(draft: Draft, node: fx.Node, source: fx.Node, weight: torch.Tensor) -> None:
    """A small convolution of one pixel as a linear map of channels."""
    with draft.graph.inserting_before(node):
        last = draft.graph.call_function(aten.permute.default, (source, [0, 2, 3, 1]))
        matrix = draft.add(weight.flatten(1).clone())
        product = draft.graph.call_function(aten.linear.default, (last, matrix, arguments(node)["bias"]))
    draft.replace(node, aten.permute.default, (product, [0, 3, 1, 2]))


def _transposed(draft: Draft, node: fx.Node) -> None:
    given = arguments(node)
    weight, source = draft.tensor(given["weight"]), given["input"]
    if weight is None or len(shape(node) or ()) != weight.dim() or weight.dim() not in CHANNELS_LAST:
        return
    dims = weight.dim() - 2
    names = ("padding", "output_padding", "stride", "dilation")
    how = (*(numbers(given[name], dims) for name in names), given["groups"])
    source = _channels_last(draft, source, node)
    with draft.graph.inserting_before(node):
        packed = draft.add(
            mkldnn._reorder_convolution_transpose_weight(
                weight.contiguous(), *how, list(source.meta["example"].shape)
            )
        )
    draft.replace(node, CONVOLUTION_TRANSPOSED, (source, packed, given["bias"], *how, *NO_ACTIVATION))


def _linear(draft: Draft, node: fx.Node) -> None:
    source, weight_node, bias = (*node.args, None)[:3]
    weight = draft.tensor(weight_node)
    example = node.meta["example"]
    if weight is None or weight.dim() != 2 or not (isinstance(source, fx.Node) and example.dim() >= 2):
        return
    if weight.dtype == torch.float32 and example.numel() * weight.shape[1] <= SMALL:
        return
    with draft.graph.inserting_before(node):
        rows = max(1, math.prod(example.shape[:-1]))
        packed = draft.add(mkldnn._reorder_linear_weight(weight.contiguous(), rows))
    draft.replace(node, LINEAR, (source, packed, bias, *NO_ACTIVATION))


def _absorb_activation(draft: Draft, node: fx.Node) -> None:
    product = node.args[0] if node.args else None
    if not isinstance(product, fx.Node) or len(product.users) != 1:
        return
    fused = _activation(node)
    if fused is None:
        return
    if product.target is CONVOLUTION_ADD:
        free = product.args[-3] is None and fused[0] == "relu"
    else:
        free = product.target in (CONVOLUTION, CONVOLUTION_TRANSPOSED, LINEAR) and product.args[-3] == "none"
    if not free:
        return
    product.args = (*product.args[:-3], *fused)
    node.replace_all_uses_with(product)
    draft.graph.erase_node(node)


def _activation(node: fx.Node) -> tuple[str, list[Any], str] | None:
    """What oneDNN calls the function, its numbers, and its variant."""
    operator = packet(node)
    if operator in PLAIN:
        return PLAIN[operator], [], ""
    if operator is aten.gelu:
        return "gelu", [], arguments(node)["approximate"]
    if operator is aten.leaky_relu:
        return "leaky_relu", [arguments(node)["negative_slope"]], ""
    if operator is aten.relu6:
        return "hardtanh", [0.0, 6.0], ""
    if operator is aten.hardtanh:
        given = arguments(node)
        return "hardtanh", [given["min_val"], given["max_val"]], ""
    if node.target is aten.clamp.default:
        given = arguments(node)
        limits = [given["min"], given["max"]]
        return ("hardtanh", limits, "") if all(isinstance(v, (int, float)) for v in limits) else None
    return None


PLAIN = {
    aten.relu: "relu",
    aten.sigmoid: "sigmoid",
    aten.tanh: "tanh",
    aten.silu: "swish",
    aten.hardswish: "hardswish",
    aten.hardsigmoid: "hardsigmoid",
}


def _absorb_add(draft: Draft, node: fx.Node) -> None:
    """The sum of a product and a tensor of the same shape, in either order, within the product."""
    first, second = node.args[:2]
    if (
        not (isinstance(first, fx.Node) and isinstance(second, fx.Node))
        or first is second
        or arguments(node)["alpha"] != 1
    ):
        return
    if shape(first) is None or shape(first) != shape(second):
        return
    if first.meta["example"].dtype != second.meta["example"].dtype:
        return
    # The product moves to the place of the sum, so either of two will do.
    for product, other in ((first, second), (second, first)):
        if (
            product.target not in (CONVOLUTION, LINEAR)
            or product.args[-3] != "none"
            or len(product.users) != 1
        ):
            continue
        source, *rest = product.args[:-3]
        if product.target is CONVOLUTION:
            draft.replace(node, CONVOLUTION_ADD, (source, other, *rest, "add", 1.0, None, [], None))
        else:
            draft.replace(node, LINEAR_ADD, (source, other, *rest, "add"))
        draft.graph.erase_node(product)
        return
