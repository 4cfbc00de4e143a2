"""A case's inputs and the jobs that run on them. The accuracy check and the timing call the same code."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import cnnlstm_fast
from cnnlstm_fast.recurrent.backends import first_use

from ..cases import Case
from ..models import make

States = tuple[Tensor, Tensor]
Forward = Callable[[Tensor | PackedSequence, States | None], tuple[Tensor | PackedSequence, States]]


@dataclass(frozen=True)
class Inputs:
    """The inputs of a case for all candidates, in one dtype. D directions, P = proj_size or H, N rows of a packed
    sequence."""

    x: Tensor | PackedSequence  # (T, B, I), or rows (N, I)
    lengths: Tensor | None  # (B,), also where x is packed
    reset: Tensor | None  # bool (T, B)
    h0: Tensor  # (L*D, B, P)
    c0: Tensor  # (L*D, B, H)
    weights: dict[str, Tensor]  # state dict of nn.LSTM
    grad_output: Tensor  # (T, B, D*P) or (N, D*P)
    grad_h_n: Tensor
    grad_c_n: Tensor

    def to(self, dtype: torch.dtype, device: str | torch.device | None = None) -> Inputs:
        def move(t: Any) -> Any:
            return t.to(device=device, dtype=dtype)

        return Inputs(
            move(self.x),
            None if self.lengths is None else self.lengths.to(device),
            None if self.reset is None else self.reset.to(device),
            move(self.h0),
            move(self.c0),
            {name: move(weight) for name, weight in self.weights.items()},
            move(self.grad_output),
            move(self.grad_h_n),
            move(self.grad_c_n),
        )


@dataclass(frozen=True)
class ModelInputs:
    """The same for a whole model, or for an encoder alone."""

    module: nn.Module
    x: tuple[Tensor, ...]  # the model's arguments
    more: list[tuple[Tensor, ...]]  # other arguments of the same shapes, on which results are compared, too

    def to(self, dtype: torch.dtype, device: str | torch.device | None = None) -> ModelInputs:
        def move(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(t.to(device, dtype if t.is_floating_point() else None) for t in tensors)

        module = copy.deepcopy(self.module).to(device=device, dtype=dtype)
        return ModelInputs(module, move(self.x), [move(tensors) for tensors in self.more])


def build(case: Case, dtype: torch.dtype, device: str = "cpu") -> Inputs | ModelInputs:
    """Random data, seeded by the case's name; the same numbers, rounded, in every dtype."""
    seed = zlib.crc32(case.name.encode())
    if case.model:
        module, (first, *more) = make(case.model, case.T, case.B, seed)
        return ModelInputs(module, first, more).to(dtype, device)
    D, P = case.directions, case.proj_size or case.H
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
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
            reset=torch.rand(case.T, case.B) < case.resets if case.resets else None,
            h0=torch.randn(*states, P),
            c0=torch.randn(*states, case.H),
            weights=dict((_cell(case) if case.cell else nn.LSTM(**arguments(case))).state_dict()),
            grad_output=torch.randn(*rows, D * P),
            grad_h_n=torch.randn(*states, P),
            grad_c_n=torch.randn(*states, case.H),
        ).to(dtype, device)


@dataclass
class Job:
    """One candidate with a case's inputs, ready to run repeatedly.

    Args:
        states: pass h0 and c0, and let the loss depend on the final states; otherwise on the output alone.
        amp: under autocast to bfloat16.
    """

    module: nn.LSTM | nn.LSTMCell
    forward: Forward
    inputs: Inputs
    mode: str
    states: bool
    amp: bool = False

    def __post_init__(self) -> None:
        training = self.mode == "training"
        self.module.train(training)
        x = self.inputs.x
        given = {"input": x.data if isinstance(x, PackedSequence) else x}
        if self.states:
            given |= {"h0": self.inputs.h0, "c0": self.inputs.c0}
        # the job's own leaves, which hold the gradients; clone() keeps the strides
        self._leaves = {name: tensor.clone().requires_grad_(training) for name, tensor in given.items()}
        self._x: Tensor | PackedSequence = self._leaves["input"]
        if isinstance(x, PackedSequence):
            self._x = PackedSequence(self._x, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        self._hx = (self._leaves["h0"], self._leaves["c0"]) if self.states else None

    def __call__(self) -> tuple[Tensor | PackedSequence, States]:
        """The timed call."""
        if self.mode == "inference":
            with torch.no_grad(), autocast(self.amp, self.inputs.h0.device):
                return self.forward(self._x, self._hx)
        self.module.zero_grad(set_to_none=True)
        for leaf in self._leaves.values():
            leaf.grad = None
        with autocast(self.amp, self.inputs.h0.device):
            output, (h_n, c_n) = self.forward(self._x, self._hx)
        outputs = [output.data if isinstance(output, PackedSequence) else output]
        grads = [self.inputs.grad_output]
        if self.states:
            outputs += [h_n, c_n]
            grads += [self.inputs.grad_h_n, self.inputs.grad_c_n]
        pairs = [
            (out, grad.to(out.dtype)) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad
        ]
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


def autocast(amp: bool, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if amp else nullcontext()


@dataclass
class ModelJob:
    """A whole model with its inputs.

    Args:
        forward: what is called: the module itself, or a compiled form of it.
    """

    module: nn.Module
    forward: Callable[..., Any]
    inputs: ModelInputs
    mode: str
    amp: bool = False

    def __call__(self) -> list[Tensor]:
        """The timed call: the outputs, and in training the gradients of half their mean squares."""
        return self._run(self.inputs.x)

    def results(self) -> dict[str, Tensor]:
        """The outputs on all inputs; in training those of one run and the gradients of all parameters."""
        if self.mode == "inference":
            return on_all_inputs(self._run, self.inputs)
        found = {f"output {k}": output.detach() for k, output in enumerate(self())}
        for name, p in self.module.named_parameters():
            found[f"gradient of {name}"] = torch.zeros_like(p) if p.grad is None else p.grad
        return found

    def _run(self, x: tuple[Tensor, ...]) -> list[Tensor]:
        training = self.mode == "training"
        with torch.set_grad_enabled(training), autocast(self.amp, x[0].device):
            outputs = flat(self.forward(*x))
        if training:
            self.module.zero_grad(set_to_none=True)
            torch.autograd.backward(outputs, [output.detach() / output.numel() for output in outputs])
        return outputs


def flat(outputs: Any) -> list[Tensor]:
    """The tensors of a model's outputs, which may be nested."""
    return [outputs] if isinstance(outputs, Tensor) else [tensor for part in outputs for tensor in flat(part)]


def on_all_inputs(
    run: Callable[[tuple[Tensor, ...]], Iterable[Tensor]], inputs: ModelInputs
) -> dict[str, Tensor]:
    """The outputs by number, each stacked over all inputs. ``run`` may write to the same memory in every call."""
    runs = ([output.clone() for output in run(x)] for x in (inputs.x, *inputs.more))
    return {f"output {k}": torch.stack(outputs) for k, outputs in enumerate(zip(*runs, strict=True))}


def fast_job(
    case: Case,
    inputs: Inputs | ModelInputs,
    mode: str,
    backend: str,
    states: bool | None = None,
    amp: bool = False,
) -> Job | ModelJob:
    """cnnlstm_fast.LSTM with the named backend, or "auto", or the model after ``optimize``; ``states`` defaults to the
    case's."""
    first_use.renew()  # each call stands for a program of its own
    if isinstance(inputs, ModelInputs):
        return _optimized(case, inputs, mode, backend, amp)
    if case.cell:
        cell = _with_weights(cnnlstm_fast.optimize(_cell(case), backend=backend), inputs)
        return Job(cell, partial(_steps, cell), inputs, mode, case.states if states is None else states, amp)
    module = _with_weights(cnnlstm_fast.LSTM(**arguments(case), backend=backend), inputs)
    kwargs = {} if case.lengths is None or case.packed else {"lengths": inputs.lengths}
    if inputs.reset is not None:
        kwargs["reset"] = inputs.reset
    states = case.states if states is None else states
    return Job(module, lambda x, hx: module(x, hx, **kwargs), inputs, mode, states, amp)


def _optimized(case: Case, inputs: ModelInputs, mode: str, backend: str, amp: bool) -> ModelJob:
    """The model as this package's users run it: in inference in bfloat16 without autocast, by ``precision``."""
    module = model(case, inputs, mode)
    precision = "bf16" if amp and mode == "inference" else None
    cnnlstm_fast.optimize(module, inputs.x, backend=backend, precision=precision)
    return ModelJob(module, module, inputs, mode, amp and precision is None)


def model(case: Case, inputs: ModelInputs, mode: str) -> nn.Module:
    """A copy of the model, in training or evaluation mode, whose dropouts have the case's rate. Its Parameters are the
    same: copies would count as the candidate's memory."""
    shared = {id(p): p for p in inputs.module.parameters()}
    module = copy.deepcopy(inputs.module, shared).train(mode == "training")
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = case.dropout
    return module


def pytorch_job(
    case: Case,
    inputs: Inputs | ModelInputs,
    mode: str,
    states: bool | None = None,
    amp: bool = False,
) -> Job | ModelJob:
    """nn.LSTM as its users call it: for lengths, packing before and padding after it; for resets, one call for each
    stretch of steps between two of them. Or the unchanged model."""
    if isinstance(inputs, ModelInputs):
        module = model(case, inputs, mode)
        return ModelJob(module, module, inputs, mode, amp)
    module = _with_weights(_cell(case) if case.cell else nn.LSTM(**arguments(case)), inputs)
    forward: Forward
    if case.cell:
        forward = partial(_steps, module)
    elif inputs.reset is not None:
        forward = partial(_stretches, module, inputs.reset)
    elif inputs.lengths is None or case.packed:
        forward = module
    elif case.empty:
        forward = partial(_packed_without_empty, module, inputs.lengths)
    else:
        forward = partial(_packed, module, inputs.lengths)
    return Job(module, forward, inputs, mode, case.states if states is None else states, amp)


def oracle_job(
    case: Case, inputs: Inputs | ModelInputs, mode: str, states: bool | None = None
) -> Job | ModelJob:
    """cnnlstm_fast.recurrent.reference, or the unchanged model, in float64 on the same rounded inputs."""
    exact = inputs.to(torch.float64)
    if isinstance(exact, ModelInputs):
        return pytorch_job(case, exact, mode)
    return fast_job(case, exact, mode, "reference", states)


def runs_in_pytorch(case: Case) -> bool:
    """nn.LSTM rejects sequences without steps."""
    return case.T > 0


def _steps(cell: nn.LSTMCell, x: Any, hx: States | None) -> tuple[Tensor, States]:
    """The loop in which models call a cell."""
    state, output = None if hx is None else (hx[0][0], hx[1][0]), []
    for step in x:
        state = cell(step, state)
        output.append(state[0])
    assert state is not None
    return torch.stack(output), (state[0][None], state[1][None])


def _cell(case: Case) -> nn.LSTMCell:
    return nn.LSTMCell(case.I, case.H)


def _stretches(lstm: nn.LSTM, reset: Tensor, x: Any, hx: States | None) -> tuple[Tensor, States]:
    """One call for the steps from a reset in any sequence to the next one, as recurrent policies are trained."""
    if hx is None:
        shape = (lstm.num_layers, x.size(1), lstm.hidden_size)
        hx = (x.new_zeros(shape), x.new_zeros(shape))
    starts = [0, *(t for t in reset.any(1).nonzero().squeeze(1).tolist() if t > 0), x.size(0)]
    outputs = []
    for start, end in pairwise(starts):
        keep = (~reset[start]).to(x.dtype)[None, :, None]
        output, hx = lstm(x[start:end], (hx[0] * keep, hx[1] * keep))
        outputs.append(output)
    return torch.cat(outputs), hx


def _packed(lstm: nn.LSTM, lengths: Tensor, x: Any, hx: States | None) -> tuple[Tensor, States]:
    packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
    output, states = lstm(packed, hx)
    return pad_packed_sequence(output, total_length=x.size(0))[0], states


def _packed_without_empty(lstm: nn.LSTM, lengths: Tensor, x: Any, hx: States | None) -> tuple[Tensor, States]:
    """Packing rejects sequences of length zero: they are removed before it and put back after it."""
    rows, B = lengths.nonzero().squeeze(1), lengths.numel()

    def put_back(part: Tensor, full: Tensor | None) -> Tensor:
        full = part.new_zeros(part.size(0), B, part.size(2)) if full is None else full
        return full.to(part.dtype).index_copy(1, rows, part)  # autocast narrows what it computes

    h0, c0 = hx or (None, None)
    taken = None if h0 is None or c0 is None else (h0[:, rows], c0[:, rows])
    output, (h_n, c_n) = _packed(lstm, lengths[rows], x[:, rows], taken)
    return put_back(output, None), (put_back(h_n, h0), put_back(c_n, c0))


def arguments(case: Case) -> dict[str, Any]:
    return {
        "input_size": case.I,
        "hidden_size": case.H,
        "num_layers": case.layers,
        "bidirectional": case.bidirectional,
        "proj_size": case.proj_size,
        "dropout": case.dropout,
    }


def _with_weights(module: Any, inputs: Inputs) -> Any:
    weight = next(iter(inputs.weights.values()))
    module.to(device=weight.device, dtype=weight.dtype)
    module.load_state_dict(inputs.weights)
    return module
