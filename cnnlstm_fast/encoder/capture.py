"""Capture: a module's forward as one graph of ATen operators, by ``torch.export``, or the reason why not."""

from __future__ import annotations

import copy
import io
import logging
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from . import vary
from .agreement import first_line
from .any_size import AnySize
from .conditions import holds, parse
from .functional import EditedViewError, make_functional, simplify, without_edits
from .operator_call import arguments, packet
from .reason import CannotCaptureError
from .region import SCALAR_FUNCTIONS, TensorSpec

aten = torch.ops.aten


_NORMALISATIONS = (aten.batch_norm.default, aten.instance_norm.default)
_DROPOUTS = (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout)


@dataclass(frozen=True)
class Captured:
    """The graph of a call in inference mode.

    ``graph`` has one placeholder for each tensor among the call's flattened arguments, ``get_attr`` nodes for the
    tensors of the module (their targets: see ``weights``) and calls of operators that edit nothing. Its output is a
    tuple of the tensors of the flattened result. A node that is a tensor has its ``TensorSpec`` in ``meta["spec"]``.
    """

    graph: fx.Graph
    weights: dict[str, str]
    """The module's Parameters and buffers by their ``get_attr`` targets."""
    constants: dict[str, Tensor]
    """Tensors that forward creates from Python numbers, by their ``get_attr`` targets."""
    arguments: pytree.TreeSpec
    """The structure of (args, kwargs)."""
    leaves: tuple[Any, ...]
    """The flattened arguments: ``TENSOR`` for each tensor, any other value as it was."""
    result: pytree.TreeSpec
    """The structure of the result."""
    results: tuple[Any, ...]
    """The flattened result: ``TENSOR`` for each tensor, any other value as it was."""
    conditions: tuple[str, ...]
    """What the graph needs: Python expressions over the sizes, such as "x0[2] % 8 == 0", in which x0 is the shape of
    the first tensor."""
    assumptions: tuple[str, ...]
    """Inequalities that held in capture. Most stem from PyTorch's questions whether a tensor is contiguous, which do
    not change the graph; where one does not hold, the graph needs a test."""


TENSOR = "<tensor>"


class _Flat(nn.Module):
    """The module as a function of its flattened arguments."""

    def __init__(
        self,
        module: nn.Module,
        leaves: tuple[Any, ...],
        arguments: pytree.TreeSpec,
        record: Callable[[tuple[Any, ...], pytree.TreeSpec], None],
    ) -> None:
        super().__init__()
        self.m = module
        self._leaves, self._arguments = leaves, arguments
        self._record = record

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        args, kwargs = pytree.tree_unflatten(
            [next(given) if leaf == TENSOR else leaf for leaf in self._leaves], self._arguments
        )
        with AnySize():
            # not by a call of the module, whose own hooks run outside of the graph
            found, spec = pytree.tree_flatten(self.m.forward(*args, **kwargs))
        kept = tuple(TENSOR if isinstance(v, Tensor) else v for v in found)
        self._record(kept, spec)
        return tuple(v for v in found if isinstance(v, Tensor))


def flatten(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], tuple[Tensor, ...], pytree.TreeSpec]:
    """The flattened arguments with ``TENSOR`` in the place of each tensor, the tensors, and the structure."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = tuple(v for v in leaves if isinstance(v, Tensor))
    return tuple(TENSOR if isinstance(v, Tensor) else v for v in leaves), tensors, spec


def capture(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], deadline: float = math.inf
) -> Captured:
    """Captures the call ``module(*args, **kwargs)`` in inference mode, for all sizes that may vary (see ``vary``).

    Raises:
        CannotCaptureError: why the module cannot be captured.
    """
    leaves, tensors, arguments = flatten(args, kwargs)
    _check_arguments(leaves, tensors)
    # of a view torch.export records conditions on the sizes of the tensor that it is a part of
    tensors = tuple(t.clone(memory_format=torch.contiguous_format) for t in tensors)
    if (hook := has_hooks(module)) is not None:
        raise CannotCaptureError(hook)
    # by a function, since export restores the attributes of a module
    found: list[tuple[tuple[Any, ...], pytree.TreeSpec]] = []
    flat = _Flat(_twin(module), leaves, arguments, lambda kept, spec: found.append((kept, spec)))
    with _quiet():
        groups = vary.find(flat.forward, tensors, deadline)
    reasons: list[str] = []
    # the first is quicker; the second, by Dynamo, keeps `int(size)` open and has Dynamo forget all of its graphs
    for strict in (False,) if getattr(module, "is_dynamo_graph", False) else (False, True):
        try:
            program = _export(flat, vary.for_capture(tensors, groups), vary.varying(groups), strict)
            captured = _captured(program, leaves, arguments, *found[-1])
            _check_sizes(captured, groups)
            return captured
        except CannotCaptureError as error:
            reasons.append(str(error))
    raise CannotCaptureError("; ".join(reasons))


def _twin(module: nn.Module) -> nn.Module:
    """A copy with the same tensors: torch.export puts others in their place while it traces, which another thread that
    calls the module would meet. The module itself, if it cannot be copied."""
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    try:
        return copy.deepcopy(module, shared)
    except Exception:
        return module


def _captured(
    program: torch.export.ExportedProgram,
    leaves: tuple[Any, ...],
    arguments: pytree.TreeSpec,
    results: tuple[Any, ...],
    result: pytree.TreeSpec,
) -> Captured:
    strange = next((v for v in results if not isinstance(v, (str, int, float, bool, type(None)))), None)
    if strange is not None:
        raise CannotCaptureError(f"it returns a {type(strange).__name__}, which no graph holds")
    graph, weights, constants = _copy_graph(program)
    try:
        make_functional(graph)
    except EditedViewError:
        with _quiet():
            program_without = without_edits(program)
        graph, weights, constants = _copy_graph(program_without)
        simplify(graph)
    _drop_dropout(graph)
    _drop_unused(graph)
    _check_nodes(graph)
    shapes = [tuple(node.meta["spec"].shape) for node in graph.nodes if node.op == "placeholder"]
    needed = dict.fromkeys((*_fixed_sizes(shapes), *_equal_sizes(shapes), *_conditions(program)))
    for text in needed:
        try:
            parse(text)
        except ValueError as error:
            raise CannotCaptureError(f"torch.export assumes {text[:120]}") from error
    assumed = tuple(text for text in needed if "!=" in text or _NOT_ONE.fullmatch(text))
    conditions = tuple(text for text in needed if text not in assumed)
    return Captured(graph, weights, constants, arguments, leaves, result, results, conditions, assumed)


def _check_sizes(captured: Captured, groups: list[vary.Group]) -> None:
    """The graph must hold for sizes at which the module itself has run: for each dimension, in one of the ways in which
    it has varied."""
    trees = [parse(text) for text in captured.conditions]
    failed: dict[vary.Dims, str] = {}
    for group in groups:
        shapes = [t.shape for t in group.tensors]
        refused = next((k for k, tree in enumerate(trees) if not holds(tree, shapes)), None)
        if refused is not None:
            failed[group.dims] = captured.conditions[refused]
    good = {pair for group in groups if group.dims not in failed for pair in group.dims}
    for dims, text in failed.items():
        if not set(dims) <= good:
            where = ", ".join(f"x{k}[{d}]" for k, d in dims)
            raise CannotCaptureError(f"torch.export takes the size {where} for fixed ({text[:80]})")


def has_hooks(module: nn.Module) -> str | None:
    """None, or which module inside has which hook: the user's code, which a graph would leave out or repeat. Weight
    normalisation is one that computes tensors only. The module's own hooks run around its forward."""
    for name, part in module.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks"):
            for hook in getattr(part, kind).values():
                if part is not module and not isinstance(hook, (WeightNorm, SpectralNorm)):
                    return f"{name} has a hook, {getattr(hook, '__name__', type(hook).__name__)}"
    return None


def _check_arguments(leaves: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> None:
    if not tensors:
        raise CannotCaptureError("it is called without a tensor")
    for leaf in leaves:
        if not isinstance(leaf, (str, int, float, bool, type(None))):
            raise CannotCaptureError(f"it takes a {type(leaf).__name__}")
    for tensor in tensors:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            raise CannotCaptureError(f"it takes a {type(tensor).__name__} of layout {tensor.layout}")


def _export(
    flat: _Flat, tensors: tuple[Tensor, ...], varying: frozenset[tuple[int, int]], strict: bool
) -> torch.export.ExportedProgram:
    from torch.fx.experimental import _config as symbolic

    auto = torch.export.Dim.AUTO
    dims = (tuple({d: auto for j, d in varying if j == k} for k in range(len(tensors))),)
    try:
        # `backed_size_oblivious`: no branch is taken because a size happens to be 1, or not
        with symbolic.patch(backed_size_oblivious=True), torch.no_grad(), _quiet():  # type: ignore[attr-defined]
            return torch.export.export(flat, tensors, dynamic_shapes=dims, strict=strict)
    except Exception as error:  # whatever the user's code or export raises is the reason
        raise CannotCaptureError(f"torch.export: {type(error).__name__}: {first_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch prints, warns and logs of sizes that do not fit and of graphs that it cannot capture."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _copy_graph(
    program: torch.export.ExportedProgram,
) -> tuple[fx.Graph, dict[str, str], dict[str, Tensor]]:
    """The program's graph with ``get_attr`` nodes for what export lifted to placeholders."""
    signature = program.graph_signature
    lifted = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted_constants = signature.inputs_to_lifted_tensor_constants
    weights: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        new: fx.Node
        if node.op == "placeholder" and node.name in lifted:
            name = f"weight_{len(weights)}"
            weights[name] = lifted[node.name].removeprefix("m.")
            new = graph.get_attr(name)
        elif node.op == "placeholder" and node.name in lifted_constants:
            name = f"constant_{len(constants)}"
            constants[name] = program.constants[lifted_constants[node.name]].detach().clone()
            new = graph.get_attr(name)
        elif node.op == "output":
            new = graph.output(tuple(_as_eager(graph, n, copied[n]) for n in node.args[0]))
        elif node.op in ("placeholder", "call_function"):
            new = graph.node_copy(node, lambda n: copied[n])
        else:
            raise CannotCaptureError(f"its graph has a {node.op} node, {node.target}")
        copied[node] = new
        value = node.meta.get("val")
        new.meta = {"stack": _modules_of(node)}
        if isinstance(value, Tensor):
            new.meta["spec"] = TensorSpec(value.dtype, tuple(_size(s) for s in value.shape))
            new.meta["device"] = value.device.type
        elif isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            new.meta["size"] = _size(value)
        elif isinstance(value, (list, tuple)):
            new.meta["several"] = True
    return graph, weights, constants


def _as_eager(graph: fx.Graph, result: fx.Node, copied: fx.Node) -> fx.Node:
    """A result that is contiguous in eager must be so for the caller's ``view``, whatever strides an engine prefers."""
    if not result.meta["val"].is_contiguous():
        return copied
    made = graph.call_function(aten.contiguous.default, (copied,))
    made.meta = dict(copied.meta)
    return made


def _size(size: Any) -> int | str:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_number else str(expression)


def _modules_of(node: fx.Node) -> tuple[str, ...]:
    """The names of the modules inside which the operator was called, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path.removeprefix("L['self'].") for path, _ in stack.values()]
    return tuple(path.removeprefix("m.") for path in paths if path.startswith("m."))


def _drop_unused(graph: fx.Graph) -> None:
    """Erases what nothing uses, also checks of sizes, whose conditions are known."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("placeholder", "output") or node.users:
            continue
        graph.erase_node(node)


def _drop_dropout(graph: fx.Graph) -> None:
    """Outside of training dropout is the identity."""
    for node in graph.nodes:
        if packet(node) in _DROPOUTS and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])


def _check_nodes(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            raise CannotCaptureError(f"it draws random numbers ({node.target})")
        depends = torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags
        if depends and not _is_one_hot_of_choice(node):
            raise CannotCaptureError(f"sizes in it depend on data ({node.target})")
        if node.target in _NORMALISATIONS and node.args[3] is not None and node.args[5]:
            raise CannotCaptureError(f"it edits running statistics ({node.target})")
        if (
            not isinstance(node.target, torch._ops.OpOverload)
            and node.target not in SCALAR_FUNCTIONS.values()
        ):
            raise CannotCaptureError(f"its graph calls {node.target}")


def _is_one_hot_of_choice(node: fx.Node) -> bool:
    """Whether it is a ``one_hot`` for a given number of classes, of indices that the model chooses, as a decoder does.
    Of others PyTorch checks that there are so many classes, which an engine would not."""
    if packet(node) is not aten.one_hot or arguments(node)["num_classes"] < 0:
        return False
    source: Any = node.args[0]
    while source.target is operator.getitem or packet(source) in _SAME_INDICES:
        source = source.args[0]
    return source.target in _CHOICES


_SAME_INDICES = {aten.view, aten.reshape, aten.squeeze, aten.unsqueeze, aten.flatten, aten.to}
_CHOICES = {
    *(aten.argmax.default, aten.max.dim),  # max.other is of two tensors, which the caller may give
    *(aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default),
}


# ---------------------------------------------------------------- conditions on sizes


def _fixed_sizes(shapes: list[tuple[int | str, ...]]) -> Iterator[str]:
    for k, shape in enumerate(shapes):
        for d, size in enumerate(shape):
            if isinstance(size, int):
                yield f"x{k}[{d}] == {size}"


def _equal_sizes(shapes: list[tuple[int | str, ...]]) -> Iterator[str]:
    """Dimensions that have the same symbol are equal."""
    seen: dict[str, str] = {}
    for k, shape in enumerate(shapes):
        for d, size in enumerate(shape):
            if isinstance(size, str):
                here = f"x{k}[{d}]"
                if size in seen:
                    yield f"{here} == {seen[size]}"
                seen.setdefault(size, here)


def _conditions(program: torch.export.ExportedProgram) -> list[str]:
    """What export assumed of the sizes, over x0, x1, ..."""
    found = [_TENSOR_SIZE.sub(r"x\1[\2]", text) for text in program._guards_code]
    where = {
        str(size): f"x{k}[{d}]"
        for k, name in enumerate(program.graph_signature.user_inputs)
        for node in program.graph.nodes
        if node.name == name
        for d, size in enumerate(node.meta["val"].shape)
    }
    for symbol, bounds in program.range_constraints.items():
        if str(symbol) not in where:
            continue
        if bounds.lower > 1:
            found.append(f"{where[str(symbol)]} >= {int(bounds.lower)}")
        if bounds.upper.is_finite and bounds.upper < 2**31:
            found.append(f"{where[str(symbol)]} <= {int(bounds.upper)}")
    return found


_TENSOR_SIZE = re.compile(r"L\['\w+'\]\[(\d+)\]\.size\(\)\[(\d+)\]")
_NOT_ONE = re.compile(r"x\d+\[\d+\] (> 1|>= 2)")
"""For a size no more than "!= 1": there a reshape may be a view that is a copy elsewhere, of the same numbers."""
