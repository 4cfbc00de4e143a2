"""First pass: no identities, products by a weight as ``linear``, and what is affine after a product in its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..operator_call import arguments, packet
from .onednn_draft import CONVOLUTIONS, TRANSPOSED, Draft, aten, shape, targets

DROPOUTS = targets("dropout feature_dropout alpha_dropout feature_alpha_dropout")
VIEWS = targets("view _unsafe_view")


def fold(draft: Draft) -> None:
    for node in list(draft.graph.nodes):
        _drop_identity(draft, node)
    for node in list(draft.graph.nodes):
        _product_by_weight(draft, node)
    for node in list(draft.graph.nodes):
        _fold_into_product(draft, node)
    draft.clean()


def _drop_identity(draft: Draft, node: fx.Node) -> None:
    # A layout shows only in views, which become reshapes; so contiguous() says nothing any more.
    if packet(node) in VIEWS:
        node.target = aten.reshape.default
    elif (packet(node) in DROPOUTS and not arguments(node)["train"]) or packet(node) is aten.contiguous:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.op == "placeholder" and any(user.op == "output" for user in node.users):
            return
        node.replace_all_uses_with(source)
        draft.graph.erase_node(node)


def _product_by_weight(draft: Draft, node: fx.Node) -> None:
    """matmul, mm and addmm by a weight matrix are a ``linear``, and so is one with a bias added later."""
    operator = packet(node)
    if operator in (aten.matmul, aten.mm):
        source, matrix = node.args
        bias = None
    elif operator is aten.addmm:
        given = arguments(node)
        bias, source, matrix = given["self"], given["mat1"], given["mat2"]
        if (
            given["alpha"] != 1
            or given["beta"] != 1
            or draft.tensor(bias) is None
            or len(shape(bias) or ()) != 1
        ):
            return
    else:
        return
    weight = _constant(draft, matrix)
    if weight is None or weight.dim() != 2 or len(shape(source) or ()) < 2:
        return
    if bias is not None and draft.tensors[bias.target].shape[0] != weight.shape[1]:
        return
    with draft.graph.inserting_before(node):
        transposed = draft.add(weight.t().contiguous())
    new = draft.replace(node, aten.linear.default, (source, transposed, bias))
    added = next(iter(new.users)) if bias is None and len(new.users) == 1 else None
    if added is None or packet(added) is not aten.add or arguments(added)["alpha"] != 1:
        return
    other = next((n for n in added.args[:2] if n is not new), None)
    tensor = draft.tensor(other)
    if tensor is not None and tuple(tensor.shape) == (weight.shape[1],) and tensor.dtype == weight.dtype:
        draft.replace(added, aten.linear.default, (source, transposed, other))
        draft.graph.erase_node(new)


def _constant(draft: Draft, node: Any) -> Tensor | None:
    """The weight, or the transposed weight."""
    if packet(node) is aten.t or (packet(node) is aten.numpy_T):
        found = draft.tensor(node.args[0])
        return found.t() if found is not None and found.dim() == 2 else None
    if packet(node) in (aten.transpose, aten.permute):
        found = draft.tensor(node.args[0])
        return node.target(found, *node.args[1:]) if found is not None else None
    return draft.tensor(node)


def _fold_into_product(draft: Draft, node: fx.Node) -> None:
    product = node.args[0] if node.args else None
    if not isinstance(product, fx.Node) or len(product.users) != 1:
        return
    operator = packet(product)
    if operator is not aten.linear and operator not in CONVOLUTIONS | TRANSPOSED:
        return
    given = arguments(product)
    weight, bias = draft.tensor(given["weight"]), draft.tensor(given["bias"])
    if weight is None or (bias is None and given["bias"] is not None):
        return
    affine = _batch_norm(draft, node, weight.dim()) if packet(node) is aten.batch_norm else _by_number(node)
    if affine is None:
        return
    # In float64, and rounded once.
    factor, shift = affine
    outputs = weight.shape[1] * given["groups"] if operator in TRANSPOSED else weight.shape[0]
    factor = factor.expand(outputs)
    new_bias = shift + (factor * bias.double() if bias is not None else 0.0)
    with draft.graph.inserting_before(product):
        new_weight = draft.add(_scaled(weight, factor, given.get("groups", 1), operator in TRANSPOSED))
        added = draft.add(new_bias.expand(outputs).to(weight.dtype).contiguous())
    args = list(product.args) + [None] * (3 - len(product.args))
    args[1:3] = [new_weight, added]
    product.args = tuple(args)
    node.replace_all_uses_with(product)
    draft.graph.erase_node(node)


def _batch_norm(draft: Draft, node: fx.Node, dims: int) -> tuple[Tensor, Tensor] | None:
    """Factor and shift of each channel, where dimension 1 is the product's output channel."""
    given = arguments(node)
    if given["training"] or len(shape(node) or ()) != dims:
        return None
    mean, variance = draft.tensor(given["running_mean"]), draft.tensor(given["running_var"])
    if mean is None or variance is None:
        return None
    factor = (variance.double() + given["eps"]).rsqrt()
    weight, bias = draft.tensor(given["weight"]), draft.tensor(given["bias"])
    if (weight is None) != (given["weight"] is None) or (bias is None) != (given["bias"] is None):
        return None
    if weight is not None:
        factor = factor * weight.double()
    shift = -mean.double() * factor
    return factor, shift if bias is None else shift + bias.double()


def _by_number(node: fx.Node) -> tuple[Tensor, Tensor] | None:
    operator = packet(node)
    if operator not in (aten.mul, aten.div, aten.add, aten.sub) or len(node.args) != 2 or node.kwargs:
        return None
    number = node.args[1]
    if not isinstance(number, (int, float)):
        return None
    value = torch.tensor([float(number)], dtype=torch.float64)
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    factor = value if operator is aten.mul else one / value if operator is aten.div else one
    return factor, value if operator is aten.add else -value if operator is aten.sub else zero


def _scaled(weight: Tensor, factor: Tensor, groups: int, transposed: bool) -> Tensor:
    rest = [1] * (weight.dim() - 2)
    if transposed:  # (inputs, outputs / groups, ...), in which the first inputs make the first outputs
        parts = weight.double().view(groups, -1, *weight.shape[1:])
        scaled = parts * factor.view(groups, 1, -1, *rest)
        return scaled.view(weight.shape).to(weight.dtype)
    return (weight.double() * factor.view(-1, 1, *rest)).to(weight.dtype)
