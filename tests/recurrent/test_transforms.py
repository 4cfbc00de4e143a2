"""torch.func on the layers: every result against autograd on PyTorch's own layer, which has no vmap, call by call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import eager_copy
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import cnnlstm_fast
from cnnlstm_fast.recurrent.tracers import stood_aside

N, T, B, I, H = 4, 5, 3, 8, 12

KINDS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "bidirectional": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "projection": {"proj_size": 4, "bias": False},
}


class Pair:
    """A fast layer and PyTorch's own with the same weights."""

    def __init__(self, plain: nn.Module) -> None:
        self.plain, self.fast = plain, cnnlstm_fast.optimize(copy.deepcopy(plain))
        self.weights = {name: p.detach() for name, p in plain.named_parameters()}

    def loss(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(self.fast, weights, (x,))[0].pow(2).sum()

    def gradients(self, weights: dict[str, Tensor], x: Tensor, order: int = 1) -> tuple[Tensor, ...]:
        """Of the loss of the plain layer by x and all weights; for order 2 of the square sum of these gradients."""
        leaves = [t.detach().requires_grad_() for t in (x, *weights.values())]
        given = dict(zip(weights, leaves[1:], strict=True))
        found = functional_call(self.plain, given, (leaves[0],))[0].pow(2).sum()
        for _ in range(order - 1):
            found = sum(g.pow(2).sum() for g in torch.autograd.grad(found, leaves, create_graph=True))
        return torch.autograd.grad(found, leaves)

    def scaled(self) -> dict[str, Tensor]:
        """Weights of N layers."""
        factors = torch.linspace(0.5, 1.5, N)
        return {name: torch.stack([f * w for f in factors]) for name, w in self.weights.items()}


@pytest.fixture(params=[*KINDS, "cell"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(nn.LSTMCell(I, H) if request.param == "cell" else nn.LSTM(I, H, **KINDS[request.param]))


def inputs(pair: Pair) -> Tensor:
    """N inputs of the layer."""
    return torch.randn(N, B, I) if isinstance(pair.plain, nn.LSTMCell) else torch.randn(N, T, B, I)


def stacked(calls: list[Any]) -> list[Tensor]:
    flat = [torch.utils._pytree.tree_leaves(call) for call in calls]
    return [torch.stack(results) for results in zip(*flat, strict=True)]


def close(found: Any, expected: Any) -> None:
    found, expected = torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(expected)
    assert max(t.abs().max() for t in expected) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


class Seen(TorchDispatchMode):
    """The names of the operators that are called, of this package and PyTorch's LSTMs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "lstm" in name or "rnn" in name:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dim", [0, 2, -1])
def test_vmap(pair: Pair, dim: int) -> None:
    x = inputs(pair)
    expected = stacked([pair.plain(one) for one in x])
    close(vmap(pair.fast, in_dims=dim)(x.movedim(0, dim)), expected)
    with torch.no_grad():
        close(vmap(pair.fast)(x), expected)


def test_vmap_runs_as_one_call_of_the_operator(pair: Pair) -> None:
    x = inputs(pair)
    with Seen() as seen:
        vmap(pair.fast)(x)
    assert seen.names == ["cnnlstm_fast.lstm.default"]
    with Seen() as seen:
        vmap(grad(lambda one: pair.fast(one)[0].sum()))(x)
    assert seen.names == ["cnnlstm_fast.lstm.default", "cnnlstm_fast.lstm_backward.default"]
    assert pair.fast not in stood_aside


def test_training_through_vmap(pair: Pair) -> None:
    x = inputs(pair)
    vmap(pair.fast)(x)[0].pow(2).sum().backward()
    for one in x:
        pair.plain(one)[0].pow(2).sum().backward()
    close([p.grad for p in pair.fast.parameters()], [p.grad for p in pair.plain.parameters()])


def test_gradients(pair: Pair) -> None:
    x = inputs(pair)[0]
    weights, of_x = grad(pair.loss, (0, 1))(pair.weights, x)
    close((of_x, *weights.values()), pair.gradients(pair.weights, x))


def test_gradients_of_each_sample(pair: Pair) -> None:
    x = inputs(pair)
    weights, of_x = vmap(grad(pair.loss, (0, 1)), (None, 0))(pair.weights, x)
    close((of_x, *weights.values()), stacked([pair.gradients(pair.weights, one) for one in x]))


def test_gradient_of_a_sum_over_vmap(pair: Pair) -> None:
    x = inputs(pair)
    weights = grad(lambda given: vmap(pair.loss, (None, 0))(given, x).sum())(pair.weights)
    of_x, *each = stacked([pair.gradients(pair.weights, one) for one in x])
    close(list(weights.values()), [g.sum(0) for g in each])
    with Seen() as seen:
        close(grad(lambda many: vmap(pair.loss, (None, 0))(pair.weights, many).sum())(x), of_x)
    assert seen.names == ["cnnlstm_fast.lstm.default", "cnnlstm_fast.lstm_backward.default"]


def test_layers_with_weights_of_their_own(pair: Pair) -> None:
    x, scaled = inputs(pair), pair.scaled()
    layers = [{name: w[n] for name, w in scaled.items()} for n in range(N)]
    close(
        vmap(lambda given, one: functional_call(pair.fast, given, (one,)))(scaled, x),
        stacked([functional_call(pair.plain, given, (one,)) for given, one in zip(layers, x, strict=True)]),
    )
    weights, of_x = vmap(grad(pair.loss, (0, 1)), (0, None))(scaled, x[0])
    close((of_x, *weights.values()), stacked([pair.gradients(given, x[0]) for given in layers]))


def test_gradients_of_gradients(pair: Pair) -> None:
    x = inputs(pair)

    def squares(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        of_weights, of_x = grad(pair.loss, (0, 1))(weights, one)
        return sum((g.pow(2).sum() for g in of_weights.values()), of_x.pow(2).sum())

    weights, of_x = grad(squares, (0, 1))(pair.weights, x[0])
    close((of_x, *weights.values()), pair.gradients(pair.weights, x[0], order=2))
    weights, of_x = vmap(grad(squares, (0, 1)), (None, 0))(pair.weights, x)
    expected = [pair.gradients(pair.weights, one, order=2) for one in x]
    close((of_x, *weights.values()), stacked(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_third_derivatives_of_autograd(kind: str) -> None:
    pair = Pair(nn.LSTM(I, H, **KINDS[kind]))

    def third(layer: nn.Module) -> tuple[Tensor, ...]:
        leaves = [torch.linspace(-1.0, 1.0, T * B * I).view(T, B, I).requires_grad_(), *layer.parameters()]
        found = layer(leaves[0])[0].pow(2).sum()
        for _ in range(2):
            found = sum(g.pow(2).sum() for g in torch.autograd.grad(found, leaves, create_graph=True))
            found = found / found.detach()  # of the same size for each kind
        return torch.autograd.grad(found, leaves)

    close(third(pair.fast), third(pair.plain))


def test_jacobians_in_reverse_mode(pair: Pair) -> None:
    x = inputs(pair)[0]
    found = jacrev(lambda given: pair.fast(given)[0])(x)
    close(found, torch.autograd.functional.jacobian(lambda given: pair.plain(given)[0], x))
    vectorized = torch.autograd.functional.jacobian(lambda given: pair.fast(given)[0], x, vectorize=True)
    close(vectorized, found)

    def squares(layer: nn.Module, given: Tensor) -> Tensor:
        def first(given: Tensor) -> Tensor:
            return layer(given)[0]

        return (
            torch.autograd.functional.jacobian(first, given, create_graph=True, vectorize=True).pow(2).sum()
        )

    leaf = x.clone().requires_grad_()
    of_squares = [torch.autograd.grad(squares(layer, leaf), leaf)[0] for layer in (pair.fast, pair.plain)]
    close(*of_squares)
    pullback = vjp(pair.fast, x)[1]
    seeds = torch.utils._pytree.tree_map(torch.ones_like, pair.plain(x))
    leaf = x.clone().requires_grad_()
    outs = torch.utils._pytree.tree_leaves(pair.plain(leaf))
    close(pullback(seeds), torch.autograd.grad(outs, leaf, [torch.ones_like(o) for o in outs]))


def test_gradients_that_autograd_stacked_reach_weights(pair: Pair) -> None:
    x = inputs(pair)[0]

    def stack(layer: nn.Module) -> tuple[Tensor, ...]:
        output = layer(x)[0]
        seeds = torch.linspace(-1.0, 1.0, 3 * output.numel()).view(3, *output.shape)
        return torch.autograd.grad(output, list(layer.parameters()), seeds, is_grads_batched=True)

    close(stack(pair.fast), stack(pair.plain))


def test_vmap_in_vmap() -> None:
    pair = Pair(nn.LSTM(I, H))
    x = torch.randn(2, N, T, B, I)
    expected = torch.stack([torch.stack([pair.plain(one)[0] for one in many]) for many in x])
    close(vmap(vmap(lambda one: pair.fast(one)[0]))(x), expected)
    close(vmap(vmap(lambda one: pair.fast(one)[0], 1, 1))(x.movedim(1, 2)), expected.movedim(1, 2))


def test_states() -> None:
    pair = Pair(nn.LSTM(I, H))
    x, h, c = torch.randn(T, B, I), torch.randn(1, B, H), torch.randn(N, 1, B, H)
    expected = stacked([pair.plain(x, (h, one)) for one in c])
    close(vmap(lambda one: pair.fast(x, (h, one)))(c), expected)
    found = vmap(grad(lambda one: pair.fast(x, (h, one))[0].pow(2).sum()))(c)
    leaf = c.clone().requires_grad_()
    sum(pair.plain(x, (h, one))[0].pow(2).sum() for one in leaf).backward()
    close(found, leaf.grad)


def test_one_sequence_without_a_batch() -> None:
    pair = Pair(nn.LSTM(I, H))
    x = torch.randn(N, T, I)
    close(vmap(pair.fast)(x), stacked([pair.plain(one) for one in x]))


@pytest.mark.parametrize("own", [False, True], ids=["shared", "of each call"])
def test_lengths_resets_and_cells(own: bool) -> None:
    layer, x = cnnlstm_fast.LSTM(I, H, num_layers=2, bidirectional=True), torch.randn(N, T, B, I)
    lengths = torch.tensor([[5, 2, 0], [1, 5, 3], [0, 0, 5], [4, 4, 4]])
    reset = torch.rand(N, T, B) < 0.3
    if not own:
        lengths, reset = lengths[0], reset[0]

    def run(x: Tensor, lengths: Tensor, reset: Tensor) -> Any:
        return layer(x, lengths=lengths, reset=reset, all_cells=True)

    each = zip(x, lengths if own else [lengths] * N, reset if own else [reset] * N, strict=True)
    dim = 0 if own else None
    close(vmap(run, (0, dim, dim))(x, lengths, reset), stacked([run(*one) for one in each]))
    with pytest.raises(ValueError, match="lengths: expected values from 0 to T=5, got 6"):
        vmap(run, (0, dim, dim))(x, lengths + 1, reset)


def test_packed_sequences() -> None:
    pair = Pair(nn.LSTM(I, H))
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([5, 3, 1]))
    rows = torch.randn(N, *packed.data.shape)

    def run(layer: nn.Module, rows: Tensor) -> Tensor:
        return layer(PackedSequence(rows, packed.batch_sizes))[0].data

    close(vmap(lambda one: run(pair.fast, one))(rows), stacked([run(pair.plain, one) for one in rows]))
    found = grad(lambda one: run(pair.fast, one).pow(2).sum())(rows[0])
    leaf = rows[0].clone().requires_grad_()
    run(pair.plain, leaf).pow(2).sum().backward()
    close(found, leaf.grad)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_dropout(randomness: str) -> None:
    layer = cnnlstm_fast.LSTM(I, H, num_layers=2, dropout=0.5)
    plain, x = eager_copy(layer), torch.randn(T, B, I).expand(2, -1, -1, -1)
    first, second = vmap(lambda one: layer(one)[0], randomness=randomness)(x)
    assert torch.equal(first, second) == (randomness == "same")
    torch.manual_seed(3)
    found = grad(lambda one: layer(one)[0].sum())(x[0])
    torch.manual_seed(3)
    leaf = x[0].clone().requires_grad_()
    plain(leaf)[0].sum().backward()
    close(found, leaf.grad)


@pytest.mark.parametrize("backend", ["cpu", "aten", "reference"])
@pytest.mark.parametrize("recompute", [False, True])
def test_backends(backend: str, recompute: bool) -> None:
    pair, x = Pair(nn.LSTM(I, H)), torch.randn(N, T, B, I)
    cnnlstm_fast.optimize(pair.fast, backend=backend, recompute=recompute)
    weights, of_x = vmap(grad(pair.loss, (0, 1)), (None, 0))(pair.weights, x)
    close((of_x, *weights.values()), stacked([pair.gradients(pair.weights, one) for one in x]))
    close(vmap(pair.fast)(x), stacked([pair.plain(one) for one in x]))


@pytest.mark.parametrize("recompute", [False, True])
def test_vmap_of_the_backward_pass_of_an_eager_call(recompute: bool) -> None:
    pair, x = Pair(nn.LSTM(I, H)), torch.randn(T, B, I, requires_grad=True)
    cnnlstm_fast.optimize(pair.fast, backend="cpu", recompute=recompute)
    seeds = torch.randn(N, T, B, H)

    def run(layer: nn.Module, by: Callable[..., Any]) -> Any:
        leaves = [x, *layer.parameters()]
        output = layer(x)[0]
        return by(lambda seed: torch.autograd.grad(output, leaves, seed, retain_graph=True))(seeds)

    def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda many: stacked([function(one) for one in many])

    close(run(pair.fast, vmap), run(pair.plain, one_by_one))
    output = pair.fast(x)[0]
    together = torch.autograd.grad(output, [x, *pair.fast.parameters()], seeds, is_grads_batched=True)
    close(together, run(pair.plain, one_by_one))


def test_no_grad_inside_of_a_transform_stops_every_gradient() -> None:
    pair, x = Pair(nn.LSTM(I, H)), torch.randn(T, B, I)

    def outer(layer: nn.Module) -> Tensor:
        def inner(given: Tensor) -> Tensor:
            with torch.no_grad():
                kept = layer(given)[0]
            return kept.sum() * given.pow(2).sum()

        return grad(lambda given: grad(inner)(given).pow(2).sum())(x)

    close(outer(pair.fast), outer(pair.plain))


FORWARD_MODE: list[Callable[..., Any]] = [
    lambda layer, x: jvp(lambda given: layer(given)[0], (x,), (torch.ones_like(x),))[1],
    lambda layer, x: jacfwd(lambda given: layer(given)[0])(x),
    lambda layer, x: jacfwd(jacrev(lambda given: layer(given)[0].pow(2).sum()))(x),
]


@pytest.mark.parametrize("run", FORWARD_MODE, ids=["jvp", "jacfwd", "hessian"])
def test_forward_mode_is_pytorchs(run: Callable[..., Any]) -> None:
    """PyTorch has it for projections, and says elsewhere that oneDNN has not."""
    pair, x = Pair(nn.LSTM(I, H, proj_size=4)), torch.randn(3, 2, I)
    close(run(pair.fast, x), run(pair.plain, x))
    assert stood_aside[pair.fast] == {"torch.func.jvp"}
    assert "calls under torch.func.jvp ran as nn.LSTM's" in cnnlstm_fast.explain(pair.fast, x)
    with pytest.raises(NotImplementedError, match="forward AD"):
        run(Pair(nn.LSTM(I, H)).fast, x)


def test_the_function_loses_no_tangents() -> None:
    weights, x = [p.detach() for p in nn.LSTM(I, H).parameters()], torch.randn(T, B, I)

    def run(given: Tensor) -> Tensor:
        return cnnlstm_fast.lstm(given, None, weights)[0]

    with pytest.raises(NotImplementedError, match="forward mode AD"):
        jvp(run, (x,), (torch.ones_like(x),))
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled), forward_ad.dual_level():
            run(x)  # nothing that has a tangent
            with pytest.raises(NotImplementedError, match="forward mode AD"):
                run(forward_ad.make_dual(x, torch.ones_like(x)))
    leaf = x.clone().requires_grad_()
    output = run(leaf)
    with forward_ad.dual_level():
        seed = forward_ad.make_dual(torch.ones_like(output), torch.ones_like(output))
        with pytest.raises(NotImplementedError, match="forward mode AD"):
            torch.autograd.grad(output, leaf, seed)


def test_functionalize_is_pytorchs() -> None:
    pair, x = Pair(nn.LSTM(I, H)), torch.randn(T, B, I)
    close(functionalize(pair.fast)(x), pair.plain(x))
    assert stood_aside[pair.fast] == {"torch.func.functionalize"}
