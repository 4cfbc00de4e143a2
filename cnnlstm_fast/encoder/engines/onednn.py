"""PyTorch's own fused oneDNN operators, called directly: no compiler, any shape, PyTorch's threads.

``build`` rewrites the region's graph in passes, one file each: ``onednn_fold``, ``onednn_lift``, here the precision,
``onednn_fuse``, ``onednn_emit``. An operator that no pass knows runs as in eager.

The fused clamps (ReLU6, hardtanh, hardsigmoid) return a limit for NaN, where eager returns NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only

from ..operator_call import packet
from ..region import Region
from .base import Engine, Options, Run, first_reason
from .onednn_draft import PRODUCTS, Draft, aten, targets
from .onednn_emit import compile_function, work_in_place
from .onednn_fold import fold
from .onednn_fuse import fuse
from .onednn_lift import lift

FLOAT32 = targets("avg_pool3d grid_sampler cdist prod")
"""What autocast has computed in float32. Norms and softmax compute in float32 whatever they are given."""


def _supports(region: Region, options: Options) -> str | None:
    specs = (*region.inputs, *region.outputs)
    dtypes = {s.dtype for s in specs} | {t.dtype for t in region.weights().values()}
    strange = {d for d in dtypes if d.is_floating_point or d.is_complex} - {torch.float32, torch.bfloat16}
    bf16 = torch.bfloat16 in dtypes or options.precision == "bf16"
    return first_reason(
        (not torch.backends.mkldnn.is_available(), "this PyTorch has no oneDNN"),
        (
            strange,
            f"it has float32 and bfloat16 only, not {', '.join(str(d).removeprefix('torch.') for d in strange)}",
        ),
        (
            bf16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
            "oneDNN has no bfloat16 on this CPU",
        ),
        (options.precision not in (None, "bf16"), f"no precision {options.precision!r}"),
    )


def _build(region: Region, example: tuple[Tensor, ...], options: Options) -> Run:
    graph = fx.Graph()
    graph.output(graph.graph_copy(region.module.graph, {}))
    draft = Draft(graph, region.weights())
    with torch.no_grad():
        fold(draft)
        lift(draft)
        _set_dtypes(draft, example, options.precision)
        fuse(draft)
        work_in_place(draft)
    return compile_function(draft)


def _set_dtypes(draft: Draft, example: tuple[Tensor, ...], precision: str | None) -> None:
    """Gives each tensor ``meta["example"]``, a tensor of the example's shape and the dtype that it will have, but with
    one number. It runs the graph: fake tensors would import PyTorch's compiler, which takes two seconds.

    With "bf16", products take bfloat16, as under autocast; everything else takes what it is given.
    """
    graph, given = draft.graph, iter(example)
    casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
    values: dict[fx.Node, Any] = {}
    users = {node: set(node.users) for node in graph.nodes}

    def keep(node: fx.Node, value: Any) -> None:
        values[node] = value
        node.meta["example"] = tree_map_only(Tensor, lambda t: t.new_empty(()).expand(t.shape), value)

    def evaluate(node: fx.Node) -> None:
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        keep(node, node.target(*args, **kwargs))  # type: ignore[operator]

    def drop_unused(node: fx.Node, needed: list[fx.Node]) -> None:
        """What no node after this one takes."""
        for n in needed:
            users[n].discard(node)
            if not users[n]:
                for old in (n, *(new for (source, _), new in casts.items() if source is n)):
                    values.pop(old, None)

    def cast(n: fx.Node, dtype: torch.dtype, before: fx.Node) -> fx.Node:
        value = values[n]
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return n
        if (n, dtype) not in casts:
            value = value.to(dtype)
            with graph.inserting_before(before):
                if n.op == "get_attr":
                    new = draft.add(value)
                else:
                    new = graph.call_function(aten._to_copy.default, (n,), {"dtype": dtype})
            new.meta = dict(n.meta)
            keep(new, value)
            casts[n, dtype] = new
        return casts[n, dtype]

    def cast_all(node: fx.Node, dtype: torch.dtype) -> None:
        node.args, node.kwargs = map_arg((node.args, node.kwargs), lambda n: cast(n, dtype, node))

    def cast_results(output: fx.Node) -> None:
        output.args = map_arg(output.args, lambda n: cast(n, n.meta["spec"].dtype, output))

    for node in list(graph.nodes):
        needed = list(node.all_input_nodes)
        if node.op == "placeholder":
            keep(node, next(given))
        elif node.op == "get_attr":
            keep(node, draft.tensors[node.target])
        elif node.op == "output":
            cast_results(node)
        else:
            if precision == "bf16" and packet(node) in PRODUCTS:
                cast_all(node, torch.bfloat16)
            elif precision == "bf16" and packet(node) in FLOAT32:
                cast_all(node, torch.float32)
            elif packet(node) is aten.prelu:  # the one function of an element that takes no mixed dtypes
                cast_all(node, node.args[0].meta["example"].dtype)
            evaluate(node)
        drop_unused(node, needed)


ENGINE = Engine("onednn", "PyTorch's fused oneDNN operators", _build, _supports)
