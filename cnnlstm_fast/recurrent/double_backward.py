"""Gradient of ``lstm_backward``: the derivative of the reference's gradient, correct but slow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference


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
    seeds, operands = ctx.saved_tensors[:4], ctx.saved_tensors[8:]
    batch_sizes, lengths, reset, dropout_mask = ctx.saved_tensors[4:8]
    # a gradient that was not requested was returned as an empty tensor, and so is its own gradient
    requested = (ctx.input_needs_grad, True, True, *[ctx.weights_need_grad] * (len(operands) - 3))
    chosen = [k for k, want in enumerate(requested) if want and outer[k] is not None]
    present = [k for k, seed in enumerate(seeds) if seed is not None]
    if not chosen or not present:
        return [None] * 4, [None] * len(operands)

    def forward(*operands: Tensor) -> tuple[Tensor, ...]:
        input, h0, c0, *weights = operands
        outs = reference.lstm(
            input, h0, c0, weights, batch_sizes, lengths, reset, dropout_mask, ctx.bidirectional
        )
        return tuple(outs[k] for k in present)

    def backward(operands: tuple[Tensor, ...], seeds: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        gradients = torch.func.vjp(forward, *operands)[1](seeds)
        return tuple(gradients[k] for k in chosen)

    pullback = torch.func.vjp(backward, operands, tuple(seeds[k] for k in present))[1]
    of_operands, of_seeds = pullback(tuple(outer[k] for k in chosen))
    by_seed = dict(zip(present, of_seeds, strict=True))
    return [by_seed.get(k) for k in range(4)], list(of_operands)


def autograd_backward(
    ctx: Any,
    grad_grad_input: Tensor | None,
    grad_grad_h0: Tensor | None,
    grad_grad_c0: Tensor | None,
    grad_grad_weights: list[Tensor | None] | None,
) -> tuple[Any, ...]:
    """The formula of the operator ``lstm_backward``."""
    weights = grad_grad_weights or [None] * (len(ctx.saved_tensors) - 11)
    of_seeds, of_operands = double_backward(ctx, [grad_grad_input, grad_grad_h0, grad_grad_c0, *weights])
    return (*of_seeds, *of_operands[:3], of_operands[3:], *[None] * 12)
