"""A region as an ONNX model, for the engines that read one."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from ..._version import __version__
from ..agreement import first_line
from ..operator_call import arguments, numbers
from ..region import Region
from . import onnx_files

_LEGACY_EXPORTER = "torch.onnx._internal.torchscript_exporter"
_OPSET = 18
"""The oldest one of both exporters: ONNX Runtime has no fast kernel for the AveragePool of opset 19 and later (LeNet-5
takes 360 us with it, else 208)."""

_lock = threading.Lock()  # the exporter's settings are global
_last: tuple[weakref.ref[Region], str, bytes] | None = None
"""The region that was exported last, a digest of its weights at that time, and its model."""


def onnx_model(region: Region, example: tuple[Tensor, ...]) -> bytes:
    """The region with its weights as an ONNX model, whose inputs and outputs are named by ``names``.

    The sizes that vary in ``region.inputs`` are left open as far as the exporter can: a caller must run the result at
    other sizes. The last model is kept for as long as its region lives, so that two engines share one export, and on
    disk.

    Raises:
        RuntimeError: an operator has no counterpart in ONNX.
    """
    global _last
    with _lock:
        digest = _digest(region)
        if _last is not None and _last[0]() is region and _last[1] == digest:
            return _last[2]
        _last = None  # before the next one is made: a model is as large as its weights
        model = onnx_files.load(digest)
        if model is None:
            model = _export(region, example)
            onnx_files.store(digest, model)
        _last = weakref.ref(region, _forget), digest, model
        return model


def names(region: Region) -> tuple[list[str], list[str]]:
    """The names of the inputs and of the outputs."""
    return [f"x{k}" for k in range(len(region.inputs))], [f"y{k}" for k in range(len(region.outputs))]


def other_float(region: Region) -> torch.dtype | None:
    """The dtype of a tensor of the region that is of floating point, but not float32."""
    dtypes = {spec.dtype for spec in (*region.inputs, *region.outputs)} | {
        t.dtype for t in region.weights().values()
    }
    return next((dtype for dtype in dtypes if dtype.is_floating_point and dtype != torch.float32), None)


def _forget(region: weakref.ref[Region]) -> None:
    global _last
    last = _last  # without the lock, which the thread that runs this may hold
    if last is not None and last[0] is region:
        _last = None


def _digest(region: Region) -> str:
    """Of all that the model depends on, the contents of the weights included, since some edits change no version."""
    code = f"{__version__} {torch.__version__} {_OPSET} {region.inputs} {region.module.code}"
    found = hashlib.sha256(code.encode())
    for name, tensor in region.weights().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _export(region: Region, example: tuple[Tensor, ...]) -> bytes:
    # it takes a tenth of the other's time, and no package but onnx
    export = _by_trace if importlib.util.find_spec(_LEGACY_EXPORTER) else _by_dynamo
    try:
        with warnings.catch_warnings(), _no_log(), torch.no_grad():
            warnings.simplefilter("ignore")
            return export(region, example)
    except Exception as error:
        raise RuntimeError(f"no ONNX model: {first_line(error)}") from error


@contextmanager
def _no_log() -> Iterator[None]:
    """The exporter prints the whole graph of what it cannot translate. It turns its own switch for that on again, and
    so its function is replaced."""
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *args: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = log


def _by_trace(region: Region, example: tuple[Tensor, ...]) -> bytes:
    inputs, outputs = names(region)
    buffer: Any = io.BytesIO()
    torch.onnx.export(
        torch.jit.trace(_traceable(region.module), example, check_trace=False),
        example,
        buffer,
        dynamo=False,
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=dict(zip(inputs, _open(region), strict=True)),
        opset_version=_OPSET,
    )
    return buffer.getvalue()


def _by_dynamo(region: Region, example: tuple[Tensor, ...]) -> bytes:
    inputs, outputs = names(region)
    dims = tuple({d: torch.export.Dim.DYNAMIC for d in found} for found in _open(region))
    program = torch.onnx.export(
        region.module,
        example,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=dims,
        opset_version=_OPSET,
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def _traceable(module: fx.GraphModule) -> fx.GraphModule:
    """The module in calls with which ``torch.jit.trace`` follows sizes: ``tensor.size(d)``, and PyTorch's own functions
    in the place of operators that take a size, since a call of an operator turns sizes into numbers."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        new = copied[node] = graph.node_copy(node, copied.__getitem__)
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if (pool := _pooled_row(node)) is not None:
            source, *window, ceil_mode = pool
            new.target = torch.max_pool1d
            new.args = (copied[source], *window, ceil_mode)
            continue
        if node.target is torch.ops.aten.sym_size.int:
            new.op, new.target = "call_method", "size"
        elif node.target is torch.ops.aten.unflatten.int:
            new.op, new.target, new.args = (
                "call_method",
                "reshape",
                (new.args[0], _unflattened(graph, node, new)),
            )
        elif node.target is torch.ops.aten.slice.Tensor:
            given = arguments(new)
            new.target, new.args, new.kwargs = _sliced, tuple(given.values()), {}
        elif any("size" in n.meta or n.target is torch.ops.aten.sym_size.int for n in node.all_input_nodes):
            name = node.target._schema.name.removeprefix("aten::")
            homes = (home for home in (torch.Tensor, torch, torch._C._nn) if hasattr(home, name))
            new.target = getattr(next(homes, torch.ops.aten), name)
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)


def _sliced(tensor: Tensor, dim: int, start: Any, end: Any, step: int) -> Tensor:
    """``aten.slice``, which PyTorch offers as indexing alone."""
    places = [slice(None)] * tensor.dim()
    places[dim] = slice(start, end, step)
    return tensor[tuple(places)]


def _pooled_row(node: fx.Node) -> tuple[Any, ...] | None:
    """The arguments of ``max_pool1d`` where the node is the end of one that was captured as a 2-D pooling of a single
    row (``any_size``), else None. Engines that keep channels in blocks change the layout for each of those squeezes."""
    if node.target is not torch.ops.aten.squeeze.dim or node.args[1] != -2:
        return None
    pool = node.args[0]
    assert isinstance(pool, fx.Node)
    if pool.target is not torch.ops.aten.max_pool2d.default:
        return None
    given = arguments(pool)
    windows = [given[name] for name in ("kernel_size", "stride", "padding", "dilation")]
    if not all(numbers(window, 2)[0] == other for window, other in zip(windows, (1, 1, 0, 1), strict=True)):
        return None
    row = given["self"]
    if row.target is not torch.ops.aten.unsqueeze.default or row.args[1] != -2:
        return None
    return (row.args[0], *(numbers(window, 2)[1:] for window in windows), given["ceil_mode"])


def _unflattened(graph: fx.Graph, node: fx.Node, new: fx.Node) -> list[Any]:
    """The sizes of what ``unflatten`` returns: the exporter loses its rank."""
    source, dim = node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(dim, int) and isinstance(new.args[2], (list, tuple))
    given = source.meta["spec"].shape
    dim %= len(given)
    with graph.inserting_before(new):
        others = [
            graph.call_method("size", (new.args[0], d)) if isinstance(size, str) else size
            for d, size in enumerate(given)
            if d != dim
        ]
    return [*others[:dim], *new.args[2], *others[dim:]]


def _open(region: Region) -> list[dict[int, str]]:
    """The dimensions of each input that vary."""
    return [
        {d: f"x{k}_{d}" for d, size in enumerate(spec.shape) if isinstance(size, str)}
        for k, spec in enumerate(region.inputs)
    ]
