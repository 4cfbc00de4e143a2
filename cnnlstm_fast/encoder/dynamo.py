"""``torch.compile(model, backend="cnnlstm_fast")``: Dynamo's graphs by the engines.

In Dynamo's graphs weights are inputs. Here a graph becomes a module that owns them, which is captured at its first call
and guarded as any other module.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, fx, nn

from .deferred import defer
from .engines.inductor import has_compiler
from .modules import install
from .options import check_options
from .prepare import BUDGET
from .usual import RUNNER

graphs: WeakValueDictionary[int, _Graph] = WeakValueDictionary()
"""Those of this process in the order in which they were made, for ``explain``."""
MOST_WEIGHTS = 64
"""So many sets of weights are kept for each graph: layers of one class share their graph."""


def backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
    mode: Any = None,
) -> Callable[..., Any]:
    """Dynamo's graph, as a function of its inputs. The name for ``torch.compile`` is "cnnlstm_fast".

    A graph of calls without gradient is captured at its first call, cut at its LSTMs, and runs by the engines that
    were chosen as ``optimize(model, example_inputs)`` does, for all sizes that the graph holds for. Edited or replaced
    weights are seen by the next call. A graph of calls that need gradients is compiled by TorchInductor, where there
    is a C++ compiler, else it runs as it is.

    The LSTMs of a model that ``cnnlstm_fast.optimize`` was applied to are part of the graph, and run by this package.
    At every other nn.LSTM Dynamo gives up: what is before the statement that calls it is a graph, and the rest of that
    function runs as in PyTorch, the nn.LSTM too. So write
    ``torch.compile(cnnlstm_fast.optimize(model), backend="cnnlstm_fast")``.

    The weights of a graph stay in memory with it, until ``torch._dynamo.reset()``.

    Args:
        options: of ``torch.compile``: "encoder", "precision" and "budget", as in ``optimize``; the budget is that of
            each graph.

    Raises:
        ValueError: an option is unknown, or its value, or ``mode`` was given.
        RuntimeError: the named engine is not installed.
    """
    chosen = _options(options or {}, mode)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in example_inputs):
        return _differentiable(gm, example_inputs)
    return _Graph(gm, example_inputs, chosen)


class _Options(NamedTuple):
    encoder: str = "auto"
    precision: str | None = None
    budget: float = BUDGET


def _options(given: dict[str, Any], mode: Any) -> _Options:
    if mode is not None:
        raise ValueError(f"mode: expected None, got {mode!r}; this backend has options={{...}} instead.")
    unknown = next((name for name in given if name not in _Options._fields), None)
    if unknown is not None:
        raise ValueError(f"options: expected some of {', '.join(_Options._fields)}, got {unknown!r}.")
    options = _Options(**given)
    check_options(options.encoder, options.precision)
    return options


def _differentiable(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    if not has_compiler():
        return gm.forward
    from torch._dynamo.backends.registry import lookup_backend

    return lookup_backend("inductor")(gm, list(example_inputs))


class _Source(NamedTuple):
    """What a graph's input is: the k-th weight, the k-th of the other inputs, or a size of that one."""

    kind: Literal["weight", "other", "size"]
    k: int
    dimension: int = 0


def _sources(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Iterator[_Source]:
    """Of each input. A size that is no tensor's stays an input: the module is captured for its first value."""
    nodes = [node for node in gm.graph.nodes if node.op == "placeholder"]
    static = [
        isinstance(value, nn.Parameter) or "_dynamo_static_input_type" in node.meta.get("tensor_dict", ())
        for node, value in zip(nodes, example_inputs, strict=True)
    ]
    values = [node.meta.get("example_value") for node in nodes]
    own = [_size_of(value, values, static) for value in values]
    others = [j for j in range(len(nodes)) if not static[j] and own[j] is None]
    weights = [j for j in range(len(nodes)) if static[j]]
    for j, place in enumerate(own):
        if place is not None:
            yield _Source("size", others.index(place[0]), place[1])
        elif static[j]:
            yield _Source("weight", weights.index(j))
        else:
            yield _Source("other", others.index(j))


def _size_of(value: Any, values: list[Any], static: list[bool]) -> tuple[int, int] | None:
    """The input and its dimension whose size the value always is."""
    if not isinstance(value, torch.SymInt):
        return None
    sizes = (
        (j, d)
        for j, tensor in enumerate(values)
        if isinstance(tensor, Tensor) and not static[j]
        for d, size in enumerate(tensor.shape)
        if isinstance(size, torch.SymInt) and size.node.expr == value.node.expr
    )
    return next(sizes, None)


def _take_numbers(gm: fx.GraphModule) -> list[fx.Node]:
    """Makes those inputs numbers that are tensors of which the number alone is used: Dynamo passes floats so."""
    found = []
    for node in gm.graph.nodes:
        if node.op == "placeholder" and node.users and all(user.target == "item" for user in node.users):
            for user in list(node.users):
                user.replace_all_uses_with(node)
                gm.graph.erase_node(user)
            found.append(node)
    return found


def _sizes_returned(gm: fx.GraphModule) -> Iterator[int]:
    """Which results of the graph are sizes."""
    output = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    for k, node in enumerate(output.args[0]):
        value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
        if isinstance(value, torch.SymInt) and value.node.expr.is_nonnegative:
            yield k


class _Owner(nn.Module):
    """A graph with one set of weights: a function of its other inputs. It returns tensors: a size as that of one."""

    is_dynamo_graph = True

    def __init__(
        self, gm: fx.GraphModule, sources: list[_Source], sizes: list[int], weights: Sequence[Tensor]
    ) -> None:
        super().__init__()
        self.dynamo = gm
        self.eval()  # what training changes is written in the graph
        self.sources, self.sizes = sources, sizes
        self.code = [part.code for part in gm.modules() if isinstance(part, fx.GraphModule)]
        """For the fingerprint."""
        for k, tensor in enumerate(weights):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(f"weight_{k}", tensor)
            else:
                self.register_buffer(f"weight_{k}", tensor)

    def forward(self, *others: Any) -> Any:
        values: list[Any] = []
        for kind, k, dimension in self.sources:
            if kind == "weight":
                values.append(getattr(self, f"weight_{k}"))
            else:
                values.append(others[k] if kind == "other" else others[k].size(dimension))
        results = list(self.dynamo.forward(*values))
        for k in self.sizes:
            results[k] = torch.zeros(results[k], 0)
        return tuple(results)


class _Graph:
    """A graph, with a module for each set of weights that it was called with. All run by the engines that were chosen
    for the first set."""

    def __init__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], options: _Options) -> None:
        numbers = _take_numbers(gm)
        # anew, without what Dynamo notes in the other one: it differs from process to process
        self._gm, self._options = fx.GraphModule(gm, gm.graph), options
        self._sources = list(_sources(gm, example_inputs))
        self._sizes = list(_sizes_returned(gm))
        self._weights = [j for j, source in enumerate(self._sources) if source.kind == "weight"]
        self._others = [j for j, source in enumerate(self._sources) if source.kind == "other"]
        nodes = [node for node in gm.graph.nodes if node.op == "placeholder"]
        self._numbers = [k for k, j in enumerate(self._others) if nodes[j] in numbers]
        self._owners: dict[tuple[int, ...], _Owner] = {}
        """By the identities of the weights."""
        self._lock = threading.Lock()
        graphs[id(self)] = self

    def __call__(self, *args: Any) -> Any:
        weights = [args[j] for j in self._weights]
        key = tuple(map(id, weights))
        owner = self._owners.get(key) or self._add(key, weights)
        others = [args[j] for j in self._others]
        for k in self._numbers:
            others[k] = others[k].item()
        results = owner.forward(*others)
        if self._sizes:
            results = [r.size(0) if k in self._sizes else r for k, r in enumerate(results)]
        return results

    def _add(self, key: tuple[int, ...], weights: list[Tensor]) -> _Owner:
        owner = _Owner(self._gm, self._sources, self._sizes, weights)
        with self._lock:
            first = next(iter(self._owners.values()), None)
            if first is None:
                defer(owner, *self._options)
            elif (runner := first.__dict__.get(RUNNER)) is not None:
                install(owner, copy.copy(runner))
            if len(self._owners) == MOST_WEIGHTS:
                del self._owners[next(iter(self._owners))]
            self._owners[key] = owner
        return owner

    def owners(self, tensors: set[Tensor]) -> list[_Owner]:
        """The modules that own one of the tensors."""
        return [
            owner
            for owner in list(self._owners.values())
            if not tensors.isdisjoint((*owner.parameters(), *owner.buffers()))
        ]


def compiled(model: nn.Module) -> list[nn.Module]:
    """Of every graph with weights of the model the module that owns them."""
    tensors = {*model.parameters(), *model.buffers()}
    return [owner for graph in list(graphs.values()) for owner in graph.owners(tensors)]
