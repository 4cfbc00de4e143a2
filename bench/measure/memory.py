"""``python -m bench.measure.memory``: memory kept for the backward pass, and the cost of recompute."""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import cnnlstm_fast
from cnnlstm_fast.timing import interleave, median_ratio

SHAPES = [  # T, B, I, H, layers, directions
    (100, 32, 64, 128, 1, 1),
    (26, 32, 512, 256, 2, 2),
    (128, 64, 128, 128, 1, 1),
    (16, 8, 512, 256, 2, 1),
]


def saved(forward: Callable[[], Any], held: Iterable[Tensor]) -> int:
    """Bytes of the tensors that autograd saves, without the results and the tensors that the caller holds.

    Args:
        held: the caller's tensors: input, states, parameters.
    """
    storages: dict[int, int] = {}
    kept: list[Tensor] = []  # keeps them alive, so that no address is reused

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach())
        storages.update(_storages([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        results = forward()
    known = _storages(_tensors(results)) | _storages(held)
    return sum(size for address, size in storages.items() if address not in known)


def allocated(forward: Callable[[], Any]) -> int:
    """Growth of glibc's heap in bytes, without the results: all memory that stays allocated, Python objects included.

    Raises:
        OSError, AttributeError: the C library is not glibc 2.33 or later.
    """
    before = _heap()
    results = forward()
    return _heap() - before - sum(_storages(_tensors(results)).values())


class _MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _heap() -> int:
    gc.collect()
    mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo2.restype = _MallInfo
    info = mallinfo2()
    return info.uordblks + info.hblkhd


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, (tuple, list)):  # a PackedSequence, too
        return [tensor for value in values for tensor in _tensors(value)]
    return [values] if isinstance(values, Tensor) else []


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    found = [t.untyped_storage() for t in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def layers(shape: tuple[int, ...], dtype: torch.dtype, packed: bool) -> tuple[dict[str, nn.Module], Any]:
    """PyTorch's layer and ours, of one of ``SHAPES``, and an input for them."""
    T, B, I, H, L, D = shape
    arguments: dict[str, Any] = dict(
        input_size=I, hidden_size=H, num_layers=L, bidirectional=D == 2, dtype=dtype
    )
    x: Any = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
    if packed:
        rows = pack_padded_sequence(x.detach(), torch.linspace(T, T // 2, B).long())
        x = PackedSequence(rows.data.requires_grad_(), rows.batch_sizes)
    made = {
        "PyTorch": nn.LSTM(**arguments),
        "cpu": cnnlstm_fast.LSTM(**arguments, backend="cpu"),
        "cpu, recompute": cnnlstm_fast.LSTM(**arguments, backend="cpu", recompute=True),
    }
    return made, x


def kept(layer: nn.Module, x: Any) -> tuple[int, int]:
    """Bytes that the layer keeps for its backward pass, by ``saved`` and by ``allocated``."""
    layer(x)  # a first call may allocate memory that stays
    return saved(lambda: layer(x), _tensors((x, *layer.parameters()))), allocated(lambda: layer(x))


def step(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward pass."""
    return torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.measure.memory", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="to time each shape (%(default)s)")
    seconds = parser.parse_args().seconds
    print("MiB kept for the backward pass: by autograd's saved tensors (by the heap)")
    for shape, dtype, packed in itertools.product(SHAPES, (torch.float32, torch.bfloat16), (False, True)):
        made, x = layers(shape, dtype, packed)
        found = {name: [size / 2**20 for size in kept(layer, x)] for name, layer in made.items()}
        texts = [f"{name}: {by_saved:.2f} ({by_heap:.2f})" for name, (by_saved, by_heap) in found.items()]
        print(shape, str(dtype).removeprefix("torch."), "packed" if packed else "padded", *texts, sep="  ")
    print("Milliseconds of a training step in float32, median; ratio: time with recompute / without")
    for shape in SHAPES:
        made, x = layers(shape, torch.float32, False)
        times = interleave({name: partial(step, layer, x) for name, layer in made.items()}, seconds)
        texts = [f"{name}: {statistics.median(t) * 1e3:.2f}" for name, t in times.items()]
        ratio = median_ratio(times["cpu, recompute"], times["cpu"])
        print(shape, *texts, f"ratio {ratio:.2f}, {len(times['cpu'])} rounds", sep="  ")


if __name__ == "__main__":
    main()
