"""What a node of a region's graph calls, and with which arguments."""

from __future__ import annotations

from typing import Any

from torch import fx


def packet(node: Any) -> Any:
    """The operator without its overload, None where the node calls none."""
    return getattr(node.target, "overloadpacket", None) if isinstance(node, fx.Node) else None


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of an operator's call by name, with the defaults of its schema."""
    found = {}
    for k, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        default = argument.default_value if argument.has_default_value() else None
        found[argument.name] = node.args[k] if k < len(node.args) else node.kwargs.get(argument.name, default)
    return found


def numbers(value: Any, count: int) -> list[int]:
    """A list of sizes with one for each dimension, where one may stand for all."""
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    return given * count if len(given) == 1 else given
