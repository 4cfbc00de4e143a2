"""Plan: how a module's call is split into regions and LSTMs; independent of weights and engines, kept as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from . import serialize
from .capture import TENSOR, Captured
from .conditions import Shapes, holds, parse
from .lstm_call import LSTMPlace
from .regions import Cut, cut


@dataclass(frozen=True)
class Plan:
    """A captured call, cut into regions; the fields that ``Captured`` has, too, are the same here."""

    top: fx.Graph
    regions: tuple[fx.Graph, ...]
    lstms: tuple[LSTMPlace, ...]
    weights: dict[str, str]
    constants: dict[str, Tensor]
    arguments: pytree.TreeSpec
    leaves: tuple[Any, ...]
    result: pytree.TreeSpec
    results: tuple[Any, ...]
    conditions: tuple[str, ...]
    assumptions: tuple[str, ...]
    tensors: tuple[tuple[torch.dtype, str, int], ...] = field(default=())
    """Dtype, type of device and rank of each tensor among the arguments."""

    @staticmethod
    def of(captured: Captured) -> Plan:
        """The plan of a captured call."""
        made: Cut = cut(captured)
        given = [node.meta for node in captured.graph.nodes if node.op == "placeholder"]
        return Plan(
            made.top,
            tuple(made.regions),
            tuple(made.lstms),
            captured.weights,
            captured.constants,
            captured.arguments,
            captured.leaves,
            captured.result,
            captured.results,
            captured.conditions,
            captured.assumptions,
            tuple((m["spec"].dtype, m["device"], len(m["spec"].shape)) for m in given),
        )

    @cached_property
    def flat(self) -> bool:
        """Whether the call has tensors alone, none of them by keyword or inside of another argument."""
        _, flat = pytree.tree_flatten((tuple(self.leaves), {}))
        return flat == self.arguments and len(self.leaves) == len(self.tensors)

    @cached_property
    def single(self) -> bool:
        """Whether the result is one tensor."""
        return self.results == (TENSOR,) and self.result == pytree.tree_structure(0)

    def patterns(self, marker: object) -> tuple[Any, Any]:
        """(args, kwargs) of the call, and its result, with the marker for each tensor."""

        def pattern(leaves: tuple[Any, ...], spec: pytree.TreeSpec) -> Any:
            marked = [marker if isinstance(v, str) and v == TENSOR else v for v in leaves]
            return pytree.tree_unflatten(marked, spec)

        return pattern(self.leaves, self.arguments), pattern(self.results, self.result)

    @property
    def alone(self) -> bool:
        """Whether one region is all that there is to compute."""
        return len(self.regions) == 1 and not self.lstms

    @property
    def is_one_region(self) -> bool:
        """Whether a single region takes all tensors of the call, in their order."""
        inputs = tuple(node for node in self.top.nodes if node.op == "placeholder")
        return self.alone and all(n.args == inputs for n in self.top.nodes if n.op == "call_module")

    @cached_property
    def lstm_weights(self) -> frozenset[str]:
        """The ``get_attr`` targets of the LSTMs' weights."""
        calls = [n for n in self.top.nodes if n.op == "call_module" and n.target.startswith("lstm_")]
        return frozenset(n.target for call in calls for n in call.all_input_nodes if n.op == "get_attr")

    @cached_property
    def _parsed(self) -> tuple[list[Any], list[Any]]:
        return [parse(text) for text in self.conditions], [parse(text) for text in self.assumptions]

    def refused_sizes(self, shapes: Shapes) -> str | None:
        """None, or the condition on the sizes that these shapes do not meet."""
        failed = next((k for k, tree in enumerate(self._parsed[0]) if not holds(tree, shapes)), None)
        return None if failed is None else self.conditions[failed]

    def kind(self, shapes: Shapes) -> tuple[Any, ...]:
        """What the graph's validity may depend on: which sizes are 0 or 1, and which assumptions hold."""
        small = tuple(tuple(min(size, 2) for size in shape) for shape in shapes)
        return (small, *(holds(tree, shapes) for tree in self._parsed[1]))

    def tensors_of(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's tensors, and constants, by the targets of ``get_attr`` nodes.

        Raises:
            AttributeError: the module has none of that name.
        """
        found: dict[str, Tensor] = dict(self.constants)
        for target, path in self.weights.items():
            owner, _, name = path.rpartition(".")
            found[target] = getattr(module.get_submodule(owner), name)
        return found

    def to_json(self) -> dict[str, Any]:
        """All of the plan.

        Raises:
            TypeError, NotImplementedError: it holds something that JSON does not.
        """
        return {
            "top": serialize.to_json(self.top),
            "regions": [serialize.to_json(graph) for graph in self.regions],
            "lstms": [list(place) for place in self.lstms],
            "weights": self.weights,
            "constants": {
                name: [str(t.dtype).removeprefix("torch."), t.tolist()] for name, t in self.constants.items()
            },
            "arguments": serialize.spec_to_json(self.arguments),
            "leaves": list(self.leaves),
            "result": serialize.spec_to_json(self.result),
            "results": list(self.results),
            "conditions": list(self.conditions),
            "assumptions": list(self.assumptions),
            "tensors": [
                [str(dtype).removeprefix("torch."), device, rank] for dtype, device, rank in self.tensors
            ],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """The plan of ``to_json``.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: the data is not that of a plan.
        """
        plan = Plan(
            serialize.from_json(data["top"]),
            tuple(serialize.from_json(nodes) for nodes in data["regions"]),
            tuple(LSTMPlace(*place) for place in data["lstms"]),
            dict(data["weights"]),
            {
                name: torch.tensor(values, dtype=getattr(torch, dtype))
                for name, (dtype, values) in data["constants"].items()
            },
            serialize.spec_from_json(data["arguments"]),
            tuple(data["leaves"]),
            serialize.spec_from_json(data["result"]),
            tuple(data["results"]),
            tuple(data["conditions"]),
            tuple(data["assumptions"]),
            tuple((getattr(torch, dtype), device, rank) for dtype, device, rank in data["tensors"]),
        )
        assert plan._parsed  # arithmetic, or an error
        return plan
