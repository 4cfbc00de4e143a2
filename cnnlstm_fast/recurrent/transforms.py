"""The operator under torch.func: its rule for vmap, and ``lstm_backward`` as an autograd.Function that has it.

``grad``, ``vjp`` and ``vmap``, nested at will, run the same kernels as eager calls. PyTorch itself has no rule for vmap
of an operator that takes a list of tensors. There is no formula for ``jvp``, and its error says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .double_backward import double_backward, save_for_double_backward

transformed: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether the call is inside of a function transform."""

_RULES = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Vmap)
_VMAP_MODE = torch._C._dispatch_key_parse("VmapMode")

OPTIONAL_AXES = (None, 0, 1, 2)  # batch_sizes, lengths, reset, dropout_mask
OPERAND_AXES = (1, 1, 1)  # input, h0, c0; the weights have none
RESULT_AXES = (1, 1, 1, 2, 2, 2)  # Outputs
"""The dimension of the batch in each tensor."""


def without_rule() -> str | None:
    """A transform that is active and that the operator has no rule for: ``jvp`` or ``functionalize``."""
    layers = torch._C._functorch.get_interpreter_stack() or ()
    return next(
        (f"torch.func.{layer.key().name.lower()}" for layer in layers if layer.key() not in _RULES), None
    )


def gradients_batched() -> bool:
    """Whether autograd has stacked gradients (``is_grads_batched``, ``jacobian(vectorize=True)``): by a vmap that is
    older than torch.func's, and for which a Function cannot have a rule."""
    return torch._C._dispatch_tls_is_dispatch_key_included(_VMAP_MODE)


def values_of(tensor: Tensor) -> Tensor:
    """The tensor that the transforms have wrapped, with all that they batch."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def vmap_rule(
    function: Callable[..., tuple[Tensor, ...]],
    count: int,
    args: Sequence[Any],
    dims: Sequence[Any],
    axes: Sequence[int | None],
    result_axes: Sequence[int],
    foldable: bool,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Runs the function for each of ``count`` calls that vmap stacked; returns the results and where they are stacked.

    The calls become one, of a batch that is ``count`` times as large, where that is the same: not with weights of
    their own, whose calls run one after the other.

    Args:
        args: the function's arguments, those with a number in ``dims`` stacked along that dimension.
        axes, result_axes: the dimension of the batch in an argument and a result, None for an argument without it.
        foldable: false forbids one large call.
    """
    batched = [isinstance(arg, Tensor) and dim is not None for arg, dim in zip(args, dims, strict=True)]
    if not foldable or any(b and axis is None for b, axis in zip(batched, axes, strict=True)):
        calls = [
            function(*[a.select(d, n) if b else a for a, d, b in zip(args, dims, batched, strict=True)])
            for n in range(count)
        ]
        return tuple(torch.stack(results) for results in zip(*calls, strict=True)), (0,) * len(calls[0])
    folded = [
        _fold(arg, dim if b else None, axis, count) if isinstance(arg, Tensor) and axis is not None else arg
        for arg, dim, b, axis in zip(args, dims, batched, axes, strict=True)
    ]
    results = function(*folded)
    # a result that was not requested has no batch
    places = [
        axis if result.dim() > axis else None for result, axis in zip(results, result_axes, strict=False)
    ]
    places += [None] * (len(results) - len(places))
    stacked = [
        result if place is None else result.unflatten(place, (count, result.size(place) // count))
        for result, place in zip(results, places, strict=True)
    ]
    return tuple(stacked), tuple(places)


def _fold(arg: Tensor, dim: int | None, axis: int, count: int) -> Tensor:
    """The stacked calls' arguments as that of one call: dimension ``dim``, or ``count`` copies, becomes the outer part
    of the batch, which is dimension ``axis`` of a single call's argument."""
    if arg.dim() - (dim is not None) <= axis:  # a result that was not requested, saved for the backward pass
        return arg if dim is None else arg.select(dim, 0)
    if dim is None:
        arg = arg.unsqueeze(axis).expand(*arg.shape[:axis], count, *arg.shape[axis:])
    else:
        arg = arg.movedim(dim, axis)
    return arg.flatten(axis, axis + 1)


class TransformedBackward(torch.autograd.Function):
    """``lstm_backward`` with single weights in place of lists."""

    @staticmethod
    def run(
        grads: Sequence[Tensor | None],
        operands: tuple[Tensor, Tensor, Tensor, Sequence[Tensor]],
        optional: Sequence[Tensor | None],
        filled: Sequence[Tensor],
        flags: tuple[bool, bool, bool, str],
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Arguments and results as those of ``lstm_backward``."""
        input, h0, c0, weights = operands
        found = TransformedBackward.apply(*grads, *optional, *filled, flags, input, h0, c0, *weights)
        return (*found[:3], list(found[3:]))

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            found = torch.ops.cnnlstm_fast.lstm_backward.default(*_arguments(args))
        return (*found[:3], *found[3])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        save_for_double_backward(ctx, _arguments(inputs), output)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        of_grads, of_operands = double_backward(ctx, list(outer))
        return (*of_grads, *[None] * 9, *of_operands)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        filled = (RESULT_AXES[0], *RESULT_AXES[3:])
        weights: list[int | None] = [None] * (len(args) - 16)
        axes = [*RESULT_AXES[:4], *OPTIONAL_AXES, *filled, None, *OPERAND_AXES, *weights]
        batch_sizes, weights_need_grad = args[4], args[12][2]
        # each of the stacked calls has its own gradients of the weights
        foldable = batch_sizes is None and not weights_need_grad
        return vmap_rule(
            TransformedBackward.apply, info.batch_size, args, in_dims, axes, OPERAND_AXES, foldable
        )


def _arguments(args: Sequence[Any]) -> tuple[Any, ...]:
    """Those of ``TransformedBackward`` in the order of ``operators.schema``."""
    grads, optional, filled, flags = args[:4], args[4:8], args[8:12], args[12]
    input, h0, c0, *weights = args[13:]
    return (*grads, input, h0, c0, weights, *optional, *filled, *flags)
