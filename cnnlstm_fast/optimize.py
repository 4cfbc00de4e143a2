"""optimize(model), revert(model), explain(model)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .encoder.deferred import defer
from .encoder.describe import describe, engine_of
from .encoder.fold import fold_loops
from .encoder.inside import measure_inside
from .encoder.modules import uninstall
from .encoder.options import How, check_options
from .encoder.prepare import BUDGET, prepare
from .encoder.progress import progress_bar
from .encoder.training import prepare_training
from .recurrent.backends import BACKENDS, Backend
from .recurrent.canonical import LSTMSpec, validate
from .recurrent.class_swap import is_fast, swap_class
from .recurrent.dispatch import select
from .recurrent.frozen import freeze, is_frozen, thaw
from .recurrent.modules import PLAIN_CLASSES, fast_class
from .recurrent.tracers import stood_aside

Model = TypeVar("Model", bound=nn.Module)


def optimize(
    model: Model,
    example_inputs: Any = None,
    *,
    backend: str = "auto",
    encoder: str = "auto",
    precision: str | None = None,
    recompute: bool = False,
    frozen: bool = False,
    budget: float = BUDGET,
) -> Model:
    """Makes a model fast, in place, and returns it: every nn.LSTM and nn.LSTMCell inside and, given an example
    of its input, the tensor code around them (convolutions, normalisation, linear layers, ...).

    The modules stay the same objects with the same Parameters, names, hooks and attributes; only their class
    changes, so references to them, optimizers and state dicts stay valid. ``revert`` undoes it. Their
    subclasses keep their own methods; their calls of ``super().forward`` run fast.

    With ``example_inputs`` the model is captured, its parts without LSTM are run by every engine that is installed
    (``ENGINES``), and each part keeps the fastest one whose results are right. That takes seconds; the choice is stored
    on disk, so that the next process takes less. Calls without gradient and in eval mode then run by the engines, for
    any batch size and length; all others, such as training or with hooks added since, run as before. Edits of weights
    are seen by the next call. ``explain`` shows what was measured.

    A model in train() mode has its training step measured, too, in what is left of ``budget``: where other operators
    of PyTorch (convolutions with channels last, linear layers by oneDNN) are faster forward and backward and right,
    its calls in train() mode run by them, with the same random numbers, buffers and hooks.

    With a named ``encoder`` and no example, the model's first call in eval mode without gradient is the example: it
    runs as before, and then the engine is built. Earlier calls, such as training, run as before.

    Args:
        example_inputs: a tuple of the model's arguments, or its single argument, of typical size.
        backend: "auto" or a name in ``BACKENDS``, for all LSTMs and cells.
        encoder: "auto" or a name in ``ENGINES``, for all parts that this engine can run.
        precision: None for the same numbers, "bf16" for products in bfloat16 inside of what is captured or, where
            that is faster, in float32, with the same dtypes outside. Needs ``example_inputs`` or a named ``encoder``.
        recompute: less memory for more time in training, for all LSTMs; see ``cnnlstm_fast.lstm``. For single
            layers set their attribute of the same name. A cell, which runs one step, has no such attribute.
        frozen: the weights of LSTMs and cells will not be edited until ``revert`` or another ``optimize``. On a CPU
            their contents are then not compared in every call, and short calls gain by packing, too. Edits that
            autograd counts are seen nevertheless, and a weight that is replaced (``model.to(...)``) is not frozen.
        budget: seconds that the measurement may take, about; half of it more where a loop over frames is measured.

    Raises:
        TypeError: model is not an nn.Module.
        ValueError: no backend, engine or precision has that name, or a precision is asked for without an example or
            an engine.
        RuntimeError: the named engine is not installed or, with ``example_inputs``, cannot run any part of the model;
            without, the first call warns of the latter.
    """
    check_model(model)
    _check(backend, encoder, precision, example_inputs)
    for module in model.modules():
        if isinstance(module, PLAIN_CLASSES):
            if not is_fast(module):
                swap_class(module, fast_class(type(module)))
            for name, value in (("backend", backend), ("recompute", recompute)):
                if value != getattr(module, name, value):
                    setattr(module, name, value)
    (freeze if frozen else thaw)(model)
    if example_inputs is None and encoder == "auto":
        return model
    for module in model.modules():
        uninstall(module)
    if example_inputs is None:
        defer(model, encoder, precision, budget)
        return model
    with progress_bar() as progress:
        how = How(encoder, precision, time.monotonic() + budget, progress)
        prepare(model, as_arguments(example_inputs), {}, how)
        deadline = max(how.deadline, time.monotonic() + budget / 2)
        fold_loops(model, as_arguments(example_inputs), {}, replace(how, deadline=deadline))
        measure_inside(model, as_arguments(example_inputs), {}, how)
        prepare_training(model, as_arguments(example_inputs), {}, how)
    return model


def _check(backend: str, encoder: str, precision: str | None, example_inputs: Any) -> None:
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend: expected 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}.")
    check_options(encoder, precision)
    if precision is not None and encoder == "auto" and example_inputs is None:
        raise ValueError(
            f"precision: {precision!r} needs example_inputs, by which the engines are measured; pass the arguments "
            f"of a typical call, or name an encoder."
        )


def revert(model: Model) -> Model:
    """Restores the original class of every module that ``optimize`` changed, in place, and returns the model."""
    check_model(model)
    thaw(model)
    for module in model.modules():
        uninstall(module)
        if is_fast(module):
            for name in ("backend", "recompute"):
                module.__dict__.pop(name, None)
            swap_class(module, type(module).original_class)  # type: ignore[attr-defined]
    return model


def explain(model: nn.Module, example_inputs: Any = None) -> str:
    """Describes for each LSTM in the model which backend runs it, why and how, and why the others do not; for what is
    around them, by which engines it runs, with the times of all that were tried.

    Args:
        example_inputs: a tuple of the model's arguments, or its single argument. With them the model runs once
            (without gradient) and the text describes the observed calls; without them, a call of unknown sizes on
            the parameters' device and dtype.
    """
    check_model(model)
    named = [(name, m) for name, m in model.named_modules() if isinstance(m, PLAIN_CLASSES)]
    seen = None if example_inputs is None else _observe(model, example_inputs)
    lines = [] if named else ["no nn.LSTM or nn.LSTMCell in this model"]
    for name, module in named:
        lines.append(f"{name or '(the model itself)'}: {module._get_name()}({module.extra_repr()})")
        if not is_fast(module):
            lines.append("  not optimized: call cnnlstm_fast.optimize(model)")
            continue
        specs = [_unsized_spec(module)] if seen is None else seen[module]
        if not specs:
            lines.append("  not called with these inputs")
        for spec in specs:
            lines.append(f"  call:     {spec}")
            lines += _choice_lines(spec, module.backend)  # type: ignore[arg-type]
        if (engine := engine_of(model, name)) is not None:
            lines.append(
                f"  note:     without gradient it runs in {engine}, together with what is around it (below)"
            )
        lines += [
            f"  note:     calls under {tracer} ran as nn.LSTM's, by PyTorch's own operators"
            for tracer in sorted(stood_aside.get(module, ()))
        ]
        if is_frozen(module):
            lines.append("  note:     its weights are frozen: edits past autograd are not seen")
        if seen is None and module.backend == "auto":
            lines.append("  note:     the choice depends on T and B: pass example_inputs to see it for yours")
    return "\n".join([*lines, *describe(model)])


def _choice_lines(spec: LSTMSpec, backend: str) -> Iterator[str]:
    try:
        choice = select(spec, backend)
    except (ValueError, RuntimeError) as error:
        yield f"  fails:    {error}"
        return
    yield f"  backend:  {_describe(choice.backend, choice.reason, spec)}"
    for name, reason in choice.rejected.items():
        yield f"  rejected: {_describe(BACKENDS[name], reason, spec)}"


def _describe(backend: Backend, reason: str, spec: LSTMSpec) -> str:
    text = f"{backend.name}: {reason}"
    return f"{text}; {backend.describe(spec)}" if backend.supports(spec) is None else text


def _observe(model: nn.Module, example_inputs: Any) -> dict[nn.Module, list[LSTMSpec]]:
    """Runs the model once and records the distinct calls of each fast layer."""
    seen: dict[nn.Module, list[LSTMSpec]] = {
        m: [] for m in model.modules() if isinstance(m, PLAIN_CLASSES) and is_fast(m)
    }

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        spec = validate(module.key(*args, **kwargs))  # type: ignore[operator]
        # auto often chooses another backend for the training of a cell
        for found in (spec, spec._replace(grad=True)) if spec.cell and module.training else (spec,):
            if found not in seen[module]:
                seen[module].append(found)

    hooks = [m.register_forward_pre_hook(record, with_kwargs=True) for m in seen]
    try:
        with torch.no_grad():
            model(*as_arguments(example_inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def as_arguments(example_inputs: Any) -> tuple[Any, ...]:
    """A tuple is the arguments of a model, anything else (also a PackedSequence) its only argument."""
    if isinstance(example_inputs, tuple) and not isinstance(example_inputs, PackedSequence):
        return example_inputs
    return (example_inputs,)


def check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model: expected a torch.nn.Module, got {type(model).__name__}; pass the model itself."
        )


def _unsized_spec(module: Any) -> LSTMSpec:
    cell = isinstance(module, nn.LSTMCell)
    weight = module.weight_ih if cell else getattr(module, module._flat_weights_names[0])
    return LSTMSpec(
        device=weight.device.type,
        dtype=weight.dtype,
        T=None,
        B=None,
        input_size=module.input_size,
        hidden_size=module.hidden_size,
        proj_size=0 if cell else module.proj_size,
        num_layers=1 if cell else module.num_layers,
        bidirectional=False if cell else module.bidirectional,
        bias=module.bias,
        packed=False,
        lengths=False,
        reset=False,
        dropout=not cell and module.training and module.dropout > 0.0 and module.num_layers > 1,
        all_cells=False,
        grad=module.training and torch.is_grad_enabled(),
        tracing=False,
        cell=cell,
    )
