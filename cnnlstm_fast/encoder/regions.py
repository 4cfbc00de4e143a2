"""Cuts a captured graph at its LSTMs: the top graph with its LSTM calls, and the regions between them.

The level of a node is the number of cuts (LSTMs, and operators that no engine should run) on the longest path to it.
All nodes of a level are one region, so that no region waits for itself. What costs nothing in PyTorch (views, sizes,
zeros) stays outside where it lies at the border: an LSTM takes any strides, while an engine may copy to permute.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from . import lstm_call
from .capture import Captured
from .lstm_call import INSIDE, LSTMPlace
from .operator_call import packet
from .reason import CannotCaptureError
from .region import Region

aten = torch.ops.aten


def _packets(names: str) -> frozenset[Any]:
    """Those that this PyTorch has."""
    return frozenset(getattr(aten, name) for name in names.split() if hasattr(aten, name))


CHEAP = _packets(
    "view _unsafe_view reshape flatten unflatten permute transpose t movedim unsqueeze squeeze expand expand_as select "
    "slice narrow alias detach contiguous clone unbind split chunk split_with_sizes new_zeros zeros zeros_like "
    "new_ones ones full new_full arange to _to_copy lift_fresh_copy lift_fresh"
)
"""Operators that are left to PyTorch at the border of a region."""

HEAVY = _packets(
    "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d linear matmul mm bmm addmm "
    "batch_norm instance_norm layer_norm group_norm embedding embedding_bag max_pool1d max_pool2d max_pool3d "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d "
    "scaled_dot_product_attention einsum upsample_nearest2d upsample_bilinear2d"
)
"""A region without any of these is left to PyTorch: nothing in it is worth a call of an engine."""

LEFT = _packets("lstm gru rnn_tanh rnn_relu unfold as_strided")
"""Operators that other engines have not at all or not for open sizes: with one in it, they would run no part of a
region."""


@dataclass
class Cut:
    """The top graph, in which ``call_module`` nodes named ``region_K`` are calls of the regions, and their graphs.

    A region's call returns a tuple, whose items are taken by ``operator.getitem``.
    """

    top: fx.Graph
    regions: list[fx.Graph] = field(default_factory=list)
    lstms: list[LSTMPlace] = field(default_factory=list)
    """Those of the ``call_module`` nodes "lstm_K"."""


def is_lstm(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is torch.ops.cnnlstm_fast.lstm.default


def with_pytorch_lstms(captured: Captured) -> Captured | None:
    """The captured call with PyTorch's own operator in the place of each LSTM, to be inside of a region; None where
    there is no LSTM, or one that has lengths, resets or a projection, or returns all cells."""
    graph = _copied(captured.graph)
    lstms = [node for node in graph.nodes if is_lstm(node)]
    if not lstms or not all(lstm_call.to_pytorch(node) for node in lstms):
        return None
    for node in graph.nodes:
        node.meta[INSIDE] = True
    return replace(captured, graph=graph)


def _is_size(node: fx.Node) -> bool:
    return "size" in node.meta or (node.op == "call_function" and node.target is aten.sym_size.int)


def _is_cut(node: fx.Node) -> bool:
    """Whether an engine should not see the operator: LSTMs, those that engines have not, complex numbers (a short-time
    Fourier transform), operators of other packages."""
    if node.op != "call_function" or node.target is operator.getitem or _is_size(node) or INSIDE in node.meta:
        return False
    other = getattr(node.target, "namespace", "") != "aten" or packet(node) in LEFT
    return other or any(map(_is_complex, (node, *node.all_input_nodes)))


def _is_complex(node: fx.Node) -> bool:
    return "spec" in node.meta and node.meta["spec"].dtype.is_complex


def _constants(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on the module's tensors alone, such as a transposed or a normalised weight."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        needed = node.all_input_nodes
        if node.op == "call_function" and needed and all(n.op == "get_attr" or n in found for n in needed):
            found.add(node)
    return found


def cut(captured: Captured) -> Cut:
    """Cuts the captured graph.

    Raises:
        CannotCaptureError: an LSTM is called in a way that only the module itself can.
    """
    graph = captured.graph
    constants = _constants(graph)
    members = _members(graph, constants)
    result = Cut(fx.Graph())
    top = result.top
    new: dict[fx.Node, fx.Node] = {}
    pending = {level: nodes for level, nodes in members.items()}
    region_of = {node: level for level, nodes in members.items() for node in nodes}
    order = {node: k for k, node in enumerate(graph.nodes)}

    def place(node: fx.Node) -> fx.Node:
        """The node in the top graph; places what it needs first."""
        if node in new:
            return new[node]
        if node in region_of:
            _place_region(region_of[node])
            return new[node]
        for needed in sorted(node.all_input_nodes, key=order.__getitem__):
            place(needed)
        new[node] = top.node_copy(node, lambda n: new[n])
        _any_strides(new[node])
        return new[node]

    def _place_region(level: int) -> None:
        nodes = sorted(pending.pop(level), key=order.__getitem__)
        extracted, inputs, outputs = _extract(nodes, constants)
        given = tuple(place(n) for n in inputs)
        call = top.call_module(f"region_{len(result.regions)}", given)
        result.regions.append(extracted)
        for k, node in enumerate(outputs):
            new[node] = top.call_function(operator.getitem, (call, k))
            new[node].meta = dict(node.meta)

    for node in graph.nodes:
        if node.op == "placeholder":
            place(node)
    place(next(node for node in graph.nodes if node.op == "output"))
    for node in [node for node in top.nodes if is_lstm(node)]:
        try:
            result.lstms.append(lstm_call.replace(node, len(result.lstms), captured.weights))
        except ValueError as error:
            raise CannotCaptureError(f"it has {error}") from error
    for node in reversed(list(top.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            top.erase_node(node)
    top.lint()
    return result


def _any_strides(node: fx.Node) -> None:
    """An engine's output may have other strides than eager's, of which a view may not exist."""
    if packet(node) in (aten.view, aten._unsafe_view):
        node.target = aten.reshape.default


def _members(graph: fx.Graph, constants: set[fx.Node]) -> dict[int, set[fx.Node]]:
    """The nodes of each region, by level."""
    level: dict[fx.Node, int] = {}
    members: dict[int, set[fx.Node]] = {}
    for node in graph.nodes:
        level[node] = max((level[n] + _is_cut(n) for n in node.all_input_nodes), default=0)
        if node.op != "call_function" or node in constants or _is_size(node):
            continue
        if not _is_cut(node) and not _after_cut_item(node):
            members.setdefault(level[node], set()).add(node)
    for k in list(members):
        _trim(members[k])
        if not any(packet(node) in HEAVY or INSIDE in node.meta for node in members[k]):
            del members[k]
    return members


def _after_cut_item(node: fx.Node) -> bool:
    """Whether the node takes an item of what an operator outside of any region returns."""
    return node.target is operator.getitem and _is_cut(node.args[0])  # type: ignore[arg-type]


def _trim(nodes: set[fx.Node]) -> None:
    """Leaves out cheap operators at the region's border, an operator of several results together with their choice."""
    changed = True
    while changed:
        changed = False
        for node in list(nodes):
            if node not in nodes or packet(node) not in CHEAP or INSIDE in node.meta:
                continue
            unit = {node, *(user for user in node.users if user.target is operator.getitem)}
            users = {user for member in unit for user in member.users} - unit
            if not nodes & set(node.all_input_nodes) or not nodes & users:
                nodes -= unit
                changed = True


def _extract(nodes: list[fx.Node], constants: set[fx.Node]) -> tuple[fx.Graph, list[fx.Node], list[fx.Node]]:
    """The nodes as a graph of their own, the tensors that it takes, and those that others use."""
    inside = set(nodes)
    inputs: list[fx.Node] = []
    for node in nodes:
        for needed in node.all_input_nodes:
            outside = needed not in inside and needed not in constants and needed.op != "get_attr"
            if outside and needed not in inputs and not _is_size(needed):
                inputs.append(needed)
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for k, node in enumerate(inputs):
        new[node] = graph.placeholder(f"input_{k}")
        new[node].meta = dict(node.meta)

    def add_input(node: fx.Node) -> fx.Node:
        last = new[inputs[-1]] if inputs else None
        inputs.append(node)
        with (
            graph.inserting_after(last)
            if last is not None
            else graph.inserting_before(next(iter(graph.nodes)))
        ):
            new[node] = graph.placeholder(f"input_{len(inputs) - 1}")
        new[node].meta = dict(node.meta)
        return new[node]

    def place(node: fx.Node) -> fx.Node:
        if node in new:
            return new[node]
        if node.op == "get_attr":
            new[node] = graph.node_copy(node)
        elif node in constants:
            for needed in node.all_input_nodes:
                place(needed)
            new[node] = graph.node_copy(node, lambda n: new[n])
        elif _is_size(node):
            new[node] = _place_size(node)
        else:
            raise AssertionError(f"{node} lies outside of the region")
        return new[node]

    def _place_size(node: fx.Node) -> fx.Node:
        if node.target is not aten.sym_size.int:
            for needed in node.all_input_nodes:
                place(needed)
            return graph.node_copy(node, lambda n: new[n])
        source, dimension = node.args
        assert isinstance(source, fx.Node)
        if source not in new:
            size = node.meta.get("size")
            equal = next(
                ((n, n.meta["spec"].shape.index(size)) for n in inputs if size in n.meta["spec"].shape), None
            )
            source, dimension = equal if equal is not None else (source, dimension)
        copied = graph.call_function(
            aten.sym_size.int, (new[source] if source in new else add_input(source), dimension)
        )
        copied.meta = dict(node.meta)
        return copied

    for node in nodes:
        for needed in node.all_input_nodes:
            place(needed)
        new[node] = graph.node_copy(node, lambda n: new[n])
        _any_strides(new[node])
    outputs = [n for n in nodes if "several" not in n.meta and any(user not in inside for user in n.users)]
    graph.output(tuple(new[n] for n in outputs))
    graph.lint()
    return graph, inputs, outputs


def build_region(name: str, graph: fx.Graph, tensors: dict[str, torch.Tensor]) -> Region:
    """The region of a graph with its weights.

    Args:
        tensors: by the targets of the graph's ``get_attr`` nodes.
    """
    root = nn.Module()
    graph = _copied(graph)
    for node in graph.nodes:
        if node.op == "get_attr":
            root.register_buffer(node.target, tensors[node.target].detach())
    _fold_constants(graph, root)
    specs = [node.meta["spec"] for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in graph.nodes if node.op == "output")
    return Region(
        name,
        fx.GraphModule(root, graph),
        tuple(specs),
        tuple(node.meta["spec"] for node in output.args[0]),
        modules_of(graph.nodes),
    )


def _copied(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def _fold_constants(graph: fx.Graph, root: nn.Module) -> None:
    """Computes what depends on weights alone once, instead of in every call."""
    for node in graph.nodes:
        needed = node.all_input_nodes
        if node.op != "call_function" or not needed or any(n.op != "get_attr" for n in needed):
            continue
        if "several" in node.meta or node.target is operator.getitem:
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: root.get_buffer(str(n.target)))
        name = f"folded_{node.name}"
        root.register_buffer(name, node.target(*args, **kwargs))
        node.op, node.target, node.args, node.kwargs = "get_attr", name, (), {}
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def with_ranks(region: Region, sizes: Sequence[Sequence[int]]) -> Region:
    """The region with inputs of the ranks that they have: torch.export has been seen to record those of ``unbind``'s
    results wrong, in symbols."""
    inputs = tuple(
        spec
        if len(spec.shape) == len(size)
        else replace(spec, shape=tuple(f"x{k}_{d}" for d in range(len(size))))
        for k, (spec, size) in enumerate(zip(region.inputs, sizes, strict=True))
    )
    return replace(region, inputs=inputs)


def modules_of(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    """The outermost modules inside which the nodes were called, without those that hold all others."""
    stacks = [node.meta.get("stack", ()) for node in nodes if node.op == "call_function"]
    found = dict.fromkeys(next((name for name in stack if name), "") for stack in stacks)
    return tuple(name for name in found if name)
