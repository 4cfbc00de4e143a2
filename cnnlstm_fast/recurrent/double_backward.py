"""Gradient of ``lstm_backward``: the derivative of the reference's gradient, correct but slow, of any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference


def reference_gradients(
    grads: Sequence[Tensor | None],
    operands: Sequence[Tensor],
    optional: Sequence[Tensor | None],
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """What ``lstm_backward`` returns, as differentiable code.

    Args:
        grads: the gradients of output, h_n, c_n and cells, at least one of them.
        operands: input, h0, c0 and each of the weights, in whose order the results are.
        optional: batch_sizes, lengths, reset, dropout_mask.
    """
    present = [k for k, grad in enumerate(grads) if grad is not None]
    batch_sizes, lengths, reset, dropout_mask = optional

    def forward(*operands: Tensor) -> tuple[Tensor, ...]:
        input, h0, c0, *weights = operands
        outs = reference.lstm(
            input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, bidirectional
        )
        return tuple(outs[k] for k in present)

    return torch.func.vjp(forward, *operands)[1](tuple(grads[k] for k in present))


def save_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """``inputs``: the arguments of ``lstm_backward`` in ``operators.schema``."""
    grads, (input, h0, c0, weights), optional = inputs[:4], inputs[4:8], inputs[8:12]
    ctx.bidirectional, ctx.input_needs_grad, ctx.weights_need_grad = inputs[16:19]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*grads, *optional, input, h0, c0, *weights)


def double_backward(ctx: Any, outer: list[Tensor | None]) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Derivatives by the gradients that ``lstm_backward`` took, and by input, h0, c0 and each of the weights.

    Args:
        outer: the gradients of what it returned: of input, h0, c0 and each of the weights.
    """
    grads, optional, operands = ctx.saved_tensors[:4], ctx.saved_tensors[4:8], ctx.saved_tensors[8:]
    # a gradient that was not requested was returned as an empty tensor, and so is its own gradient
    requested = (ctx.input_needs_grad, True, True, *[ctx.weights_need_grad] * (len(operands) - 3))
    chosen = [k for k, want in enumerate(requested) if want and outer[k] is not None]
    present = [k for k, grad in enumerate(grads) if grad is not None]
    if not chosen or not present:
        return [None] * 4, [None] * len(operands)

    def backward(operands: Sequence[Tensor], *given: Tensor) -> tuple[Tensor, ...]:
        by_place = dict(zip(present, given, strict=True))
        placed = [by_place.get(k) for k in range(4)]
        found = reference_gradients(placed, operands, optional, ctx.bidirectional)
        return tuple(found[k] for k in chosen)

    pullback = torch.func.vjp(backward, operands, *[grads[k] for k in present])[1]
    of_operands, *of_given = pullback(tuple(outer[k] for k in chosen))
    of_grads = dict(zip(present, of_given, strict=True))
    return [of_grads.get(k) for k in range(4)], list(of_operands)


def autograd_backward(
    ctx: Any,
    grad_grad_input: Tensor | None,
    grad_grad_h0: Tensor | None,
    grad_grad_c0: Tensor | None,
    grad_grad_weights: list[Tensor | None] | None,
) -> tuple[Any, ...]:
    """The formula of the operator ``lstm_backward``."""
    weights = grad_grad_weights or [None] * (len(ctx.saved_tensors) - 11)
    of_grads, of_operands = double_backward(ctx, [grad_grad_input, grad_grad_h0, grad_grad_c0, *weights])
    return (*of_grads, *of_operands[:3], of_operands[3:], *[None] * 12)
