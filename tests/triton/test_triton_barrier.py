"""The barrier (kernels/barrier.py): a model of its protocol, checked for every order in which
programs can run, and the kernels themselves with interleaved programs."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import Case, check_case, nan_memory

pytest.importorskip("triton")

from triton.runtime import interpreter

from cnnlstm_fast.recurrent.backends import triton as backend

backend.kernels()
from cnnlstm_fast.kernels import plan, recurrence
from cnnlstm_fast.kernels.interpreter import running

# What a program does for an item of a step, in this order. "publish" is the release: stores made before it can be seen
# by all.
PROTOCOL = ("wait", "read", "store", "publish and arrive")
PLANES = 2  # that are written alternately

# For each program (step, number of its item, action); for each item what was stored and published; arrivals of each
# tile.
State = tuple[tuple[tuple[int, int, int], ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def explore(
    blocks: int,
    tiles: int,
    programs: int,
    steps: int,
    protocol: tuple[str, ...] = PROTOCOL,
    planes: int = PLANES,
    more: int = 0,
    at_once: int | None = None,
) -> str:
    """Every order of the programs' actions. "" if each item read what all of its tile had stored in the step before,
    and if the end can be reached from everywhere; else what went wrong.

    Args:
        more: arrivals that are waited for beside those of the steps before.
        at_once: programs that run at once, all for None; another starts when one has ended.
    """
    shares = [range(p, blocks * tiles, programs) for p in range(programs)]
    nothing = (0,) * (blocks * tiles)
    start: State = (((0, 0, 0),) * programs, nothing, nothing, (0,) * tiles)
    after: dict[State, set[State]] = {}
    todo = [start]
    while todo:
        state = todo.pop()
        if state in after:
            continue
        after[state] = set()
        at, stored, seen, arrivals = state
        unfinished = [p for p in range(programs) if at[p][0] < steps]
        for p in unfinished[:at_once]:
            step, number, action = at[p]
            item = shares[p][number]
            tile = item // blocks
            others = range(tile * blocks, (tile + 1) * blocks)
            new_stored, new_seen, new_arrivals = list(stored), list(seen), list(arrivals)
            name = protocol[action]
            if name == "wait" and step > 0 and arrivals[tile] < step * blocks + more:
                continue
            if name == "read" and any(seen[q] < step for q in others):
                return f"a program read step {step} before all had published it"
            if name == "read" and any(stored[q] >= step + planes for q in others):
                return f"a program read step {step} after another had overwritten it"
            if name == "store":
                new_stored[item] = step + 1
            if name == "publish and arrive":
                new_seen[item] = stored[item]
                new_arrivals[tile] += 1
            place = list(at)
            if action + 1 < len(protocol):
                place[p] = (step, number, action + 1)
            else:
                place[p] = (step, number + 1, 0) if number + 1 < len(shares[p]) else (step + 1, 0, 0)
            following = (tuple(place), tuple(new_stored), tuple(new_seen), tuple(new_arrivals))
            after[state].add(following)
            todo.append(following)
    return "" if _all_end(after, steps) else "some programs wait for ever"


def _all_end(after: dict[State, set[State]], steps: int) -> bool:
    """No state but the end is a dead end; a program's own steps only grow, so there is no loop."""
    return all(following or all(step == steps for step, *_ in state[0]) for state, following in after.items())


@pytest.mark.parametrize(
    ("blocks", "tiles", "programs", "steps"),
    [
        (1, 1, 1, 3),
        (2, 1, 2, 5),
        (3, 1, 3, 3),
        (4, 1, 4, 2),
        # programs that loop over several items
        (3, 1, 2, 4),
        (2, 2, 2, 4),
        (2, 2, 3, 3),
        (3, 2, 2, 3),
        (1, 3, 2, 4),
    ],
)
def test_protocol_in_every_order(blocks: int, tiles: int, programs: int, steps: int) -> None:
    assert explore(blocks, tiles, programs, steps) == ""


def test_a_broken_protocol_is_found() -> None:
    """The model fails where the protocol does."""
    for shape in ((3, 1, 3, 3), (2, 2, 3, 4)):
        assert explore(*shape, more=-1) == "a program read step 1 before all had published it"
        assert explore(*shape, more=1) == "some programs wait for ever"
        assert "overwritten" in explore(*shape, planes=1)
        assert explore(*shape, at_once=2) == "some programs wait for ever"
        swapped = explore(*shape, protocol=("wait", "read", "publish and arrive", "store"))
        assert "before all had published it" in swapped


class Turns:
    """Runs the programs of a launch in threads, one at a time; at every atomic operation another one, drawn at random,
    continues."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.turn = threading.Condition()
        self.current: int | None = None
        self.alive: set[int] = set()
        self.me = threading.local()
        self.switches = 0
        self.failures: list[BaseException] = []

    def launch(self, programs: list[tuple[int, ...]], run: Callable[[], None]) -> None:
        def body(index: int, place: tuple[int, ...]) -> None:
            self.me.index, self.me.place = index, place
            with self.turn:
                self.turn.wait_for(lambda: self.current == index)
                interpreter.interpreter_builder.set_grid_idx(*place)
                try:
                    run()
                except BaseException as error:  # handed to the test's own thread
                    self.failures.append(error)
                self.alive.discard(index)
                self._pass_on()

        self.alive = set(range(len(programs)))
        self.current = None
        threads = [threading.Thread(target=body, args=item) for item in enumerate(programs)]
        for thread in threads:
            thread.start()
        with self.turn:
            self._pass_on()
        for thread in threads:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def switch(self) -> None:
        """Called by the running program."""
        self.switches += 1
        self._pass_on()
        self.turn.wait_for(lambda: self.current == self.me.index)
        interpreter.interpreter_builder.set_grid_idx(*self.me.place)

    def _pass_on(self) -> None:
        self.current = self.random.choice(sorted(self.alive)) if self.alive else None
        self.turn.notify_all()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    """Launches whose programs may wait for each other, in the interpreter."""
    turns = Turns(seed=7)
    atomic = interpreter.InterpreterBuilder.create_atomic_rmw

    def switching(self: Any, *args: Any) -> Any:
        turns.switch()
        return atomic(self, *args)

    def all_at_once(self: Any, *_: Any, **kwargs: Any) -> None:
        names = interpreter.inspect.getfullargspec(self.fn).args
        kwargs = {name: value for name, value in kwargs.items() if name in names}
        scope = interpreter._patch_lang(self.fn)
        try:
            arguments = {
                name: value if name in self.constexprs else interpreter._implicit_cvt(value)
                for name, value in kwargs.items()
            }
            x, y, z = (*self.grid, 1, 1)[:3]
            interpreter.interpreter_builder.set_grid_dim(x, y, z)
            places = [(i, j, k) for i in range(x) for j in range(y) for k in range(z)]
            turns.launch(places, lambda: self.fn(**arguments))
        finally:
            scope.restore()

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_atomic_rmw", switching)
    for name in (
        "forward_kernel",
        "forward_streamed_kernel",
        "backward_kernel",
        "backward_streamed_kernel",
    ):
        kernel = getattr(recurrence, name)
        monkeypatch.setattr(recurrence, name, _Launches(kernel, all_at_once))
    # as on a GPU: one launch for all steps; with streaming they have several items each
    device = plan.Device("interleaved", 0, 3, 232448)
    monkeypatch.setattr(recurrence, "device_of", lambda index: device)
    yield turns


class _Launches:
    """``kernel[grid](...)`` by another executor."""

    def __init__(self, kernel: Any, execute: Callable[..., None]) -> None:
        self.kernel, self.execute = kernel, execute

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        executor = interpreter.GridExecutor(self.kernel.fn, self.kernel.arg_names, grid)
        return lambda **kwargs: self.execute(executor, **kwargs)


@pytest.mark.skipif(not running(), reason="of the interpreter alone")
@pytest.mark.parametrize("algorithm", ["persistent_grid", "streaming"])
@pytest.mark.parametrize(
    "case",
    [
        Case(T=5, B=3, I=4, H=40, bidirectional=True),
        Case(T=5, B=18, I=4, H=20, kind="lengths+reset", bidirectional=True),
        Case(T=4, B=5, I=4, H=33, kind="packed", layers=2),
    ],
    ids=str,
)
def test_programs_that_wait_for_each_other(
    case: Case, algorithm: str, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrence, "plan", lambda *_: plan.Plan(algorithm, 16, 16, 4, 4))
    with nan_memory():
        check_case(case, "triton", torch.float32)
    assert turns.switches > 100
