"""Interleaved rounds, with counted calls in place of a clock, and the ratios of paired times."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from cnnlstm_fast.timing import interleave, median_ratio, orders, paired_ratio, synchronizer, timed

RNG = np.random.default_rng(0)


def test_candidates_are_interleaved_in_both_orders() -> None:
    calls: list[str] = []
    times = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 0.0, min_rounds=20)
    rounds = ["".join(calls[k : k + 2]) for k in range(0, len(calls), 2)]
    assert len(rounds) == 1 + 20  # the first one warms up
    assert set(rounds) == {"ab", "ba"}
    assert len(times["a"]) == len(times["b"]) == 20
    assert all(t >= 0 for t in times["a"])


def test_rounds_are_bounded() -> None:
    times = interleave({"a": lambda: None}, seconds=100.0, max_rounds=7)
    assert len(times["a"]) == 7


def test_median_ratio_is_taken_over_pairs() -> None:
    assert median_ratio([2.0, 30.0, 4.0], [1.0, 10.0, 2.0]) == 2.0


def test_a_call_is_timed_with_the_work_that_it_leaves_to_the_device() -> None:
    done: list[str] = []
    assert timed(lambda: done.append("call"), lambda: done.append("synchronize")) >= 0
    assert done == ["call", "synchronize"]
    assert synchronizer("cpu")() is None


def test_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr("torch.cuda.synchronize", waited.append)
    interleave({"a": lambda: None}, 0.0, min_rounds=2, device="cuda:1")
    assert waited == ["cuda:1"] * 3


def test_every_run_has_the_same_orders() -> None:
    first, second = (list(islice(orders("abc"), 20)) for _ in range(2))
    assert first == second and all(sorted(order) == list("abc") for order in first)
    assert len(set(map(tuple, first))) > 3


def test_ratio_and_its_interval() -> None:
    ours = [1.0] * 9
    assert paired_ratio([2.0] * 9, ours) == (found := paired_ratio([2.0] * 20, ours)) and found.value == 2.0
    scattered = paired_ratio(list(2 + 0.1 * RNG.standard_normal(400)), [1.0] * 400)
    assert scattered.low < scattered.value < scattered.high
    assert scattered.low == pytest.approx(2.0, abs=0.03) and scattered.high == pytest.approx(2.0, abs=0.03)
    assert not scattered.loss and paired_ratio([0.9] * 9, ours).loss


def test_pairs_cancel_a_drift_that_hits_both() -> None:
    drift = np.linspace(1, 5, 50)
    found = paired_ratio((3 * drift).tolist(), drift.tolist())
    assert (found.low, found.high) == pytest.approx((3.0, 3.0))


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for _ in range(100):
        ratios = np.exp(0.1 * RNG.standard_normal(25))
        found = paired_ratio(ratios.tolist(), [1.0] * 25)
        hits += found.low <= 1.0 <= found.high
    assert hits >= 85
