"""The demo's model: a convolutional recurrent text reader (CRNN) in plain PyTorch, and its decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

BLANK = 0  # the CTC class for "no digit here"; digit d is class d + 1


def conv_block(inputs: int, outputs: int, pool: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(pool),
    )


class NumberReader(nn.Module):
    """CNN -> bidirectional LSTM -> class scores for CTC, one step for every 4 px of width."""

    def __init__(self, channels: int = 24, hidden: int = 128) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            conv_block(1, channels, (2, 2)),
            conv_block(channels, 2 * channels, (2, 2)),
            conv_block(2 * channels, 4 * channels, (2, 1)),
        )
        self.lstm = nn.LSTM(2 * 4 * channels, hidden, num_layers=2, bidirectional=True)
        self.head = nn.Linear(2 * hidden, 11)

    def steps(self, widths: Tensor) -> Tensor:
        """Number of steps (B,) that belong to pictures of these widths in px."""
        return widths // 4

    def forward(self, pictures: Tensor, widths: Tensor) -> Tensor:
        """Pictures (B, 1, 16, W), widths (B,) on the CPU -> log-probabilities (T, B, 11), T = W // 4."""
        features = self.cnn(pictures)  # (B, C, 2, T)
        sequence = features.flatten(1, 2).permute(2, 0, 1)  # (T, B, 2C)
        packed = pack_padded_sequence(sequence, self.steps(widths), enforce_sorted=False)
        hidden, _ = self.lstm(packed)
        padded, _ = pad_packed_sequence(hidden, total_length=len(sequence))
        return self.head(padded).log_softmax(-1)


def decode(log_probs: Tensor, steps: Tensor) -> list[str]:
    """Greedy CTC of (T, B, 11) with ``steps`` (B,): the best class a step, repeats merged, blanks dropped."""
    texts = []
    for best, count in zip(log_probs.argmax(-1).T.cpu(), steps.tolist(), strict=True):
        merged = torch.unique_consecutive(best[:count])
        texts.append("".join(str(k - 1) for k in merged.tolist() if k != BLANK))
    return texts
