"""Faster ways of PyTorch's own operators in training, put into the place of the usual ones while a forward runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Rules = Mapping[Any, Callable[..., Any]]
"""For functions of PyTorch what is called in their place."""
SMALLEST_WEIGHT = 2**14
"""Elements. Below it a linear layer takes less time than the Python code of its rule."""

_PLAIN = frozenset({Tensor, nn.Parameter})


class Rewritten(TorchFunctionMode):
    """While it is entered, calls of this thread follow the rules."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = _PLAIN.issuperset(types)
        call = self._rules.get(func, func) if plain else func
        return call(*args, **(kwargs or {}))


def run_rewritten(rules: Rules, call: Callable[[], Any]) -> Any:
    """The result of the call, made under the rules."""
    with Rewritten(rules):
        found = call()
    return pytree.tree_map_only(Tensor, _usual_layout, found)


def _usual_layout(t: Tensor) -> Tensor:
    return t.contiguous() if t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) else t


class _Product(torch.autograd.Function):
    """a @ b.T by oneDNN, for a (M, K) and b (N, K). Its gradients are such products, too, and have gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        wanted_a, wanted_b = ctx.needs_input_grad
        return (
            _Product.apply(grad, b.t()) if wanted_a else None,
            _Product.apply(grad.t(), a.t()) if wanted_b else None,
        )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    fits = weight.dim() == 2 and weight.numel() >= SMALLEST_WEIGHT and input.numel() > 0
    if not (fits and weight.dtype == input.dtype == torch.float32):
        return F.linear(input, weight, bias)
    found: Tensor = _Product.apply(input.reshape(-1, input.size(-1)), weight)
    if bias is not None:
        found += bias
    return found.view(*input.shape[:-1], weight.size(0))


def _conv2d(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if input.dim() == 4 and input.dtype == torch.float32:
        input = input.contiguous(memory_format=torch.channels_last)
    return torch.conv2d(input, *args, **kwargs)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Draws in the order of the indices, as it would be without the other layout."""
    return F.dropout(input if inplace or not training else input.contiguous(), p, training, inplace)


REWRITES: dict[str, Rules] = {
    "channels_last": {torch.conv2d: _conv2d, F.dropout: _dropout},
    "onednn": {F.linear: _linear},
}
"""By name: 2-D convolutions with their channels last in memory; linear layers by oneDNN instead of PyTorch's BLAS."""


def rules_of(names: str) -> Rules:
    """The rules of names in ``REWRITES``, joined by "+"."""
    return {func: rule for name in names.split("+") for func, rule in REWRITES[name].items()}
