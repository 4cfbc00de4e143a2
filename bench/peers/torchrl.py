"""TorchRL's LSTMModule with its Triton kernels, which reset the state at the start of an episode."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..cases import Case
from ..measure.jobs import Inputs, Job, States, arguments
from .base import Peer, first_reason


def _supports(case: Case, mode: str, dtype: str, device: str) -> str | None:
    return first_reason(
        (device != "cuda", "its Triton kernels run on CUDA only"),
        (dtype != "f32", "its kernels take float32 tensors only"),
        (bool(case.model), "set up for the layer alone"),
        (case.T == 0, "it rejects sequences without steps"),
        (case.bidirectional, "its Triton kernels have one direction"),
        (case.proj_size > 0, "its Triton kernels have no projections"),
        (case.lengths is not None, "it has no lengths"),
    )


def _prepare(precision: str, case: Case, inputs: Inputs, mode: str, dtype: str) -> Job:
    from torchrl.modules import LSTMModule

    lstm = nn.LSTM(**arguments(case), batch_first=True).to(inputs.h0)
    lstm.load_state_dict(inputs.weights)
    module = LSTMModule(
        lstm=lstm,
        in_key="x",
        out_key="output",
        recurrent_backend="triton",
        recurrent_matmul_precision=precision,
        default_recurrent_mode=True,
    )
    reset = inputs.h0.new_zeros(case.T, case.B).bool() if inputs.reset is None else inputs.reset
    forward = partial(_forward, module, reset.t().contiguous())
    # its layout is batch-first: store the data that way, so that no copy is timed
    x, grad_output = (_batch_first_in_memory(t) for t in (inputs.x, inputs.grad_output))
    return Job(lstm, forward, replace(inputs, x=x, grad_output=grad_output), mode, case.states)


def _forward(module: Any, begins: Tensor, x: Tensor, hx: States | None) -> tuple[Tensor, States]:
    """``begins`` (B, T) marks the resets; they take effect through the zero states that are passed for every step."""
    from tensordict import TensorDict

    data = {"x": x.transpose(0, 1), "is_init": begins.unsqueeze(-1)}
    if hx is not None:
        at_start = ~begins[:, :1, None, None]
        data |= {
            f"recurrent_state_{name}": nn.functional.pad(
                state.transpose(0, 1).unsqueeze(1) * at_start, (0, 0, 0, 0, 0, begins.size(1) - 1)
            )
            for name, state in zip("hc", hx, strict=True)
        }
    found = module(TensorDict(data, batch_size=begins.shape))
    h_n, c_n = (found["next", f"recurrent_state_{name}"][:, -1].transpose(0, 1) for name in "hc")
    return found["output"].transpose(0, 1), (h_n, c_n)


def _batch_first_in_memory(t: Any) -> Tensor:
    return t.transpose(0, 1).contiguous().transpose(0, 1)


FLOAT = Peer(
    "torchrl",
    "TorchRL's LSTMModule, Triton backend",
    modules=("torchrl", "triton"),
    pip="torchrl triton",
    supports=_supports,
    prepare=partial(_prepare, "ieee"),
)
TF32 = Peer(
    "torchrl-tf32",
    "TorchRL's LSTMModule, Triton backend, TF32 products",
    modules=("torchrl", "triton"),
    pip="torchrl triton",
    supports=_supports,
    prepare=partial(_prepare, "tf32"),
    precision="tf32",
)
