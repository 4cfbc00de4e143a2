"""Graphs without operators that edit a tensor in place: the graph of a call in inference mode has none."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from .operator_call import packet
from .reason import CannotCaptureError

aten = torch.ops.aten


class EditedViewError(CannotCaptureError):
    """A part of a tensor is edited, as by ``out[:, t] = x``."""


def _writes(node: fx.Node) -> list[int]:
    """The positions of the arguments that the operator edits."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    return [k for k, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]


def _is_view(node: fx.Node) -> bool:
    """Whether the result may share memory with an argument."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.op == "call_function" and node.target is operator.getitem
    return any(a.alias_info is not None and not a.alias_info.is_write for a in schema.arguments)


def make_functional(graph: fx.Graph) -> None:
    """Replaces operators that edit a tensor of the graph by those that return a new one, such as relu_ by relu.

    Only where no other name of the same memory is used later: then every later use of the edited tensor is one of the
    result.

    Raises:
        EditedViewError: another name is used later.
        CannotCaptureError: an argument, a Parameter or a buffer is edited.
    """
    order = {node: k for k, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        written = _writes(node) if node.op == "call_function" else []
        if not written:
            continue
        edited = node.args[0]
        kin = getattr(aten, node.target._schema.name.removeprefix("aten::").removesuffix("_"), None)
        overload = getattr(kin, node.target._overloadname, None) if kin is not None else None
        if written != [0] or overload is None or not isinstance(edited, fx.Node):
            raise CannotCaptureError(f"{node.target} edits a tensor in place")
        if edited.op in ("placeholder", "get_attr"):
            kind = "an argument" if edited.op == "placeholder" else "a buffer or Parameter"
            raise CannotCaptureError(f"it edits {kind} in place ({node.target})")
        views = [u for u in edited.users if u is not node and _is_view(u)]
        if _is_view(edited) and _shares_later(edited, node, order):
            raise EditedViewError(f"{node.target} edits a view of a tensor that is used again")
        if any(order[u] > order[node] for view in views if order[view] < order[node] for u in view.users):
            raise EditedViewError(f"{node.target} edits a tensor of which a view is used again")
        node.target = overload
        for user in [user for user in edited.users if order[user] > order[node]]:
            user.replace_input_with(edited, node)


def _shares_later(view: fx.Node, edit: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether a tensor that the view may share memory with is used after the edit, other than through the view."""
    base = view
    while _is_view(base) and isinstance(base.args[0], fx.Node):
        base = base.args[0]
        if base.op in ("placeholder", "get_attr"):
            return True
        if any(
            order[u] > order[edit] or (_is_view(u) and u is not view) for u in base.users if u is not view
        ):
            return True
    return False


def without_edits(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program in operators that edit nothing, by PyTorch's own means, which take a second.

    Raises:
        CannotCaptureError: an argument or a buffer is edited.
    """
    found = program.run_decompositions({})
    edited = found.graph_signature.buffers_to_mutate or found.graph_signature.user_inputs_to_mutate
    if edited:
        raise CannotCaptureError("it edits an argument or a buffer in place")
    return found


def simplify(graph: fx.Graph) -> None:
    """Operators that an engine has in the place of what ``without_edits`` leaves: a tensor that is filled part by part
    is a stack of the parts, and tensors that were made to be edited, such as zeros in each step, are one."""
    made: dict[str, fx.Node] = {}
    output: Any = graph.output_node()
    before = [_memory(node) for node in output.args[0]]
    for node in graph.nodes:
        if packet(node) in (aten.zero, aten.fill) and packet(node.args[0]) in (
            aten.empty,
            aten.zeros,
            aten.full,
        ):
            _make_filled(node)
        called: Any = packet(node)
        if called is aten._native_batch_norm_legit_no_training:
            _make_batch_norm(node)
        elif called is aten._to_copy and node.kwargs.keys() == {"dtype"}:
            node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], node.kwargs["dtype"]), {}
        elif called is aten.slice and _alike(node, node.args[0]):
            node.replace_all_uses_with(node.args[0])
        elif called in (aten.copy, aten.slice_scatter) and _alike(node, node.args[1]):
            node.replace_all_uses_with(node.args[1])
        elif called is aten.select and _is_part(node):
            node.replace_all_uses_with(node.args[0].args[1])
        elif called in (aten.zeros, aten.ones, aten.full):
            first = made.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
            if first is not node:
                node.replace_all_uses_with(first)
    for node in reversed(graph.nodes):  # the last edit first
        if packet(node) is aten.select_scatter and node.users:
            _stack(graph, node)
    _separate(graph, output, before)


def _memory(node: Any) -> fx.Node:
    """The node of whose memory the tensor is, or may be."""
    while _is_view(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _separate(graph: fx.Graph, output: Any, before: list[fx.Node]) -> None:
    """Copies results that were copies and have become an argument or the same as another result: the caller may edit
    each of them."""
    results = list(output.args[0])
    memory = [_memory(node) for node in results]
    for k, (now, was) in enumerate(zip(memory, before, strict=True)):
        if now is not was and (now.op != "call_function" or memory.count(now) > 1):
            with graph.inserting_before(output):
                results[k] = graph.call_function(aten.clone.default, (output.args[0][k],))
            results[k].meta = dict(output.args[0][k].meta)
    output.args = (tuple(results),)


def _make_filled(node: fx.Node) -> None:
    """Zeros or a full tensor of what fills a new one."""
    new: Any = node.args[0]
    (size, *_), value = new.args, (*node.args, 0)[1]
    options = {k: v for k, v in new.kwargs.items() if k != "memory_format"} | {
        "dtype": node.meta["spec"].dtype
    }
    zeros = node.target is aten.zero.default
    node.target, node.args = (aten.zeros.default, (size,)) if zeros else (aten.full.default, (size, value))
    node.kwargs = options


def _make_batch_norm(node: fx.Node) -> None:
    """The operator of which this is the only one that PyTorch has taken apart; its first result is all that is used."""
    tensors, (momentum, epsilon) = node.args[:5], node.args[5:]
    for item in list(node.users):
        item.target, item.args = aten.batch_norm.default, (*tensors, False, momentum, epsilon, True)


def _alike(node: fx.Node, other: Any) -> bool:
    return node.meta["spec"] == other.meta["spec"]


def _is_part(node: fx.Node) -> bool:
    """Whether the part that it selects was written just before."""
    source: Any = node.args[0]
    return packet(source) is aten.select_scatter and source.args[2:] == node.args[1:]


def _stack(graph: fx.Graph, last: fx.Node) -> None:
    """Replaces the last one of ``select_scatter``s that have replaced all parts of a tensor."""
    node: Any = last
    dim: Any = node.args[2]
    size = last.meta["spec"].shape[dim]
    if not isinstance(size, int):
        return
    parts: dict[int, fx.Node] = {}
    while packet(node) is aten.select_scatter and node.args[2] == dim:
        base, part, _, index = node.args
        parts.setdefault(index % size, part)
        node = base
    if len(parts) < size:
        return
    with graph.inserting_before(last):
        stacked = graph.call_function(aten.stack.default, ([parts[k] for k in range(size)], dim))
    stacked.meta = dict(last.meta)
    last.replace_all_uses_with(stacked)
