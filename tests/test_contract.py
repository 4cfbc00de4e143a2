"""The error contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from cnnlstm_fast.contract import FLOOR, MOST_DRAWS, ZERO, ErrorRow, Result, bound, compare, relative_error


def test_relative_error() -> None:
    ref = torch.tensor([3.0, 4.0])
    assert relative_error(ref, ref) == 0.0
    assert relative_error(torch.tensor([3.0, 4.5]), ref) == pytest.approx(0.1)
    assert relative_error(torch.tensor([3.0, 4.5]).bfloat16(), ref.double()) == pytest.approx(0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_infinitely_wrong(value: float) -> None:
    assert relative_error(torch.tensor([1.0, value]), torch.ones(2)) == math.inf


def test_not_finite_where_the_reference_is_not_either() -> None:
    """Agreement in a NaN cannot be told from a wrong result, so it never passes unseen."""
    nan = torch.tensor([1.0, math.nan])
    assert not relative_error(nan, nan) <= bound(0.0, torch.float32)


def test_zero_and_empty_references() -> None:
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.tensor([0.0, 0.5]), torch.zeros(2)) == 0.5
    assert relative_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(2,\)|\(2,\).*\(2, 1\)"):
        relative_error(torch.zeros(2, 1), torch.zeros(2))


def test_gradients_of_the_tensors_are_not_needed() -> None:
    assert relative_error(torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)) == 0.0


@pytest.mark.parametrize("dtype", FLOOR)
def test_bound(dtype: torch.dtype) -> None:
    assert bound(0.0, dtype) == FLOOR[dtype]
    assert bound(1.0, dtype) == 2.0 + FLOOR[dtype]
    assert torch.finfo(dtype).eps / 8 < FLOOR[dtype] < 1000 * torch.finfo(dtype).eps


NOISE = 3e-3  # of one rounded bfloat16 number, relative


def draws(error: Callable[[int], float], numbers: int) -> Callable[[int], Iterator[Result]]:
    """Draws in which PyTorch's error is ``NOISE`` a number and ours ``error(k)`` times that."""

    def draw(k: int) -> Iterator[Result]:
        exact = torch.rand(numbers, dtype=torch.float64) + 1

        def noisy(size: float) -> Tensor:
            return exact * (1 + NOISE * size * torch.randn(numbers))

        yield Result("output", torch.float64, noisy(error(k)), noisy(1.0), exact)

    return draw


def compare_draws(*args: int, **kwargs: int) -> ErrorRow:
    (row,) = compare(draws(*args), **kwargs)
    return row


@pytest.mark.parametrize("numbers", [1, 4, 1000])
def test_chance_passes(numbers: int) -> None:
    assert all(compare_draws(lambda k: 1.0, numbers).ok for _ in range(100))


@pytest.mark.parametrize("numbers", [4, 1000])
def test_a_larger_error_fails(numbers: int) -> None:
    rows = [compare_draws(lambda k: 4.0, numbers, draws=8) for _ in range(20)]
    assert not any(row.ok for row in rows)
    assert all(row.fast == pytest.approx(4 * NOISE, rel=0.5) for row in rows)


@pytest.mark.parametrize("numbers", [1, 4, 1000])
def test_one_wrong_draw_fails_however_many_are_right(numbers: int) -> None:
    assert not compare_draws(lambda k: 100.0 if k == 0 else 1.0, numbers).ok


def test_more_is_drawn_only_where_a_result_fails() -> None:
    for wrong, count in ((False, 3), (True, MOST_DRAWS)):
        seen = []

        def draw(k: int, wrong: bool = wrong, seen: list[int] = seen) -> Iterator[Result]:
            seen.append(k)
            yield Result("output", torch.float32, torch.ones(2) + wrong, torch.ones(2), torch.ones(2))

        assert compare(draw, draws=3)[0].ok is not wrong
        assert seen == list(range(count))


def test_missing_or_not_finite_is_infinitely_wrong_in_any_draw() -> None:
    assert compare_draws(lambda k: math.nan if k == 0 else 1.0, 4).fast == math.inf
    one = torch.ones(2)
    (row,) = compare(lambda k: [Result("gradient", torch.float32, one if k else None, one, one)])
    assert row.fast == math.inf and not row.ok


@pytest.mark.parametrize("noise", [1e-9, 1e-3])
def test_gradients_that_are_zero_by_mathematics(noise: float) -> None:
    """Rounding errors pass, whatever their ratio; what is more than that fails."""
    large, none = torch.full((4,), 10.0).double(), torch.full((4,), 1e-17).double()

    def draw(k: int) -> Iterator[Result]:
        yield Result("gradient of weight", torch.float32, large, large, large)
        yield Result("gradient of bias", torch.float32, none + 10 * noise, none + 1e-10, none)

    assert compare(draw)[1].ok is (noise < 1e-6)
    assert relative_error(none + noise, none, 20.0) == pytest.approx(noise / 10)


def test_small_gradients_are_not_zero() -> None:
    small = torch.full((4,), 1e3 * ZERO).double()

    def draw(k: int) -> Iterator[Result]:
        yield Result("gradient of weight", torch.float32, *[torch.ones(4)] * 3)
        yield Result("gradient of bias", torch.float32, small * 1.01, small, small)

    assert not compare(draw)[1].ok


def test_outputs_are_never_relative_to_others() -> None:
    def draw(k: int) -> Iterator[Result]:
        yield Result("gradient of weight", torch.float32, *[torch.full((4,), 1e20)] * 3)
        yield Result("output", torch.float32, torch.full((4,), 1.01), torch.ones(4), torch.ones(4))

    assert not compare(draw)[1].ok
