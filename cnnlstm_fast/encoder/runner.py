"""Runner: a plan bound to one module, which runs its calls by engines or leaves them to the module's own forward."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..recurrent.class_swap import is_fast
from . import guard as guards
from .agreement import first_line
from .capture import TENSOR, has_hooks
from .engines import ENGINES, Options, Run
from .fingerprint import structure
from .guard import UNCHANGED, Guard, global_hooks
from .lstm_call import LSTMCall
from .plan import Plan
from .record import OtherSize, Record
from .regions import build_region, with_ranks
from .usual import RUNNER, original_forward, same_results, tensors_of

TRAINER = "_cnnlstm_fast_trainer"
"""The entry that holds its trainer, see training.py."""
Runs = dict[tuple[int, str], Run]
"""Built engines by the region's number and the engine's name."""
Forward = Callable[..., tuple[Tensor, ...]]
"""Takes the tensors of a call and returns those of its result."""
EAGER: Any = object()
"""What a runner returns for a call that the module's own forward must run."""
CALLS_BEFORE_REBUILD = 3
"""After an edit of the weights, calls run eager until so many in a row have found the same ones."""
_IGNORED = frozenset({RUNNER, TRAINER})
_METHODS = {
    "clone",
    "contiguous",
    "detach",
    "expand",
    "flatten",
    "movedim",
    "narrow",
    "permute",
    "reshape",
    "select",
}
_METHODS |= {"squeeze", "t", "transpose", "unflatten", "unsqueeze", "view"}
"""Operators of a top graph that are methods of a tensor with the same arguments."""


@dataclass
class _Bound:
    """A plan with the weights of one moment."""

    gate: Any
    """With the function that takes the tensors of a call and returns those of its result, ``forward``."""
    kinds: dict[Any, bool] = field(default_factory=dict)
    """Whether calls of each kind of shapes run by the engines, see ``Plan.kind``."""


class Runner:
    """Holds for one module: the plan, the engine of each region, the guard of what was captured, and why the last call
    ran eager.

    The engines copy the weights. A call runs by them only if the guard finds the module as it was captured. After an
    edit of the weights it runs eager, and the engines are built again once the weights have settled.
    """

    def __init__(self, plan: Plan, record: Record, structure: str) -> None:
        self.plan, self.record, self.structure = plan, record, structure
        self.enabled = True
        self.quick: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any] = no_result
        """The result of the call, if its shapes are known and all is unchanged, else None. ``__call__`` answers the
        same calls, and all others."""
        self.notes: list[str] = []
        """What has happened since, for ``explain``."""
        self._lock = threading.Lock()
        self._bound: _Bound | None = None
        self._candidate: Guard | None = None
        self._same = 0

    # ---------------------------------------------------------------- a call

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of the call, or ``EAGER`` where it must run as it did before."""
        tensors = args if not kwargs and self.plan.flat else self._tensors(args, kwargs)
        if tensors is None or not self.enabled:
            return EAGER
        bound = self._bound
        if bound is None:
            # a copy, or loaded from a file
            return self._settle(module, None) if guards.plain_call(tensors) else EAGER
        entry = bound.gate.enter(module, tensors)
        if entry == guards.SETTLE:
            return self._settle(module, bound)
        if entry == guards.EAGER or (
            entry == guards.ADMIT and not self._admit(bound, module, args, kwargs, tensors)
        ):
            return EAGER
        try:
            return self._result(bound.gate.forward(*tensors))
        except Exception as error:
            return self.failed(module, args, kwargs, error)

    def _tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...] | None:
        """The tensors among the arguments, or None if the rest is not that of the captured call."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != self.plan.arguments:
            return None
        for leaf, captured in zip(leaves, self.plan.leaves, strict=True):
            if not isinstance(leaf, Tensor) and (type(leaf) is not type(captured) or leaf != captured):
                return None
        return tuple([leaf for leaf in leaves if isinstance(leaf, Tensor)])

    def _result(self, found: tuple[Tensor, ...]) -> Any:
        if self.plan.single:
            return found[0]
        given = iter(found)
        leaves = [next(given) if isinstance(v, str) and v == TENSOR else v for v in self.plan.results]
        return pytree.tree_unflatten(leaves, self.plan.result)

    # ---------------------------------------------------------------- rarely

    def _admit(
        self,
        bound: _Bound,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: tuple[Tensor, ...],
    ) -> bool:
        """Whether these shapes may run by the engines. The first ones of each kind are run both ways, and compared."""
        shapes = tuple([t.shape for t in tensors])
        refused = self.plan.refused_sizes(shapes)
        if refused is not None:
            self.note(f"runs eager for sizes where not {refused}")
        other = self.record.other
        near = other is not None and other.is_near(tensors[other.tensor].numel())
        kind = (near, *self.plan.kind(shapes))
        if refused is None and kind not in bound.kinds:
            bound.kinds[kind] = self._agrees(bound, module, args, kwargs, tensors)
            if not bound.kinds[kind]:
                self.note(
                    f"runs eager for shapes such as {', '.join(str(tuple(s)) for s in shapes)}: other results"
                )
        good = refused is None and bound.kinds[kind]
        bound.gate.remember(tensors, good)
        return good

    def _agrees(
        self,
        bound: _Bound,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: tuple[Tensor, ...],
    ) -> bool:
        with torch.no_grad():
            expected = original_forward(module, args, kwargs)  # raises on invalid arguments, as it should
            try:
                found = bound.gate.forward(*tensors)
            except Exception as error:
                self.note(f"an engine failed: {type(error).__name__}: {first_line(error)}")
                return False
        return same_results(found, tensors_of(expected), self.record.precision, module, args, kwargs)

    def failed(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception
    ) -> Any:
        """Runs the call eager after an engine has raised. If that raises, too, the argument was at fault."""
        result = original_forward(module, args, kwargs)
        message = f"an engine failed and is not used any more: {type(error).__name__}: {first_line(error)}"
        self._disable(message)
        warnings.warn(f"cnnlstm_fast: {message}. The model runs eager, with the same results.", stacklevel=4)
        return result

    def _settle(self, module: nn.Module, bound: _Bound | None) -> Any:
        """The weights or the number of threads changed, or the module is a copy: builds the engines again once several
        calls in a row have found the same weights, and runs eager until then."""
        with self._lock:
            if self._bound is not bound:
                return EAGER  # another thread has done it
            if bound is None and (has_hooks(module) or structure(module) != self.structure):
                return EAGER  # not what was captured, or not in eval mode
            if self._candidate is None or self._candidate.check() != UNCHANGED:
                self._candidate, self._same = Guard(module, _IGNORED), 0
            self._same += 1
            if self._same < CALLS_BEFORE_REBUILD:
                return EAGER
            self._candidate, self._same = None, 0
            try:
                self.bind(module)
            except Exception as error:
                self._disable(
                    f"could not be built again for other weights: {type(error).__name__}: {first_line(error)}"
                )
        return EAGER

    def _disable(self, why: str) -> None:
        self.enabled, self.quick, self._bound = False, no_result, None
        self.note(why)

    # ---------------------------------------------------------------- engines

    def bind(self, module: nn.Module, runs: Runs | None = None) -> None:
        """Builds the engines for the module's present weights.

        Args:
            runs: those that are built already.
        """
        with torch.inference_mode(False), torch.no_grad():
            guard = Guard(module, _IGNORED)
            tensors = self.plan.tensors_of(module)
            # the choice has compared them at other sizes; the first call of each kind of sizes is compared, too
            options = Options(
                torch.get_num_threads(), self.record.precision, known=True, alone=self.plan.alone
            )
            made = dict(runs or {})

            def run_of(k: int, engine: str) -> Run:
                if (k, engine) not in made:
                    sizes = self.record.regions[k].sizes
                    region = with_ranks(build_region(str(k), self.plan.regions[k], tensors), sizes)
                    made[k, engine] = ENGINES[engine].build(region, region.example(sizes), options)
                return made[k, engine]

            def forward_by(engines: Sequence[str]) -> Forward:
                chosen = {k: run_of(k, engine) for k, engine in enumerate(engines)}
                return top_function(self.plan, module, tensors, chosen, self.record.precision)

            forward = forward_by([region.engine for region in self.record.regions])
            if (other := self.record.other) is not None:
                forward = _by_size(forward, forward_by(other.engines), other)
            kinds = tuple([(dtype, rank) for dtype, _, rank in self.plan.tensors])
            patterns = self.plan.patterns(guards.MARKER)
            gate = guard.gate(module, kinds, options.threads, forward, *patterns)
            self._bound = _Bound(gate)
            plain = _called_plainly(module) and all(map(_is_standard, patterns))
            self.quick = gate.run if plain else no_result

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def __reduce__(self) -> tuple[Any, ...]:
        """Of a copy or pickle the engines are built at its first calls."""
        data = self.plan.to_json(), self.record.to_json()
        return restore_runner, (type(self), *data, self.structure, self.enabled)


def _by_size(forward: Forward, elsewhere: Forward, other: OtherSize) -> Forward:
    """``elsewhere`` for calls near that other size."""
    tensor, is_near = other.tensor, other.is_near
    return lambda *tensors: (elsewhere if is_near(tensors[tensor].numel()) else forward)(*tensors)


def _called_plainly(module: nn.Module) -> bool:
    """Whether calling the module is no more than its forward. The guard sees where that changes."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, *global_hooks())
    return not any(hooks) and module._compiled_call_impl is None


def _is_standard(pattern: Any) -> bool:
    """Whether it is made of the containers that the gate knows: of a class of the user's it would make a tuple."""
    if isinstance(pattern, (tuple, list)):
        return type(pattern) in (tuple, list) and all(map(_is_standard, pattern))
    if isinstance(pattern, dict):
        return type(pattern) is dict and all(map(_is_standard, pattern.values()))
    return pattern is guards.MARKER or pattern is None or isinstance(pattern, (bool, int, float, str))


def no_result(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The ``quick`` of what is to be asked by ``__call__``."""


def restore_runner(
    cls: type[Runner], plan: dict[str, Any], record: dict[str, Any], structure: str, enabled: bool
) -> Runner:
    runner = cls(Plan.from_json(plan), Record.from_json(record), structure)
    runner.enabled = enabled
    return runner


def top_function(
    plan: Plan,
    module: nn.Module,
    tensors: dict[str, Tensor],
    runs: Mapping[int, Run],
    precision: str | None = None,
) -> Forward:
    """The plan's top graph as a function of the call's tensors.

    Args:
        tensors: of the module, by the targets of ``get_attr`` nodes.
        runs: of the regions, by number.
        precision: of the LSTMs, None for that of their tensors.
    """
    names: dict[str, Any] = dict(tensors)
    dtype = torch.bfloat16 if precision == "bf16" else None
    if dtype is not None:
        names |= {target: tensors[target].to(dtype) for target in plan.lstm_weights}
    names |= {f"region_{k}": run for k, run in runs.items()}
    for k, place in enumerate(plan.lstms):
        layer = module.get_submodule(place.module) if place.module else module
        backend = layer.backend if place.module and is_fast(layer) else "auto"
        names[f"lstm_{k}"] = LSTMCall(place, backend, dtype)  # type: ignore[arg-type]
    return as_function(_by_methods(plan.top), SimpleNamespace(**names))


def _by_methods(top: fx.Graph) -> fx.Graph:
    """The graph with methods of its tensors in the place of operators: to call ``aten.reshape`` takes several times as
    long as ``x.reshape``."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(top, {}))
    for node in graph.nodes:
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if name == "sym_size":
            node.op, node.target = "call_method", "size"
        elif getattr(node.target, "namespace", "") == "aten" and name in _METHODS:
            node.op, node.target = "call_method", name
    return graph


def as_function(graph: fx.Graph, attributes: Any) -> Any:
    """The graph as a function; its ``get_attr`` and ``call_module`` nodes name attributes of the object."""
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(
        code.src, space
    )  # FX's own way from a graph to a function: every name in it was checked (serialize.py)
    return space["forward"].__get__(attributes)
