"""The one operator, ``torch.ops.cnnlstm_fast.lstm``, with its backward: registration, fake kernels, autograd.

The schemas are in ``operators.schema``. The compiled library defines them in C++ and runs its own backends there; for
every other backend it calls ``lstm_python`` and ``lstm_backward_python``, the implementations below. Without the
compiled library, the operators themselves are defined and implemented here.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _native
from .backends import BACKENDS, Backend, Outputs
from .canonical import LSTMSpec
from .double_backward import autograd_backward, reference_gradients, save_for_double_backward
from .flops import count_flops
from .transforms import (
    OPERAND_AXES,
    OPTIONAL_AXES,
    RESULT_AXES,
    TransformedBackward,
    gradients_batched,
    transformed,
    vmap_rule,
)

_LIBRARY = torch.library.Library("cnnlstm_fast", "FRAGMENT")


def _forward(*args: Any) -> Outputs:
    *call, name = args
    backend = _substitute(name, *call) if _is_missing(name) else BACKENDS[name]
    if backend.forward is None:
        raise RuntimeError(
            f"backend {name!r} is compiled code for the CPU, the tensors are on {call[0].device}"
        )
    return backend.forward(*call)


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    *call, name = args
    backend = BACKENDS[name]
    # one starred list a call, since mypy takes a list before another argument for too many of them
    if _is_missing(name):
        grad_cells, operands, bidirectional = call[3], call[4:12], call[16]
        backend = _substitute(name, *[*operands, bidirectional, True, grad_cells is not None])
    return backend.backward(*call) if backend.backward is not None else _recompute(*[*call, backend.name])


def _is_missing(name: str) -> bool:
    """Whether a backend is compiled code in a package without any. Eager calls never name such a one, but a graph may
    that was exported elsewhere."""
    return BACKENDS[name].native and not _native.available


def _substitute(
    name: str,
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    dropout_mask: Tensor | None,
    bidirectional: bool,
    grad: bool,
    all_cells: bool,
) -> Backend:
    """What an eager call would run where ``name`` is missing. Always differentiable code, so that ``_saves`` knows what
    it leaves empty."""
    _warn_of_missing(name)
    states, B, P = h0.shape
    H, directions = c0.size(2), 2 if bidirectional else 1
    spec = LSTMSpec(
        device=input.device.type,
        dtype=input.dtype,
        T=input.size(0) if batch_sizes is None else batch_sizes.size(0),
        B=B,
        input_size=input.size(-1),
        hidden_size=H,
        proj_size=P if P != H else 0,
        num_layers=states // directions,
        bidirectional=bidirectional,
        bias=len(weights) // states >= 4,
        packed=batch_sizes is not None,
        lengths=lengths is not None,
        reset=reset is not None,
        dropout=dropout_mask is not None,
        all_cells=all_cells,
        grad=grad,
        tracing=False,
    )
    aten = BACKENDS["aten"]
    return aten if aten.supports(spec) is None else BACKENDS["reference"]


@cache
def _warn_of_missing(name: str) -> None:
    warnings.warn(
        f"cnnlstm_fast: a graph asks for backend {name!r}, but {_native.reason}. Running PyTorch's own operators "
        f"instead, more slowly.",
        stacklevel=2,
    )


def _saves(name: str) -> bool:
    """Whether the forward pass that runs for this backend fills cells, gates and hidden for its backward."""
    return BACKENDS[name].saves and not _is_missing(name)


def _recompute(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    dropout_mask: Tensor | None,
    output: Tensor,
    cells: Tensor,
    gates: Tensor,
    hidden: Tensor,
    bidirectional: bool,
    input_needs_grad: bool,
    weights_need_grad: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Backward of differentiable PyTorch code: runs the forward again, under autograd."""
    forward = BACKENDS[backend].forward
    assert forward is not None
    # Below the Autograd dispatch key nothing is recorded unless the key is enabled again.
    autograd_keys = (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView)
    with (
        torch.enable_grad(),
        torch._C._SetExcludeDispatchKeyGuard(autograd_keys[0], False),
        torch._C._SetExcludeDispatchKeyGuard(autograd_keys[1], False),
    ):
        needed = [input_needs_grad, True, True, *[weights_need_grad] * len(weights)]
        leaves = [
            t.detach().requires_grad_(need) for t, need in zip((input, h0, c0, *weights), needed, strict=True)
        ]
        x, h, c, *w = leaves
        results = forward(
            x, h, c, w, batch_sizes, lengths, reset, dropout_mask, bidirectional, True, grad_cells is not None
        )
        pairs = [
            (out, grad)
            for out, grad in zip(results[:4], (grad_output, grad_h_n, grad_c_n, grad_cells), strict=True)
            if grad is not None and out.requires_grad
        ]
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
        found = iter(_vector_jacobian(pairs, wanted))
    grads = [next(found) if need else input.new_empty(0) for need in needed]
    return grads[0], grads[1], grads[2], grads[3:]


def _vector_jacobian(pairs: list[tuple[Tensor, Tensor]], inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of the sum of out * grad over the pairs; zeros for inputs that it does not depend on."""
    outs, grads = [p[0] for p in pairs], [p[1] for p in pairs]
    found = torch.autograd.grad(outs, inputs, grads, allow_unused=True) if outs else [None] * len(inputs)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]


def _fake_forward(
    input: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    dropout_mask: Tensor | None,
    bidirectional: bool,
    for_backward: bool,
    all_cells: bool,
    backend: str,
) -> Outputs:
    directions = 2 if bidirectional else 1
    states, _, P = h0.shape
    H = c0.size(2)
    rows = input.shape[:-1]
    saves = for_backward and _saves(backend)
    return Outputs(
        input.new_empty((*rows, directions * P)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        input.new_empty((states, *rows, H) if saves or all_cells else (0,)),
        input.new_empty((states, *rows, 4 * H) if saves else (0,)),
        input.new_empty((states // directions - 1, *rows, directions * P) if saves else (0,)),
    )


def _fake_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    input, h0, c0, weights = args[4:8]
    input_needs_grad, weights_need_grad = args[17:19]
    return (
        input.new_empty(input.shape if input_needs_grad else (0,)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        [w.new_empty(w.shape if weights_need_grad else (0,)) for w in weights],
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, *flags = inputs
    ctx.bidirectional, for_backward, all_cells, ctx.backend = flags
    ctx.num_weights = len(weights)
    out, _, _, cells, gates, hidden = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(gates, hidden, *([] if all_cells else [cells]))
    filled = (out, cells, gates, hidden) if for_backward and _saves(ctx.backend) else ()
    ctx.save_for_backward(input, h0, c0, *weights, batch_sizes, lengths, reset, dropout_mask, *filled)


def _gradients(
    ctx: Any, grads: tuple[Tensor | None, ...], input_needs_grad: bool, weights_need_grad: bool
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    input, h0, c0, *rest = ctx.saved_tensors
    weights, rest = rest[: ctx.num_weights], rest[ctx.num_weights :]
    batch_sizes, lengths, reset, dropout_mask, *filled = rest
    if not filled:
        filled = _recompute_saved(ctx, input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask)
    # without create_graph there is nothing to record
    guard = contextlib.nullcontext() if torch.is_grad_enabled() else torch._C._AutoDispatchBelowAutograd()
    with guard:
        cell = h0.dim() == 2
        if cell:
            grad_h, grad_c = (None if g is None else g.unsqueeze(0) for g in grads)
            grads = (None, grad_h, grad_c, None)
            input, h0, c0 = input.unsqueeze(0), h0.unsqueeze(0), c0.unsqueeze(0)
        optional = (batch_sizes, lengths, reset, dropout_mask)
        flags = (ctx.bidirectional, input_needs_grad, weights_need_grad, ctx.backend)
        if transformed() or forward_ad._current_level >= 0:
            found = TransformedBackward.run(grads[:4], (input, h0, c0, weights), optional, filled, flags)
        elif gradients_batched():
            operands = (input, h0, c0, *weights)
            gradients = reference_gradients(grads[:4], operands, optional, ctx.bidirectional)
            found = (*gradients[:3], list(gradients[3:]))  # type: ignore[assignment]
        else:
            found = torch.ops.cnnlstm_fast.lstm_backward.default(
                *grads[:4], input, h0, c0, weights, *optional, *filled, *flags
            )
        if not cell:
            return found
        # a gradient that was not requested is empty
        *of_tensors, of_weights = found
        of_input, of_h0, of_c0 = (g.squeeze(0) if g.dim() == 3 else g for g in of_tensors)
        return of_input, of_h0, of_c0, of_weights


def _recompute_saved(ctx: Any, *inputs: Any) -> list[Tensor]:
    """output, cells, gates and hidden where the forward pass did not save them."""
    if not _saves(ctx.backend):
        return [inputs[0].new_empty(0)] * 4  # differentiable code, whose backward does not read them
    with torch._C._AutoDispatchBelowAutograd():
        output, _, _, *rest = torch.ops.cnnlstm_fast.lstm.default(
            *inputs, ctx.bidirectional, True, False, ctx.backend
        )
    return [output, *rest]


def _autograd_forward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    """Gradient of ``lstm``."""
    need_input, need_h0, need_c0, need_weights = ctx.needs_input_grad[:4]
    weights_need_grad = any(need_weights) if isinstance(need_weights, (list, tuple)) else bool(need_weights)
    grad_input, grad_h0, grad_c0, grad_weights = _gradients(ctx, grads, need_input, weights_need_grad)
    return (
        grad_input if need_input else None,
        grad_h0 if need_h0 else None,
        grad_c0 if need_c0 else None,
        grad_weights if weights_need_grad else [None] * ctx.num_weights,
        *[None] * 8,
    )


class EagerLSTM(torch.autograd.Function):
    """The same formula for eager calls. torch.library's own wrapper flattens the list of weights with pytree at
    every call, which took about 150 us of a training step of one layer; here they are single arguments.

    For a cell, whose states have rank 2, it returns h and c alone."""

    @staticmethod
    def forward(
        ctx: Any,
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        dropout_mask: Tensor | None,
        flags: tuple[Any, ...],
        input: Tensor,
        h0: Tensor,
        c0: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = (input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, *flags)
        cell = h0.dim() == 2
        with torch._C._AutoDispatchBelowAutograd():
            outputs = (_operator_on_step if cell else torch.ops.cnnlstm_fast.lstm.default)(*inputs)
            if cell:  # in place: autograd forbids editing the views that a Function returns, and callers edit states
                states = outputs[1].squeeze_(0), outputs[2].squeeze_(0)
        _save_for_backward(ctx, inputs, outputs)
        return states if cell else outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        need_input, _, _, *need_weights = needs = ctx.needs_input_grad[5:]
        *first, of_weights = _gradients(ctx, grads, need_input, any(need_weights))
        found = zip((*first, *of_weights), needs, strict=True)
        return (None, None, None, None, None, *[grad if need else None for grad, need in found])


class TransformedLSTM(torch.autograd.Function):
    """The same for calls under torch.func, which needs ``setup_context``. That would cost an eager call 20 us: PyTorch
    reads the signature of ``forward`` each time."""

    @staticmethod
    def run(
        operands: tuple[Tensor, Tensor, Tensor, Sequence[Tensor]],
        optional: Sequence[Tensor | None],
        flags: tuple[Any, ...],
    ) -> Outputs:
        """Arguments and results as those of ``lstm``."""
        input, h0, c0, weights = operands
        found = TransformedLSTM.apply(*optional, flags, input, h0, c0, *weights)
        if not torch.is_grad_enabled():
            # as of PyTorch's operators: a Function heeds no_grad in the innermost of the transforms alone
            found = (result.detach() for result in found)
        return Outputs(*found)

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *optional, flags, input, h0, c0 = args[:8]
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(
                torch.ops.cnnlstm_fast.lstm.default(input, h0, c0, list(args[8:]), *optional, *flags)
            )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *optional, flags, input, h0, c0 = inputs[:8]
        _save_for_backward(ctx, (input, h0, c0, inputs[8:], *optional, *flags), Outputs(*output))

    backward = EagerLSTM.backward

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        axes = (*OPTIONAL_AXES, None, *OPERAND_AXES, *[None] * (len(args) - 8))
        foldable = args[0] is None  # the rows of packed sequences do not stand one sequence after the other
        return vmap_rule(TransformedLSTM.apply, info.batch_size, args, in_dims, axes, RESULT_AXES, foldable)


def run_step(
    x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor], grad: bool, tracing: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """The operator for a step of a cell, x (B, I) and h, c (B, H). The views to its layout are made below autograd,
    which would record a node for each."""
    flags = (False, grad, False, backend)
    if tracing:
        found = _operator_on_step(x, h, c, weights, None, None, None, None, *flags)
        return found[1].squeeze(0), found[2].squeeze(0)
    if transformed():
        step = (x.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0), weights)
        found = TransformedLSTM.run(step, (None, None, None, None), flags)
        return found[1].squeeze(0), found[2].squeeze(0)
    if grad:
        return EagerLSTM.apply(None, None, None, None, flags, x, h, c, *weights)
    with torch._C._AutoDispatchBelowAutograd():
        found = _operator_on_step(x, h, c, weights, None, None, None, None, *flags)
        return found[1].squeeze_(0), found[2].squeeze_(0)


def _operator_on_step(x: Tensor, h: Tensor, c: Tensor, *rest: Any) -> Outputs:
    operator = torch.ops.cnnlstm_fast.lstm.default
    return operator(x.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0), *rest)


def _register() -> None:
    for schema in (Path(__file__).parent / "operators.schema").read_text().splitlines():
        name, signature = schema.split("(", 1)
        implementation = {"lstm": _forward, "lstm_backward": _backward}[name]
        if _native.available:
            _LIBRARY.impl(f"{name}_python", implementation, "CompositeExplicitAutograd")
        else:
            _LIBRARY.define(f"{name}({signature}", tags=(torch.Tag.pt2_compliant_tag,))
        # for devices without a kernel in the library
        _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake("cnnlstm_fast::lstm", _fake_forward, lib=_LIBRARY)
    torch.library.register_fake("cnnlstm_fast::lstm_backward", _fake_backward, lib=_LIBRARY)
    torch.library.register_autograd(
        "cnnlstm_fast::lstm", _autograd_forward, setup_context=_save_for_backward, lib=_LIBRARY
    )
    torch.library.register_autograd(
        "cnnlstm_fast::lstm_backward",
        autograd_backward,
        setup_context=save_for_double_backward,
        lib=_LIBRARY,
    )


_register()
count_flops()
