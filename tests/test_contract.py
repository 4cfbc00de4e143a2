"""The error contract."""

from __future__ import annotations

import math

import pytest
import torch

from cnnlstm_fast.contract import FLOOR, bound, relative_error


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
