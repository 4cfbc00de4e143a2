"""Regions of small networks, for the tests of the encoder's engines."""

from __future__ import annotations

from torch import Tensor, nn

from cnnlstm_fast.encoder.capture import capture
from cnnlstm_fast.encoder.region import Region
from cnnlstm_fast.encoder.regions import build_region, cut


def regions_of(network: nn.Module, *inputs: Tensor) -> list[Region]:
    """The regions of a network in eval mode, captured on these inputs."""
    captured = capture(network.eval(), inputs, {})
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    found = {name: tensors[path] for name, path in captured.weights.items()} | captured.constants
    return [build_region(str(k), graph, found) for k, graph in enumerate(cut(captured).regions)]
