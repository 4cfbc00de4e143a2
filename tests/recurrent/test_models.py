"""Other people's kinds of models, optimized unchanged: same keys, same numbers, no warnings."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

import cnnlstm_fast
from cnnlstm_fast.contract import bound, relative_error


class BidirectionalLSTM(nn.Module):
    def __init__(self, size: int, hidden: int, out: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(size, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        return self.linear(self.rnn(x)[0])


class TextRecogniser(nn.Module):
    """CRNN: a CNN over (B, 1, H, W) whose columns are the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.AdaptiveAvgPool2d((1, 12)),
        )
        self.rnn = nn.Sequential(BidirectionalLSTM(16, 24, 24), BidirectionalLSTM(24, 24, 11))

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.cnn(x).squeeze(2).permute(0, 2, 1)).log_softmax(-1)


class OldBlock(nn.Module):
    """Time-major, and it flattens the output with view."""

    def __init__(self, size: int, hidden: int, out: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(size, hidden, bidirectional=True)
        self.embedding = nn.Linear(2 * hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        recurrent, _ = self.rnn(x)
        T, B, width = recurrent.size()
        return self.embedding(recurrent.view(T * B, width)).view(T, B, -1)


class OldTextRecogniser(TextRecogniser):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.Sequential(OldBlock(16, 24, 24), OldBlock(24, 24, 11))

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.cnn(x).squeeze(2).permute(2, 0, 1))


class Diarization(nn.Module):
    """Raw audio -> filters -> four bidirectional layers with dropout -> speakers per frame."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, 20, 31, stride=10)
        self.norm = nn.InstanceNorm1d(20, affine=True)
        self.lstm = nn.LSTM(20, 32, num_layers=4, bidirectional=True, batch_first=True, dropout=0.5)
        self.linear = nn.ModuleList([nn.Linear(64, 32), nn.Linear(32, 3)])

    def forward(self, x: Tensor) -> Tensor:
        features = F.leaky_relu(self.norm(self.filters(x).abs()))
        outputs, _ = self.lstm(features.transpose(1, 2))
        for layer in self.linear:
            outputs = F.leaky_relu(layer(outputs))
        return torch.sigmoid(outputs)


class Separation(nn.Module):
    """A mask over spectrogram frames, with a skip around three bidirectional layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(33 * 2, 32, bias=False)
        self.norm = nn.BatchNorm1d(32)
        self.lstm = nn.LSTM(32, 16, num_layers=3, bidirectional=True, dropout=0.4)
        self.decode = nn.Linear(64, 33 * 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        frames, batch, channels, bins = x.permute(3, 0, 1, 2).shape
        flat = self.encode(x.permute(3, 0, 1, 2).reshape(-1, channels * bins))
        flat = torch.tanh(self.norm(flat).reshape(frames, batch, -1))
        masked = torch.cat([flat, self.lstm(flat)[0]], -1)
        mask = F.relu(self.decode(masked.reshape(-1, masked.shape[-1])))
        return mask.reshape(frames, batch, channels, bins).permute(1, 2, 3, 0) * x


class ResidualLSTM(nn.Module):
    """(B, C, T) in and out, added to its input, as in neural audio codecs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)
        return (self.lstm(steps)[0] + steps).permute(1, 2, 0)


class Codec(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(1, 16, 7, stride=4), nn.ELU(), ResidualLSTM(16))
        self.decoder = nn.Sequential(ResidualLSTM(16), nn.ELU(), nn.ConvTranspose1d(16, 1, 7, stride=4))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class ChunkedBLSTM(nn.Module):
    """Overlapping chunks of time as one batch, as in music separation."""

    def __init__(self, channels: int = 16, width: int = 10) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv1d(2, channels, 8, stride=4)
        self.lstm = nn.LSTM(bidirectional=True, num_layers=2, hidden_size=channels, input_size=channels)
        self.linear = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        B, C, T = x.shape
        chunks = F.pad(x, (0, -T % self.width)).unfold(-1, self.width, self.width // 2)
        n = chunks.shape[2]
        steps = chunks.permute(0, 2, 1, 3).reshape(B * n, C, self.width).permute(2, 0, 1)
        out = self.linear(self.lstm(steps)[0]).permute(1, 2, 0)
        out = out.reshape(B, n, C, self.width)[..., : self.width // 2]
        return out.permute(0, 2, 1, 3).reshape(B, C, -1)


class Policy(nn.Module):
    """Single steps with a state that is masked to zero where an episode ended."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(3, 8, 4, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 24))
        self.lstm = nn.LSTM(24, 32)
        self.actor, self.critic = nn.Linear(32, 4), nn.Linear(32, 1)
        for name, p in self.lstm.named_parameters():
            nn.init.constant_(p, 0) if "bias" in name else nn.init.orthogonal_(p)

    def forward(self, frames: Tensor, state: tuple[Tensor, Tensor], done: Tensor) -> Any:
        hidden = self.cnn(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        outputs = []
        for h, d in zip(hidden, done, strict=True):
            keep = (1.0 - d).view(1, -1, 1)
            h, state = self.lstm(h.unsqueeze(0), (keep * state[0], keep * state[1]))
            outputs.append(h)
        out = torch.cat(outputs)
        return self.actor(out), self.critic(out), state


class Tagger(nn.Module):
    """Words as packed sequences of unsorted lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 12, padding_idx=0)
        self.conv = nn.Conv1d(12, 12, 3, padding=1)
        self.lstm = nn.LSTM(12, 16, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(32, 5)

    def forward(self, words: Tensor, lengths: Tensor) -> Any:
        x = self.conv(self.embed(words).transpose(1, 2)).transpose(1, 2)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, (h, _) = self.lstm(packed)
        output, _ = pad_packed_sequence(output, batch_first=True)
        return self.out(output), torch.cat([h[-2], h[-1]], -1)


class Captioner(nn.Module):
    """An image encoder, and a decoder that reads its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.to_state = nn.Linear(8, 32)
        self.encoder = nn.LSTM(8, 16, 2, batch_first=True)
        self.decoder = nn.LSTM(6, 16, 2, batch_first=True)
        self.out = nn.Linear(16, 6)

    def forward(self, image: Tensor) -> Tensor:
        features = self.cnn(image)
        h = self.to_state(features).view(-1, 2, 16).transpose(0, 1)
        state = self.encoder(features.unsqueeze(1), (h, torch.zeros_like(h)))[1]
        token = torch.zeros(image.shape[0], 1, 6, dtype=image.dtype)
        steps = []
        for _ in range(5):
            out, state = self.decoder(token, state)
            token = self.out(out).softmax(-1)
            steps.append(token)
        return torch.cat(steps, 1)


class VideoClassifier(nn.Module):
    """(B, T, C, H, W): one CNN over all frames, the last state of the LSTM decides."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.lstm = nn.LSTM(32, 24, num_layers=2, batch_first=True, dropout=0.3)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(24, 7))

    def forward(self, video: Tensor) -> Tensor:
        B, T = video.shape[:2]
        features = self.cnn(video.reshape(B * T, *video.shape[2:])).view(B, T, -1)
        _, (h, _) = self.lstm(features)
        return self.head(h[-1])


class Forecaster(nn.Module):
    """A series of several variables; only the last step of the output is used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(5, 16, 3), nn.ReLU(), nn.MaxPool1d(2))
        self.lstm1 = nn.LSTM(16, 20, batch_first=True)
        self.lstm2 = nn.LSTM(20, 20, batch_first=True, proj_size=6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm1(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return self.head(self.lstm2(out)[0][:, -1])


Inputs = Callable[[], tuple[Any, ...]]

MODELS: dict[type[nn.Module], Inputs] = {
    TextRecogniser: lambda: (torch.randn(3, 1, 16, 48),),
    OldTextRecogniser: lambda: (torch.randn(3, 1, 16, 48),),
    Diarization: lambda: (torch.randn(2, 1, 400),),
    Separation: lambda: (torch.rand(2, 2, 33, 14),),
    Codec: lambda: (torch.randn(2, 1, 103),),
    ChunkedBLSTM: lambda: (torch.randn(2, 2, 128),),
    Policy: lambda: (
        torch.randn(6, 3, 3, 8, 8),
        (torch.randn(1, 3, 32), torch.randn(1, 3, 32)),
        (torch.rand(6, 3) < 0.3).float(),
    ),
    Tagger: lambda: (torch.randint(1, 50, (4, 9)), torch.tensor([4, 9, 1, 6])),
    Captioner: lambda: (torch.randn(3, 3, 12, 12),),
    VideoClassifier: lambda: (torch.randn(2, 6, 3, 12, 12),),
    Forecaster: lambda: (torch.randn(4, 24, 5),),
}


@pytest.fixture(params=MODELS, ids=lambda kind: kind.__name__)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    return request.param(), MODELS[request.param]()


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # PyTorch's own, once a process, of its own LSTM
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        yield


def double(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return pytree.tree_map(
        lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, args
    )


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            module.dropout = 0.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def step(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    """Outputs and all parameters' gradients of a training step."""
    outputs = pytree.tree_leaves(model(*args))
    loss = sum(
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum() for out in outputs
    )
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return [*[out.detach() for out in outputs], *grads]


def within(got: list[Tensor], eager: list[Tensor], exact: list[Tensor]) -> None:
    for g, e, x in zip(got, eager, exact, strict=True):
        assert g.dtype == e.dtype
        assert relative_error(g, x) <= bound(relative_error(e, x), e.dtype)


def test_same_outputs(case: tuple[nn.Module, tuple[Any, ...]]) -> None:
    model, args = case
    model.eval()
    with torch.no_grad():
        exact = pytree.tree_leaves(copy.deepcopy(model).double()(*double(args)))
        eager = pytree.tree_leaves(model(*args))
        got = pytree.tree_leaves(cnnlstm_fast.optimize(model)(*args))
        within(got, eager, exact)
        again = pytree.tree_leaves(copy.deepcopy(model)(*args))
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def test_same_training_step(case: tuple[nn.Module, tuple[Any, ...]]) -> None:
    model, args = without_dropout(case[0]), case[1]
    exact = step(copy.deepcopy(model).double(), double(args))
    eager = step(copy.deepcopy(model), args)
    within(step(cnnlstm_fast.optimize(model), args), eager, exact)


def test_same_dropout(case: tuple[nn.Module, tuple[Any, ...]]) -> None:
    model, args = case
    fast = cnnlstm_fast.optimize(copy.deepcopy(model))
    results = []
    for each in (model, fast):
        torch.manual_seed(3)
        results.append(step(each, args))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_same_keys_and_weights_both_ways(case: tuple[nn.Module, tuple[Any, ...]]) -> None:
    model, args = case
    model.eval()
    want = pytree.tree_leaves(model(*args))
    fast = cnnlstm_fast.optimize(type(model)()).eval()
    assert list(fast.state_dict()) == list(model.state_dict())
    fast.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(pytree.tree_leaves(fast(*args)), want, rtol=1e-3, atol=1e-5)
    type(model)().load_state_dict(fast.state_dict(), strict=True)


def test_saved_whole(case: tuple[nn.Module, tuple[Any, ...]]) -> None:
    model, args = case
    cnnlstm_fast.optimize(model).eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    got, want = pytree.tree_leaves(loaded(*args)), pytree.tree_leaves(model(*args))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_explain_and_revert(case: tuple[nn.Module, tuple[Any, ...]]) -> None:
    model, args = case
    model.eval()
    want = pytree.tree_leaves(model(*args))
    text = cnnlstm_fast.explain(cnnlstm_fast.optimize(model), args)
    assert "backend:" in text and "not optimized" not in text and "not called" not in text
    got = pytree.tree_leaves(cnnlstm_fast.revert(model)(*args))
    torch.testing.assert_close(got, want)
