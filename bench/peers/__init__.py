"""The peers: other ways to run an LSTM or a whole model, which the benchmark compares with this package.

To add one: a file in this folder that defines a ``Peer``, and a line in ``PEERS``.
"""

from __future__ import annotations

from . import onnxruntime, openvino, pytorch, torch_ao, torch_compile, torchrl
from .base import Peer

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        pytorch.EAGER,
        pytorch.TF32,
        torch_compile.PEER,
        torch_compile.FROZEN,
        onnxruntime.FLOAT,
        onnxruntime.INT8,
        openvino.PEER,
        torch_ao.PEER,
        torchrl.FLOAT,
        torchrl.TF32,
    )
}
