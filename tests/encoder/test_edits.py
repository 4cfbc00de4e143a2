"""Models that write into parts of a tensor, as decoders do: ``out[:, t] = x``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnnlstm_fast import _native, explain, optimize
from cnnlstm_fast.encoder.capture import capture
from cnnlstm_fast.encoder.engines import ENGINES
from cnnlstm_fast.encoder.operator_call import packet
from cnnlstm_fast.encoder.reason import CannotCaptureError
from cnnlstm_fast.encoder.runner import Runner
from cnnlstm_fast.encoder.usual import RUNNER

pytestmark = pytest.mark.skipif(not _native.available, reason="needs the compiled guard")
aten = torch.ops.aten
STEPS = 4


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)


def _filled(rows: list[Tensor]) -> Tensor:
    out = torch.zeros(rows[0].size(0), STEPS, rows[0].size(1))
    for t, row in enumerate(rows):
        out[:, t, :] = row
    return out


def _time_first(rows: list[Tensor]) -> Tensor:
    out = torch.empty(STEPS, *rows[0].shape)
    for t, row in enumerate(rows):
        out[t] = row
    return out


def _backwards(rows: list[Tensor]) -> Tensor:
    out = torch.zeros(rows[0].size(0), STEPS, rows[0].size(1))
    for t, row in enumerate(rows):
        out[:, -1 - t] = row
    return out


def _in_part(rows: list[Tensor]) -> Tensor:
    out = torch.ones(rows[0].size(0), STEPS, rows[0].size(1))
    out[:, 1] = rows[1]
    out[:, 2:4, 1:3] = rows[2][:, None, :2]
    return out


def _twice(rows: list[Tensor]) -> Tensor:
    out = _filled(rows)
    out[:, 1] = rows[3]
    return out


def _read_between(rows: list[Tensor]) -> Tensor:
    out = torch.zeros(rows[0].size(0), STEPS, rows[0].size(1))
    out[:, 0] = rows[0]
    for t in range(1, STEPS):
        out[:, t] = out[:, t - 1] * 0.5 + rows[t]
        out[:, t - 1] = 2.0
    return out


def _added(rows: list[Tensor]) -> Tensor:
    out = torch.zeros(rows[0].size(0), STEPS, rows[0].size(1))
    for t, row in enumerate(rows):
        out[:, t] += row
        out[:, 0].mul_(1.5)
    return out


def _broadcast(rows: list[Tensor]) -> Tensor:
    out = torch.zeros(rows[0].size(0), STEPS, rows[0].size(1))
    for t, row in enumerate(rows):
        out[:, t] = row.mean(1, keepdim=True)
    return out


def _of_another_dtype(rows: list[Tensor]) -> Tensor:
    out = torch.zeros(rows[0].size(0), STEPS, rows[0].size(1))
    for t, row in enumerate(rows):
        out[:, t] = row.double() + 1e-9
    return out


WRITES: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "all": _filled,
    "time first": _time_first,
    "backwards": _backwards,
    "in part": _in_part,
    "twice": _twice,
    "read in between": _read_between,
    "added": _added,
    "broadcast": _broadcast,
    "another dtype": _of_another_dtype,
}


class Writer(nn.Module):
    """(B, 3) -> (B, STEPS, 5) or (STEPS, B, 5)."""

    def __init__(self, writes: str) -> None:
        super().__init__()
        self.writes = writes
        self.layers = nn.ModuleList(nn.Linear(3, 5) for _ in range(STEPS))

    def forward(self, x: Tensor) -> Tensor:
        return WRITES[self.writes]([layer(x) for layer in self.layers])


class Decoder(nn.Module):
    """Features (B, T, 6) -> scores (B, STEPS, 7), each class chosen by what came before."""

    def __init__(self, one_hot: str) -> None:
        super().__init__()
        self.one_hot = one_hot
        self.query, self.rnn, self.out = nn.Linear(8, 6), nn.LSTMCell(13, 8), nn.Linear(8, 7)

    def forward(self, features: Tensor) -> Tensor:
        B = features.size(0)
        state = features.new_zeros(B, 8), features.new_zeros(B, 8)
        scores = torch.zeros(B, STEPS, 7)
        chosen = torch.zeros(B, dtype=torch.long)
        for t in range(STEPS):
            weights = (features @ self.query(state[0]).unsqueeze(-1)).softmax(1)
            if self.one_hot == "function":
                before = F.one_hot(chosen, 7).float()
            elif self.one_hot == "constructor":
                before = torch.FloatTensor(B, 7).fill_(0.5).zero_().scatter_(1, chosen.unsqueeze(1), 1.0)
            else:
                before = torch.zeros(B, 7).scatter_(1, chosen.unsqueeze(1), 1.0)
            state = self.rnn(torch.cat([(weights * features).sum(1), before], 1), state)
            scores[:, t] = self.out(state[0])
            chosen = scores[:, t].argmax(1)
        return scores


class Reader(nn.Module):
    """Pictures (B, 1, 8, W) -> scores (B, STEPS, 7)."""

    def __init__(self, one_hot: str) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(6)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), norm, nn.ReLU(), nn.AdaptiveAvgPool2d((1, None))
        )
        self.lstm = nn.LSTM(6, 3, bidirectional=True, batch_first=True)
        self.decoder = Decoder(one_hot)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.lstm(self.cnn(x).squeeze(2).transpose(1, 2))[0])


def same(model: nn.Module, fast: nn.Module, *shapes: tuple[int, ...]) -> None:
    """The same results, by the engines, from the second call of each shape on."""
    assert [name for name, m in fast.named_modules() if RUNNER in m.__dict__] == [""], explain(fast)
    runner = fast.__dict__[RUNNER]
    assert isinstance(runner, Runner)
    for shape in shapes:
        for _ in range(2):
            x = torch.randn(*shape)
            with torch.no_grad():
                torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert not runner.notes


@pytest.mark.parametrize("writes", WRITES)
def test_writes_into_parts(writes: str) -> None:
    model = Writer(writes).eval()
    fast = optimize(copy.deepcopy(model), torch.randn(4, 3), encoder="onednn")
    same(model, fast, (4, 3), (1, 3), (7, 3))


@pytest.mark.parametrize("writes", ["all", "time first", "backwards", "twice"])
def test_what_is_filled_is_a_stack(writes: str) -> None:
    graph = capture(Writer(writes).eval(), (torch.randn(4, 3),), {}).graph
    called = [packet(node) for node in graph.nodes]
    assert called.count(aten.stack) == 1
    assert not {aten.select_scatter, aten.slice_scatter, aten.copy, aten.zeros, aten.empty} & set(called)


@pytest.mark.parametrize("one_hot", ["function", "scatter", "constructor"])
@pytest.mark.parametrize("engine", ["onednn", "onnxruntime", "openvino"])
def test_decoders(engine: str, one_hot: str) -> None:
    if (reason := ENGINES[engine].missing()) is not None:
        pytest.skip(reason)
    model = Reader(one_hot).eval()
    fast = optimize(copy.deepcopy(model), torch.randn(2, 1, 8, 20), encoder=engine)
    same(model, fast, (2, 1, 8, 20), (3, 1, 8, 31), (1, 1, 8, 9))


def test_a_buffer_that_is_edited_in_part() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 4, 3)
            self.register_buffer("seen", torch.zeros(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            self.seen[:, 1] += 1.0
            return self.conv(x) + self.seen[0, 1]

    with pytest.raises(CannotCaptureError, match="edits an argument or a buffer in place"):
        capture(Counter().eval(), (torch.randn(2, 3, 9),), {})
    fast = optimize(Counter().eval(), torch.randn(2, 3, 9))
    assert RUNNER not in fast.__dict__
    before = fast.seen.clone()
    with torch.no_grad():
        fast(torch.randn(2, 3, 9))
    assert torch.equal(fast.seen[:, 1], before[:, 1] + 1.0)


@pytest.mark.parametrize("through", [lambda k: k, lambda k: torch.max(k, torch.zeros_like(k))])
def test_classes_that_the_caller_gives_are_checked(through: Callable[[Tensor], Tensor]) -> None:
    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(7, 5)

        def forward(self, k: Tensor) -> Tensor:
            return self.linear(F.one_hot(through(k), 7).float())

    fast = optimize(Classes().eval(), torch.tensor([1, 5, 6]))
    assert "sizes in it depend on data (aten.one_hot" in explain(fast)
    with torch.no_grad(), pytest.raises(RuntimeError, match="Class values must be smaller"):
        fast(torch.tensor([1, 9]))


@pytest.mark.parametrize("one_hot", ["scatter", "constructor"])
def test_zeros_of_each_step_are_one_tensor(one_hot: str) -> None:
    """What a step fills with its own numbers is another one."""
    model = Reader(one_hot).eval()
    graph = capture(optimize(model), (torch.randn(2, 1, 8, 20),), {}).graph
    called = {packet(node) for node in graph.nodes}
    assert aten.batch_norm in called
    assert not {aten.empty, aten.zero, aten.fill, aten._native_batch_norm_legit_no_training} & called
    zeros = [node for node in graph.nodes if packet(node) is aten.zeros]
    assert sorted(node.meta["spec"].shape[1:] for node in zeros) == [(), (7,)]


class Copies(nn.Module):
    """Results that are copies of an argument and of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        argument, result = torch.empty_like(x), torch.zeros(x.size(0), 2, 5)
        argument[:] = x
        y = self.linear(x)
        result[:, 0] = y
        first = result[:, 0]
        result[:, 1] = y
        return argument, y, first, result, torch.zeros(3, 3), torch.zeros(3, 3)


def test_results_that_were_copies_share_no_memory() -> None:
    model = Copies().eval()
    fast = optimize(copy.deepcopy(model), torch.randn(4, 3), encoder="onednn")
    assert RUNNER in fast.__dict__, explain(fast)
    for _ in range(3):
        x = torch.randn(4, 3)
        with torch.no_grad():
            found, expected = fast(x), model(x)
        for k, (a, b) in enumerate(zip(found, expected, strict=True)):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            kept = [t.clone() for t in (x, *found)]
            a += 1.0
            kept[k + 1] += 1.0
            if k == 2:  # a part of the next one in PyTorch, too
                kept[4][:, 0] = found[3][:, 0]
            for t, value in zip((x, *found), kept, strict=True):
                assert torch.equal(t, value), k
