"""Conditions on the sizes of a call's tensors, as text: "x0[2] % 8 == 0", where x0 is the shape of the first tensor.

They come from ``torch.export`` and from a cache on disk, so that only arithmetic is evaluated and nothing is executed.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "int": int,
    "math.floor": math.floor,
    "math.ceil": math.ceil,
    "math.trunc": math.trunc,
    "torch.sym_float": float,
    "torch.sym_max": max,
    "torch.sym_min": min,
}

Shapes = Sequence[Sequence[int]]


def parse(text: str) -> ast.expr:
    """The condition as a tree.

    Raises:
        ValueError: it has something other than sizes, numbers and arithmetic.
    """
    try:
        tree = ast.parse(text, mode="eval").body
        _check(tree)
    except (SyntaxError, KeyError, TypeError) as error:
        raise ValueError(f"conditions: expected arithmetic over sizes, got {text!r}.") from error
    return tree


def holds(condition: ast.expr, shapes: Shapes) -> bool:
    """Whether the condition holds for these shapes; false where it cannot be computed (a division by zero)."""
    try:
        return bool(_value(condition, shapes))
    except (ArithmeticError, IndexError):
        return False


def _check(node: ast.AST) -> None:
    """Raises KeyError or TypeError for whatever ``_value`` does not know."""
    children: list[ast.AST] = []
    if isinstance(node, ast.BoolOp):
        children = list(node.values)
    elif isinstance(node, ast.Compare):
        for op in node.ops:
            _OPERATORS[type(op)]
        children = [node.left, *node.comparators]
    elif isinstance(node, ast.BinOp):
        _OPERATORS[type(node.op)]
        children = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp):
        _OPERATORS[type(node.op)]
        children = [node.operand]
    elif isinstance(node, ast.Call) and not node.keywords:
        _FUNCTIONS[ast.unparse(node.func)]
        children = list(node.args)
    elif isinstance(node, ast.Subscript):
        _place(node)
    elif not isinstance(node, ast.Constant) or not isinstance(node.value, (int, float)):
        raise TypeError(type(node).__name__)
    for child in children:
        _check(child)


def _place(node: ast.Subscript) -> tuple[int, int]:
    """Which tensor and which dimension."""
    if not isinstance(node.value, ast.Name) or not isinstance(node.slice, ast.Constant):
        raise TypeError("subscript")
    name, dimension = node.value.id, node.slice.value
    if name[0] != "x" or not name[1:].isdecimal() or not isinstance(dimension, int):
        raise TypeError(name)
    return int(name[1:]), dimension


def _value(node: ast.AST, shapes: Shapes) -> Any:
    if isinstance(node, ast.BoolOp):
        found = (_value(v, shapes) for v in node.values)
        return all(found) if isinstance(node.op, ast.And) else any(found)
    if isinstance(node, ast.Compare):
        values = [_value(v, shapes) for v in (node.left, *node.comparators)]
        return all(_OPERATORS[type(op)](a, b) for op, a, b in zip(node.ops, values, values[1:], strict=False))
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left, shapes), _value(node.right, shapes))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_value(node.operand, shapes))
    if isinstance(node, ast.Call):
        return _FUNCTIONS[ast.unparse(node.func)](*[_value(a, shapes) for a in node.args])
    if isinstance(node, ast.Subscript):
        tensor, dimension = _place(node)
        return shapes[tensor][dimension]
    assert isinstance(node, ast.Constant)
    return node.value
