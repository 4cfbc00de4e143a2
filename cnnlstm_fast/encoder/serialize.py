"""Graphs of operators as JSON, so that a cache on disk holds no code.

A graph is a list of nodes [op, target, args, kwargs, meta]; an argument that is not a number, a string, a bool or None
is a dict with one key that says what it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from .region import SCALAR_FUNCTIONS, TensorSpec

_KINDS = ("dtype", "device", "layout", "memory_format")


def to_json(graph: fx.Graph) -> list[Any]:
    """The graph's nodes.

    Raises:
        TypeError: a node has an argument of another kind.
    """
    index = {node: k for k, node in enumerate(graph.nodes)}
    return [
        [node.op, _target(node), _encode(node.args, index), _encode(node.kwargs, index), _meta(node)]
        for node in graph.nodes
    ]


def from_json(nodes: list[Any]) -> fx.Graph:
    """The graph of ``to_json``.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the list is not one that ``to_json`` returns.
    """
    graph = fx.Graph()
    made: list[fx.Node] = []
    for op, target, args, kwargs, meta in nodes:
        if op not in ("placeholder", "get_attr", "call_function", "call_module", "output"):
            raise ValueError(f"op: {op!r}")
        if not target.isidentifier() and op != "call_function":
            raise ValueError(f"name: {target!r}")  # it becomes part of a function's text
        where = _operator(target) if op == "call_function" else target
        values = tuple(_decode(args, made))
        if op == "output":
            values = (tuple(values[0]),)
        node = graph.create_node(op, where, values, _decode(kwargs, made))
        node.meta = dict(meta)
        if "spec" in meta:
            dtype, shape = meta["spec"]
            node.meta["spec"] = TensorSpec(getattr(torch, dtype), tuple(shape))
        made.append(node)
    graph.lint()
    return graph


def spec_to_json(spec: pytree.TreeSpec) -> str:
    """The structure of arguments or results.

    Raises:
        NotImplementedError: it has a node of a type that is not registered for it.
    """
    return pytree.treespec_dumps(spec)


def spec_from_json(text: str) -> pytree.TreeSpec:
    return pytree.treespec_loads(text)


def _target(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return f"{node.target.namespace}.{node.target._opname}.{node.target._overloadname}"
    return next(name for name, function in SCALAR_FUNCTIONS.items() if function is node.target)


def _operator(name: str) -> Any:
    if name in SCALAR_FUNCTIONS:
        return SCALAR_FUNCTIONS[name]
    found: Any = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"operator: {name!r}")
    return found


def _meta(node: fx.Node) -> dict[str, Any]:
    meta = {key: value for key, value in node.meta.items() if key in ("stack", "size", "device", "several")}
    if "spec" in node.meta:
        spec = node.meta["spec"]
        meta["spec"] = [str(spec.dtype).removeprefix("torch."), list(spec.shape)]
    return meta


def _encode(value: Any, index: dict[fx.Node, int]) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, fx.Node):
        return {"node": index[value]}
    if isinstance(value, (list, tuple)):
        return [_encode(v, index) for v in value]
    if isinstance(value, dict):
        return {"dict": {key: _encode(v, index) for key, v in value.items()}}
    for kind in _KINDS:
        if isinstance(value, getattr(torch, kind)):
            return {kind: str(value).removeprefix("torch.")}
    raise TypeError(f"an argument of type {type(value).__name__}")


def _decode(value: Any, made: list[fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, made) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "dict":
        return {key: _decode(v, made) for key, v in inner.items()}
    if kind == "node":
        return made[inner]
    if kind == "float":
        return float.fromhex(inner)
    if kind == "device":
        return torch.device(inner)
    if kind not in _KINDS or not isinstance(found := getattr(torch, inner), getattr(torch, kind)):
        raise ValueError(f"argument: {value!r}")
    return found
