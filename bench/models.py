"""Whole CNN-LSTM models as users write them: plain PyTorch, without this package."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


class TextReader(nn.Module):
    """CRNN (Shi et al. 2015), small: a line of text (B, 1, 32, W) -> class scores (W/4, B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 64, 128, 256, 256, 512)
        pools: tuple[tuple[int, int], ...] = ((2, 2), (2, 2), (1, 1), (2, 1), (4, 1))
        self.cnn = nn.Sequential(
            *(_block(a, b, pool) for a, b, pool in zip(widths, widths[1:], pools, strict=False))
        )
        self.lstm = nn.LSTM(512, 256, 2, bidirectional=True)
        self.head = nn.Linear(512, 64)

    def forward(self, lines: Tensor) -> Tensor:
        features = self.cnn(lines).squeeze(2)  # (B, 512, W/4)
        return self.head(self.lstm(features.permute(2, 0, 1))[0])


class VideoClassifier(nn.Module):
    """Frames (B, T, 3, 64, 64), encoded one by one, then an LSTM over time -> class scores (B, 16)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        self.cnn = nn.Sequential(
            *(_block(a, b, (2, 2)) for a, b in pairwise(widths)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(256, 512),
        )
        self.lstm = nn.LSTM(512, 512, 3, batch_first=True)
        self.head = nn.Linear(512, 16)

    def forward(self, frames: Tensor) -> Tensor:
        features = self.cnn(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self.head(self.lstm(features)[0][:, -1])


class WordSpotter(nn.Module):
    """A log-mel spectrogram (B, 1, 40, T): a 2-D CNN, then an LSTM over time -> class scores (B, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(_block(1, 16, (2, 1)), _block(16, 32, (2, 1)))
        self.lstm = nn.LSTM(320, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 12)

    def forward(self, mel: Tensor) -> Tensor:
        features = self.cnn(mel).flatten(1, 2)  # (B, 320, T)
        return self.head(self.lstm(features.transpose(1, 2))[0].mean(1))


class Forecaster(nn.Module):
    """Series (B, T, 8) -> the next 12 values (B, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv1d(8, 64, 5, padding=2), nn.ReLU())
        self.lstm = nn.LSTM(64, 128, batch_first=True)
        self.head = nn.Linear(128, 12)

    def forward(self, series: Tensor) -> Tensor:
        features = self.cnn(series.transpose(1, 2)).transpose(1, 2)
        return self.head(self.lstm(features)[0][:, -1])


def _block(channels: int, out: int, pool: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(pool)
    )


class Model(NamedTuple):
    """A model's constructor, and the shape of its input for T steps of B sequences."""

    build: Callable[[], nn.Module]
    shape: Callable[[int, int], tuple[int, ...]]


MODELS: dict[str, Model] = {
    "text": Model(TextReader, lambda T, B: (B, 1, 32, 4 * T)),
    "video": Model(VideoClassifier, lambda T, B: (B, T, 3, 64, 64)),
    "words": Model(WordSpotter, lambda T, B: (B, 1, 40, T)),
    "series": Model(Forecaster, lambda T, B: (B, T, 8)),
}


def make(name: str, T: int, B: int, seed: int) -> tuple[nn.Module, Tensor]:
    """A model with random weights and a random input for it, float32 on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name].build(), torch.randn(MODELS[name].shape(T, B))
