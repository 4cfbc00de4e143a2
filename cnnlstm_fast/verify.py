"""verify(model, inputs): errors against float64 and times of a model, original and optimized, on the user's input."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .contract import APPROXIMATE, FLOOR, ErrorRow, Result, bound, compare
from .encoder.modules import has_runner
from .encoder.runner import CALLS_BEFORE_REBUILD
from .encoder.usual import RUNNER
from .optimize import as_arguments, check_model, optimize, revert
from .recurrent.backends import BACKENDS
from .recurrent.class_swap import is_fast
from .side_by_side import side_by_side
from .timing import median_ratio


@dataclass(frozen=True)
class SpeedRow:
    """Times of one job in milliseconds; ``ratio`` is the median of eager / fast over the paired rounds."""

    what: str
    eager_ms: float
    fast_ms: float
    ratio: float
    rounds: int


@dataclass
class Report:
    """The result of ``verify``. ``ok``: every error is within the contract (see ``cnnlstm_fast.contract``), or below
    ``contract.APPROXIMATE`` if the model names an approximate backend."""

    errors: list[ErrorRow] = field(default_factory=list)
    speed: list[SpeedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    approximate: list[str] = field(default_factory=list)
    """The approximate backends that the model's LSTMs name."""

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.errors)

    def __str__(self) -> str:
        names = [e.what for e in self.errors] + [s.what for s in self.speed]
        width = max(24, *map(len, names))
        lines = [f"{'error against float64':<{width}}  {'eager':>9}  {'fast':>9}  {'limit':>9}"]
        for e in self.errors:
            passed = "approximate by request" if self.approximate else "ok"
            verdict = passed if e.ok else "FAILED"
            lines.append(f"{e.what:<{width}}  {e.eager:9.2e}  {e.fast:9.2e}  {e.limit:9.2e}  {verdict}")
        if self.speed:
            lines += ["", f"{'time':<{width}}  {'eager':>9}  {'fast':>9}  {'speed-up':>9}"]
        for s in self.speed:
            lines.append(
                f"{s.what:<{width}}  {s.eager_ms:6.2f} ms  {s.fast_ms:6.2f} ms  {s.ratio:8.2f}x  "
                f"(medians of {s.rounds} paired rounds)"
            )
        lines += ["", *self.notes] if self.notes else []
        lines.append(f"verdict: {self._verdict()}")
        return "\n".join(lines)

    def _verdict(self) -> str:
        if not self.approximate:
            return "same numbers" if self.ok else "NOT the same numbers"
        names, worst = ", ".join(self.approximate), max(row.fast for row in self.errors)
        if self.ok:
            return f"not the same numbers, by request ({names}): relative error up to {worst:.1e}"
        return f"NOT the same numbers, beyond the limit of {names}: relative error up to {worst:.1e}"


def verify(model: nn.Module, example_inputs: Any, seconds: float = 2.0) -> Report:
    """Runs an original and an optimized copy of the model on the given input, and compares both with a float64 copy
    on the CPU: outputs, and the gradients of all parameters. LSTMs that are already optimized keep their backend;
    with an approximate backend only the outputs are compared.

    The model itself is not changed, whether it is already optimized or not. The copies run in eval mode, without
    dropout.

    Args:
        example_inputs: a tuple of the model's arguments, or its single argument.
        seconds: how long to time each job.

    Returns:
        A ``Report``: print it, or check ``report.ok``.
    """
    check_model(model)
    args = _cast(as_arguments(example_inputs))
    eager, fast = _quiet(revert(_copy(model))), _quiet(_optimized(_copy(model)))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    report = Report(approximate=sorted(set(_approximate(model))))
    trains = any(p.requires_grad for p in model.parameters()) and not report.approximate
    engines = any(has_runner(m) for m in fast.modules())
    exact: nn.Module | None = None
    exact_args = _cast(args, "cpu", torch.float64)
    try:
        in_float64 = _quiet(revert(_copy(model)).to("cpu", torch.float64))
        first_exact = _run(in_float64, exact_args, trains)
        exact = in_float64
    except (RuntimeError, ValueError, TypeError) as error:
        message = str(error).splitlines()[0]
        report.notes.append(f"the model does not run in float64 ({message}): compared with eager instead")

    def draw(k: int) -> Iterator[Result]:
        """The results with the model's weights for k = 0, then with weights that differ by about one rounding."""
        if k > 0:
            _perturb(eager, fast, exact, seed=k)
        eager_out, eager_grads = _run(eager, args, trains)
        fast_out, fast_grads = _run(fast, args, trains)
        if exact is None:
            exact_out, exact_grads = eager_out, eager_grads
        else:
            exact_out, exact_grads = first_exact if k == 0 else _run(exact, exact_args, trains)
        if [t.shape for t in eager_out] != [t.shape for t in fast_out]:
            raise RuntimeError(
                "the optimized model's outputs differ from the eager one's in number or shape."
            )
        by_engines = _by_engines(fast, args) if engines else fast_out
        for j, out in enumerate(eager_out):
            kind = out.dtype if out.dtype in FLOOR else dtype
            yield Result(f"output {j}", kind, by_engines[j], out, exact_out[j])
            if engines and trains:
                yield Result(f"output {j} with gradient", kind, fast_out[j], out, exact_out[j])
        for name, grad in eager_grads.items():
            kind = grad.dtype if grad.dtype in FLOOR else dtype
            yield Result(f"gradient of {name}", kind, fast_grads.get(name), grad, exact_grads[name])

    def limit(eager_error: float, kind: torch.dtype) -> float:
        if report.approximate:
            return APPROXIMATE
        return bound(eager_error, kind) if exact is not None else 20 * FLOOR[kind]

    report.errors = compare(draw, limit=limit)
    report.speed.append(_time("forward", lambda m: _forward(m, args), eager, fast, device, seconds))
    if trains:
        job = "forward + backward"
        report.speed.append(_time(job, lambda m: _run(m, args, True), eager, fast, device, seconds))
    return report


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"model: expected one that copy.deepcopy copies, got {type(model).__name__}, which fails: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _approximate(model: nn.Module) -> Iterator[str]:
    """What the model asks for that is approximate: a backend of an LSTM, a precision of its engines."""
    for module in model.modules():
        if has_runner(module):
            precision = module.__dict__[RUNNER].record.precision
            if precision is not None:
                yield precision
        elif is_fast(module) and module.backend != "auto" and BACKENDS[module.backend].approximate:  # type: ignore[index]
            yield module.backend  # type: ignore[misc]


def _by_engines(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    """Outputs without gradient. The engines of a copy, or after an edit of weights, are built at the first calls."""
    for _ in range(CALLS_BEFORE_REBUILD):
        _run(model, args, False)
    return _run(model, args, False)[0]


def _optimized(model: nn.Module) -> nn.Module:
    """Optimizes the model in place; LSTMs that were optimized before keep their backend."""
    named = {m: m.backend for m in model.modules() if is_fast(m) and not has_runner(m)}
    optimize(model)
    for module, backend in named.items():
        module.backend = backend
    return model


def _quiet(model: nn.Module) -> nn.Module:
    """Eval mode; on a GPU LSTMs stay in training mode without dropout, which cuDNN's backward needs."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.LSTM) and next(module.parameters()).is_cuda:
            module.train()
            module.dropout = 0.0
    return model


def _perturb(eager: nn.Module, fast: nn.Module, exact: nn.Module | None, seed: int) -> None:
    """Changes the weights of all copies in the same way, by about one rounding: fresh numbers of equal accuracy."""
    generator = torch.Generator().manual_seed(seed)
    others = [list(m.parameters()) for m in (fast, exact) if m is not None]
    with torch.no_grad():
        for j, p in enumerate(eager.parameters()):
            if p.is_floating_point():
                noise = torch.randn(p.shape, generator=generator) * torch.finfo(p.dtype).eps
                p.mul_(1.0 + noise.to(p.device))
                for parameters in others:
                    parameters[j].copy_(p)


def _forward(model: nn.Module, args: tuple[Any, ...]) -> None:
    with torch.no_grad():
        model(*args)


def _run(model: nn.Module, args: tuple[Any, ...], backward: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, flattened, and the parameters' gradients of a fixed random combination of the outputs."""
    model.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(backward):
        found = pytree.tree_leaves(_open_packed(model(*args)))
    outputs = [t for t in found if isinstance(t, Tensor)]
    if not outputs:
        raise TypeError("model: expected at least one tensor among its outputs, got none.")
    grads: dict[str, Tensor] = {}
    if backward:
        generator = torch.Generator().manual_seed(0)
        losses = [
            (out * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)).sum()
            for out in outputs
            if out.requires_grad
        ]
        if losses:
            torch.stack([loss.double().cpu() for loss in losses]).sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return [out.detach() for out in outputs], grads


def _open_packed(value: Any) -> Any:
    """Replaces each PackedSequence, which pytree does not open, by its data."""
    packed = torch.nn.utils.rnn.PackedSequence
    return pytree.tree_map(
        lambda v: v.data if isinstance(v, packed) else v, value, is_leaf=lambda v: isinstance(v, packed)
    )


def _cast(
    args: tuple[Any, ...], device: str | None = None, dtype: torch.dtype | None = None
) -> tuple[Any, ...]:
    """The arguments, detached, with all tensors on ``device`` and floating-point ones in ``dtype``."""
    packed = torch.nn.utils.rnn.PackedSequence

    def cast(value: Any) -> Any:
        if isinstance(value, packed):
            data, sizes, order, restore = value
            return packed(cast(data), sizes, cast(order), cast(restore))
        if isinstance(value, Tensor):
            return value.detach().to(device, dtype if value.is_floating_point() else None)
        return value

    return pytree.tree_map(cast, args, is_leaf=lambda v: isinstance(v, packed))


def _time(
    what: str,
    job: Callable[[nn.Module], Any],
    eager: nn.Module,
    fast: nn.Module,
    device: torch.device,
    seconds: float,
) -> SpeedRow:
    times = side_by_side(lambda: job(eager), lambda: job(fast), seconds, device)
    return SpeedRow(
        what,
        statistics.median(times["eager"]) * 1e3,
        statistics.median(times["fast"]) * 1e3,
        median_ratio(times["eager"], times["fast"]),
        len(times["eager"]),
    )
