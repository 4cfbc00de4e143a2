"""Paired measurement, with counted calls in place of a clock."""

from __future__ import annotations

from cnnlstm_fast.timing import interleave, median_ratio


def test_candidates_take_turns_in_both_orders() -> None:
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
