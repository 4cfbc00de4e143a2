"""Weights that the CPU kernels keep packed between inferences: never stale, let go with the weights."""

from __future__ import annotations

import copy
import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cnnlstm_fast
from cnnlstm_fast import _native

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the native part")
CALLS = 4  # noted, packed, and twice from what is kept


def _layer(
    dtype: torch.dtype = torch.float32, H: int = 40, I: int = 24, **kwargs: object
) -> cnnlstm_fast.LSTM:
    return cnnlstm_fast.LSTM(I, H, backend="cpu", dtype=dtype, **kwargs).eval()


def _check(layer: cnnlstm_fast.LSTM, T: int = 8, B: int = 2) -> None:
    """The layer computes with the weights that it has now. From 6 steps on they are packed."""
    x = torch.randn(T, B, layer.input_size, dtype=layer.weight_ih_l0.dtype)
    exact = nn.LSTM(layer.input_size, layer.hidden_size, layer.num_layers, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    with torch.no_grad():
        got, want = layer(x)[0], exact(x.double())[0]
    tolerance = 2e-6 if x.dtype == torch.float32 else 1e-2
    error = (got.double() - want).norm() / want.norm()
    assert error < tolerance, f"the weights before the edit were used: error {error:.1e}"


def _in_place(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(1.5)


def _one_number(weight: Tensor) -> None:
    weight.data[-1, -1] += 40.0


def _numpy(weight: Tensor) -> None:
    weight.detach().view(torch.int16 if weight.element_size() == 2 else torch.int32).numpy()[3] = 0


def _two_rows_swapped(weight: Tensor) -> None:
    weight.data[[2, 19]] = weight.data[[19, 2]].clone()


def _other_memory(weight: Tensor) -> None:
    weight.data = torch.randn_like(weight)


EDITS: dict[str, Callable[[Tensor], None]] = {
    "in place": _in_place,
    "past autograd": lambda weight: weight.data.add_(0.05),
    "all signs": lambda weight: weight.data.neg_(),
    "one number": _one_number,
    "NumPy": _numpy,
    "two rows swapped": _two_rows_swapped,
    "other memory": _other_memory,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("calls", range(CALLS))
def test_an_edit_is_seen_by_the_next_call(
    edit: Callable[[Tensor], None], name: str, dtype: torch.dtype, calls: int
) -> None:
    layer = _layer(dtype)
    for _ in range(calls):
        _check(layer)
    edit(getattr(layer, name))
    for _ in range(CALLS):
        _check(layer)


CHUNK = 1 << 15  # bytes that are fingerprinted together (csrc/cpu/prepack.h)


def _write(weight: Tensor, elements: Tensor) -> None:
    """The only one here, beside the step, that autograd counts."""
    with torch.no_grad():
        weight.view(-1)[elements] += 3.0


def _write_past_autograd(weight: Tensor, elements: Tensor) -> None:
    weight.detach().numpy().reshape(-1)[elements.numpy()] += 3.0


def _write_data(weight: Tensor, elements: Tensor) -> None:
    weight.data.view(-1)[elements] += 3.0


def _step(weight: Tensor, elements: Tensor) -> None:
    weight.grad = torch.zeros_like(weight)
    weight.grad.view(-1)[elements] = -3.0
    torch.optim.SGD([weight], lr=1.0, foreach=False).step()
    weight.grad = None


def _large_layer(backend: str) -> tuple[cnnlstm_fast.LSTM, Tensor]:
    """Weights of 32 chunks each, which two threads read, and enough rows that both are kept packed."""
    layer, x = cnnlstm_fast.LSTM(256, 256, backend=backend).eval(), torch.randn(30, 2, 256)
    cnnlstm_fast.clear_cache()
    with torch.no_grad():
        for _ in range(CALLS):
            layer(x)
    assert torch.ops.cnnlstm_fast.prepacked_bytes() >= (layer.weight_hh_l0.nbytes // 4) * 2
    return layer, x


def _check_edits(
    backend: str, edit: Callable[[Tensor, Tensor], None], name: str, edits: list[Tensor]
) -> None:
    """After each edit the next call computes as a copy of the layer does, whose weights are packed anew."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        layer, x = _large_layer(backend)
        with torch.no_grad():
            before = layer(x)[0]
            for elements in edits:
                edit(getattr(layer, name), elements)
                found, want = layer(x)[0], copy.deepcopy(layer)(x)[0]
                assert torch.equal(found, want), (
                    f"the weights before the edit of {elements[:3].tolist()} were used"
                )
                assert not torch.equal(found, before)
                before = layer(x)[0]  # packed anew, and kept
    finally:
        torch.set_num_threads(threads)


def _one_of_each_chunk() -> list[Tensor]:
    """Elements of a float32 matrix of 1 MB, in any order: one of each chunk, and the ends of some."""
    size = CHUNK // 4
    places = [k * size + int(torch.randint(size, ())) for k in range(32)]
    places += [size, 16 * size - 1, 16 * size, 32 * size - 1]  # also where the second thread begins
    return [torch.tensor([places[k]]) for k in torch.randperm(len(places))]


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("edit", [_write, _write_data, _write_past_autograd, _step])
def test_one_number_anywhere_in_a_large_weight(edit: Callable[[Tensor, Tensor], None], name: str) -> None:
    """In float32 and bfloat16 all bytes are read at every call, so that autograd need not count the edit."""
    _check_edits("cpu", edit, name, _one_of_each_chunk())


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("edit", [_write, _step])
def test_one_number_anywhere_in_a_large_weight_of_int8(
    edit: Callable[[Tensor, Tensor], None], name: str
) -> None:
    """What autograd counts is seen wherever it is, although most of the bytes are not read."""
    _check_edits("cpu-int8", edit, name, _one_of_each_chunk())


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("edit", [_write_data, _write_past_autograd])
def test_edits_of_int8_weights_past_autograd(edit: Callable[[Tensor, Tensor], None], name: str) -> None:
    """Seen are: any number of the first chunk, and beyond it whatever covers 16 KB without a gap, which no sample
    misses. Less than that may go unseen (csrc/torch/cpu/prepacked.cpp)."""
    row, rows = 256, 16
    spans = [torch.arange(k * row, (k + rows) * row) for k in (32, 33, 47, 500, 771, 1024 - rows)]
    first = [torch.tensor([k]) for k in (0, 1, 777, CHUNK // 4 - 1)]
    _check_edits("cpu-int8", edit, name, [*first, *spans])


def test_a_row_and_a_swap_of_rows_late_in_a_large_bfloat16_weight() -> None:
    layer = _layer(torch.bfloat16, H=256, I=256)
    for _ in range(CALLS):
        _check(layer, T=30)
    layer.weight_hh_l0.data[-1] += 1.0
    _check(layer, T=30)
    layer.weight_ih_l0.data[[700, 1001]] = layer.weight_ih_l0.data[[1001, 700]].clone()
    _check(layer, T=30)


def test_replaced_weights_are_seen() -> None:
    layer = _layer()
    for _ in range(20):  # memory that was freed is given to the next weights
        for _ in range(CALLS):
            _check(layer)
        layer.weight_hh_l0 = nn.Parameter(0.1 * torch.randn_like(layer.weight_hh_l0))


def test_new_layers_in_old_memory_are_seen() -> None:
    for _ in range(20):
        layer = _layer()
        for _ in range(CALLS):
            _check(layer)


@pytest.mark.parametrize(("T", "B"), [(1, 1), (1, 9), (40, 1), (3, 40), (120, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_size_is_right_from_what_is_kept(T: int, B: int, dtype: torch.dtype) -> None:
    layer = _layer(dtype, H=100, I=37)
    for _ in range(CALLS):
        _check(layer, T, B)


def test_the_same_call_gives_the_same_bits_packed_before_or_in_the_call() -> None:
    layer, x = _layer(H=64), torch.randn(200, 3, 24)
    with torch.no_grad():
        first, *later = [layer(x)[0] for _ in range(CALLS)]
    assert all(torch.equal(first, output) for output in later)


def test_inference_tensors_and_slices_of_one_buffer() -> None:
    with torch.inference_mode():
        layer = _layer()
        for _ in range(CALLS):
            _check(layer)
        layer.weight_hh_l0.mul_(2.0)
        _check(layer)
    layer = _layer(H=24)
    both = torch.randn(2, 96, 24)
    layer.weight_ih_l0, layer.weight_hh_l0 = nn.Parameter(both[0]), nn.Parameter(both[1])
    for _ in range(CALLS):
        _check(layer)


def test_what_is_kept_goes_with_the_weights_and_training_keeps_nothing() -> None:
    cnnlstm_fast.clear_cache()
    layer = _layer(H=64, I=32)
    for _ in range(CALLS):
        layer.train()(torch.randn(4, 2, 32))[0].sum().backward()
    assert torch.ops.cnnlstm_fast.prepacked_bytes() == 0
    for _ in range(CALLS):
        _check(layer.eval())
    assert torch.ops.cnnlstm_fast.prepacked_bytes() == 4 * (
        layer.weight_ih_l0.numel() + layer.weight_hh_l0.numel()
    )
    del layer
    _check(_layer(H=64, I=32))  # a call of weights that it does not know
    assert torch.ops.cnnlstm_fast.prepacked_bytes() == 0


def test_what_is_kept_of_deleted_weights_goes_while_other_calls_go_on() -> None:
    cnnlstm_fast.clear_cache()
    assert torch.ops.cnnlstm_fast.prepacked_bytes() == 0
    deleted, other = _layer(H=64), _layer(H=32)
    for layer in (deleted, other):
        for _ in range(CALLS):
            _check(layer)
    of_other = 4 * (other.weight_ih_l0.numel() + other.weight_hh_l0.numel())
    assert torch.ops.cnnlstm_fast.prepacked_bytes() > of_other
    del deleted, layer
    for _ in range(32):
        _check(other)
    assert torch.ops.cnnlstm_fast.prepacked_bytes() == of_other
    cnnlstm_fast.clear_cache()
    assert torch.ops.cnnlstm_fast.prepacked_bytes() == 0
    for _ in range(CALLS):
        _check(other)
    assert torch.ops.cnnlstm_fast.prepacked_bytes() == of_other


@pytest.mark.parametrize("training", [False, True])
def test_what_is_kept_of_deleted_weights_goes_while_calls_that_keep_nothing_go_on(training: bool) -> None:
    cnnlstm_fast.clear_cache()
    deleted, other = _layer(), _layer().train(training)
    for _ in range(CALLS):
        _check(deleted)
    assert torch.ops.cnnlstm_fast.prepacked_bytes() > 0
    del deleted
    with torch.set_grad_enabled(training):
        for _ in range(32):
            other(torch.randn(1, 1, 24))
    assert torch.ops.cnnlstm_fast.prepacked_bytes() == 0


def _answer_from_a_child(layer: nn.Module, x: Tensor, queue: Any) -> None:
    kept = [torch.ops.cnnlstm_fast.prepacked_bytes()]
    with torch.no_grad():
        outputs = [layer(x)[0].numpy() for _ in range(CALLS)]
    queue.put((outputs, [*kept, torch.ops.cnnlstm_fast.prepacked_bytes()]))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_packs_for_itself_whatever_the_parent_was_doing() -> None:
    """Another thread of the parent calls all the time, so that it holds the parent's mutex at some of the forks."""
    layer, x = _layer(H=64, I=32), torch.randn(30, 2, 32)
    with torch.no_grad():
        want = layer(x)[0]
    done = threading.Event()

    def call() -> None:
        with torch.no_grad():
            while not done.is_set():
                layer(x)

    calling = threading.Thread(target=call)
    calling.start()
    context = multiprocessing.get_context("fork")
    try:
        for _ in range(8):
            queue = context.SimpleQueue()
            child = context.Process(target=_answer_from_a_child, args=(layer, x, queue))
            child.start()
            try:
                assert queue._reader.poll(30), "the child hangs"
                outputs, (before, after) = queue.get()
            finally:
                child.join(5)
                child.kill()
            assert before == 0 and after == 4 * (layer.weight_ih_l0.numel() + layer.weight_hh_l0.numel())
            for output in outputs:
                torch.testing.assert_close(torch.from_numpy(output), want)
    finally:
        done.set()
        calling.join()


def test_several_callers_at_once() -> None:
    layer = _layer(H=64, num_layers=2)
    failures: list[BaseException] = []

    def call() -> None:
        try:
            for _ in range(30):
                _check(layer)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
