"""Times of candidates in turns, on a machine whose speed changes."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from cnnlstm_fast import timing
from cnnlstm_fast.encoder import turns
from cnnlstm_fast.encoder.turns import LONG_CALL, Assignment, Timed, Turns


class Machine:
    """Stands in the place of ``time``; ``calls`` has the calls' names and their seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, float]] = []

    def perf_counter(self) -> float:
        return self.now

    def candidate(self, name: str, *seconds: float) -> Assignment:
        """Takes these times in turn."""
        times = itertools.cycle(seconds)

        def call() -> None:
            self.calls.append((name, next(times)))
            self.now += self.calls[-1][1]

        return Assignment(call)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    for module in (timing, turns):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=made.perf_counter))
    return made


def test_a_round_counts_by_the_speed_that_the_machine_had_in_it(machine: Machine) -> None:
    candidates = machine.candidate("a", 1.0, 3 * 10.0, 100.0), machine.candidate("b", 1.1, 11.0, 110.0)
    a, b = Turns(candidates).medians(
        50.0
    )  # one call of a was disturbed, that in the round of the median speed
    assert len(machine.calls) == 6 and b / a == pytest.approx(1.1)


def test_short_calls_are_warmed_up(machine: Machine) -> None:
    candidates = machine.candidate("a", 1e-4), machine.candidate("b", 2e-4)
    assert Turns(candidates).medians(0.1) == pytest.approx([1e-4, 2e-4])
    turn_lengths = [
        sum(seconds for _, seconds in group) for _, group in itertools.groupby(machine.calls, lambda c: c[0])
    ][2:]
    assert len(turn_lengths) > 5 and min(turn_lengths) > turns.WARM_UP_SECONDS


@pytest.mark.parametrize("seconds, rounds", [(0.4, 1), (0.7, 2), (1.2, 3)])
def test_of_long_calls_the_first_ones_count(machine: Machine, seconds: float, rounds: int) -> None:
    times = [LONG_CALL, 2 * LONG_CALL, 2 * LONG_CALL]
    candidates = [machine.candidate(str(k), t) for k, t in enumerate(times)]
    assert Turns(candidates).medians(seconds) == pytest.approx(times)
    assert len(machine.calls) == 3 * rounds


@pytest.mark.parametrize("seconds, most", [(1e-4, 0.1), (2 * LONG_CALL, 0.3), (2 * LONG_CALL, 5.0)])
def test_every_region_has_times(machine: Machine, seconds: float, most: float) -> None:
    """Also where nothing but the first calls fit into the time; of short calls those are not kept."""
    kept: list[list[float]] = [[], []]

    def candidate(k: int) -> Assignment:
        calls = itertools.count()

        def region() -> tuple[()]:
            machine.now += seconds * (100 if next(calls) == 0 and seconds < LONG_CALL else 1)
            return ()

        timed = Timed(region, kept[k])
        return Assignment(timed, timed=(timed,))

    Turns([candidate(k) for k in range(2)]).medians(most)
    assert all(times and times == pytest.approx([seconds] * len(times)) for times in kept)
