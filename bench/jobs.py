"""A case's inputs, and the candidates that run on them: the gate and the timing call the same code."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import cnnlstm_fast

from .cases import Case

States = tuple[Tensor, Tensor]
Forward = Callable[[Tensor | PackedSequence, States | None], tuple[Tensor | PackedSequence, States]]


@dataclass(frozen=True)
class Inputs:
    """What all candidates of a case get, in one dtype. D directions, P = proj_size or H, N rows of a packed
    sequence."""

    x: Tensor | PackedSequence  # (T, B, I), or rows (N, I)
    lengths: Tensor | None  # (B,), also where x is packed
    h0: Tensor  # (L*D, B, P)
    c0: Tensor  # (L*D, B, H)
    weights: dict[str, Tensor]  # state dict of nn.LSTM
    grad_output: Tensor  # (T, B, D*P) or (N, D*P)
    grad_h_n: Tensor
    grad_c_n: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(
            self.x.to(dtype),
            self.lengths,
            self.h0.to(dtype),
            self.c0.to(dtype),
            {name: weight.to(dtype) for name, weight in self.weights.items()},
            self.grad_output.to(dtype),
            self.grad_h_n.to(dtype),
            self.grad_c_n.to(dtype),
        )


def build(case: Case, dtype: torch.dtype) -> Inputs:
    """Random data from a seed of the case's own; the same numbers, rounded, in every dtype."""
    D, P = 1 + case.bidirectional, case.proj_size or case.H
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(case.name.encode()))
        lengths = None
        if case.lengths is not None:
            low, high = (share * case.T for share in case.lengths)
            spread = torch.linspace(low, high, case.B - case.empty).round().long()
            lengths = torch.cat([spread, spread.new_zeros(case.empty)])[torch.randperm(case.B)]
        x: Any
        if case.strided:
            x = torch.randn(case.B, case.I, 1, case.T).squeeze(2).permute(2, 0, 1)
        else:
            x = torch.randn(case.T, case.B, case.I)
        rows: tuple[int, ...] = (case.T, case.B)
        if case.packed:
            assert lengths is not None
            x = pack_padded_sequence(x, lengths, enforce_sorted=False)
            rows = (x.data.size(0),)
        states = (case.layers * D, case.B)
        return Inputs(
            x=x,
            lengths=lengths,
            h0=torch.randn(*states, P),
            c0=torch.randn(*states, case.H),
            weights=dict(nn.LSTM(**_arguments(case)).state_dict()),
            grad_output=torch.randn(*rows, D * P),
            grad_h_n=torch.randn(*states, P),
            grad_c_n=torch.randn(*states, case.H),
        ).to(dtype)


@dataclass
class Job:
    """One candidate with a case's inputs, ready to be run again and again.

    Args:
        states: hand in h0 and c0, and let the loss depend on the final states; without it on the output alone.
    """

    module: nn.LSTM
    forward: Forward
    inputs: Inputs
    mode: str
    states: bool

    def __post_init__(self) -> None:
        training = self.mode == "training"
        self.module.train(training)
        x = self.inputs.x
        given = {"input": x.data if isinstance(x, PackedSequence) else x}
        if self.states:
            given |= {"h0": self.inputs.h0, "c0": self.inputs.c0}
        # leaves of the job's own, for it to keep gradients in; a clone keeps the strides
        self._leaves = {name: tensor.clone().requires_grad_(training) for name, tensor in given.items()}
        self._x: Tensor | PackedSequence = self._leaves["input"]
        if isinstance(x, PackedSequence):
            self._x = PackedSequence(self._x, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        self._hx = (self._leaves["h0"], self._leaves["c0"]) if self.states else None

    def __call__(self) -> tuple[Tensor | PackedSequence, States]:
        """What is timed."""
        if self.mode == "inference":
            with torch.no_grad():
                return self.forward(self._x, self._hx)
        self.module.zero_grad(set_to_none=True)
        for leaf in self._leaves.values():
            leaf.grad = None
        output, (h_n, c_n) = self.forward(self._x, self._hx)
        outputs = [output.data if isinstance(output, PackedSequence) else output]
        grads = [self.inputs.grad_output]
        if self.states:
            outputs += [h_n, c_n]
            grads += [self.inputs.grad_h_n, self.inputs.grad_c_n]
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
        torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])
        return output, (h_n, c_n)

    def results(self) -> dict[str, Tensor]:
        """Runs once: the outputs and, in training, all gradients; a gradient that autograd left out is zero."""
        output, (h_n, c_n) = self()
        output = output.data if isinstance(output, PackedSequence) else output
        found = {"output": output.detach(), "h_n": h_n.detach(), "c_n": c_n.detach()}
        if self.mode == "training":
            for name, leaf in (*self._leaves.items(), *self.module.named_parameters()):
                found[f"gradient of {name}"] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return found


def fast_job(case: Case, inputs: Inputs, mode: str, backend: str, states: bool | None = None) -> Job:
    """cnnlstm_fast.LSTM with the named backend, or "auto"; ``states`` as the case has it unless given."""
    module = _with_weights(cnnlstm_fast.LSTM(**_arguments(case), backend=backend), inputs)
    kwargs = {} if case.lengths is None or case.packed else {"lengths": inputs.lengths}
    states = case.states if states is None else states
    return Job(module, lambda x, hx: module(x, hx, **kwargs), inputs, mode, states)


def pytorch_job(case: Case, inputs: Inputs, mode: str, states: bool | None = None) -> Job:
    """Plain nn.LSTM in the way its users call it: lengths mean packing before it and padding after it."""
    module = _with_weights(nn.LSTM(**_arguments(case)), inputs)
    forward: Forward
    if inputs.lengths is None or case.packed:
        forward = module
    elif case.empty:
        forward = partial(_packed_but_empty, module, inputs.lengths)
    else:
        forward = partial(_packed, module, inputs.lengths)
    return Job(module, forward, inputs, mode, case.states if states is None else states)


def oracle_job(case: Case, inputs: Inputs, mode: str, states: bool | None = None) -> Job:
    """cnnlstm_fast.reference in float64 on the same rounded inputs."""
    return fast_job(case, inputs.to(torch.float64), mode, "reference", states)


def runs_in_pytorch(case: Case) -> bool:
    """nn.LSTM refuses sequences of no steps."""
    return case.T > 0


def _packed(lstm: nn.LSTM, lengths: Tensor, x: Any, hx: States | None) -> tuple[Tensor, States]:
    packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    output, states = lstm(packed, hx)
    return pad_packed_sequence(output, total_length=x.size(0))[0], states


def _packed_but_empty(lstm: nn.LSTM, lengths: Tensor, x: Any, hx: States | None) -> tuple[Tensor, States]:
    """Packing refuses sequences of length zero, so they are left out and put back."""
    rows, B = lengths.nonzero().squeeze(1), lengths.numel()

    def put_back(part: Tensor, full: Tensor | None) -> Tensor:
        full = part.new_zeros(part.size(0), B, part.size(2)) if full is None else full
        return full.index_copy(1, rows, part)

    h0, c0 = hx or (None, None)
    taken = None if h0 is None or c0 is None else (h0[:, rows], c0[:, rows])
    output, (h_n, c_n) = _packed(lstm, lengths[rows], x[:, rows], taken)
    return put_back(output, None), (put_back(h_n, h0), put_back(c_n, c0))


def _arguments(case: Case) -> dict[str, Any]:
    return {
        "input_size": case.I,
        "hidden_size": case.H,
        "num_layers": case.layers,
        "bidirectional": case.bidirectional,
        "proj_size": case.proj_size,
    }


def _with_weights(module: Any, inputs: Inputs) -> Any:
    module.to(next(iter(inputs.weights.values())).dtype)
    module.load_state_dict(inputs.weights)
    return module
