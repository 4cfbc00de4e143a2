"""Number strings of varying length, composed of scikit-learn's scanned handwritten digits.

Scans are 8 x 8 pictures of one handwritten digit each (1,797 of them, part of scikit-learn: nothing is
downloaded). They are divided into training and held-out scans before strings are composed, so that no scan of
a held-out string occurs in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HEIGHT = 16  # px, of a string's picture
DRAWN = 14  # px, side of a scan as drawn into it
MARGIN = 2  # px, before the first and after the last scan
GAP = (1, 6)  # px between two scans, both ends included
LENGTH = (3, 8)  # digits per string, both ends included


@dataclass(frozen=True)
class Scans:
    """Single digits.

    ``pictures`` (N, 8, 8) float32, 0 for paper to 1 for ink; ``digits`` (N,) int64, 0 to 9; ``ids`` (N,)
    int64, the scan's place in ``load_digits()``.
    """

    pictures: Tensor
    digits: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.digits)


@dataclass(frozen=True)
class Strings:
    """A batch of B strings.

    ``pictures`` (B, 1, HEIGHT, W) float32, zero to the right of each string; ``widths`` (B,) int64, px, the
    largest of them is W; ``lengths`` (B,) int64, digits per string; ``digits`` and ``scan_ids`` (sum of
    lengths,) int64, all strings one after the other.
    """

    pictures: Tensor
    widths: Tensor
    lengths: Tensor
    digits: Tensor
    scan_ids: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def texts(self) -> list[str]:
        return ["".join(map(str, part.tolist())) for part in self.digits.split(self.lengths.tolist())]

    def part(self, start: int, stop: int) -> Strings:
        """Strings ``start`` to ``stop``, their pictures cut to the widest of them."""
        widths = self.widths[start:stop]
        first, last = int(self.lengths[:start].sum()), int(self.lengths[:stop].sum())
        return Strings(
            self.pictures[start:stop, :, :, : int(widths.max())],
            widths,
            self.lengths[start:stop],
            self.digits[first:last],
            self.scan_ids[first:last],
        )

    def batches(self, size: int) -> Iterator[Strings]:
        for start in range(0, len(self), size):
            yield self.part(start, min(start + size, len(self)))


def load_split(seed: int, held_out: float = 0.2) -> tuple[Scans, Scans]:
    """The training scans and the held-out scans: disjoint, stratified by digit."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pictures = torch.from_numpy(bunch.images).float() / 16.0
    digits = torch.from_numpy(bunch.target).long()
    parts = train_test_split(
        np.arange(len(digits)), test_size=held_out, stratify=bunch.target, random_state=seed
    )
    ids = [torch.from_numpy(part) for part in parts]
    train, test = (Scans(pictures[part], digits[part], part) for part in ids)
    return train, test


def compose(
    scans: Scans,
    count: int,
    rng: np.random.Generator,
    *,
    distort: bool = False,
    length: tuple[int, int] = LENGTH,
) -> Strings:
    """Writes ``count`` strings of random length, with random gaps and vertical shifts.

    Every scan is used about equally often.

    Args:
        distort: also rotate, shear, stretch and shift each scan a little (for training).
        length: the fewest and the most digits of a string.
    """
    lengths = rng.integers(length[0], length[1] + 1, count)
    total = int(lengths.sum())
    rounds = -(-total // len(scans))
    picked = np.concatenate([rng.permutation(len(scans)) for _ in range(rounds)])[:total]
    drawn = _draw(scans.pictures[picked], rng, distort).numpy()
    tops = rng.integers(0, HEIGHT - DRAWN + 1, total)
    steps = DRAWN + rng.integers(GAP[0], GAP[1] + 1, total)

    ends = np.cumsum(lengths)
    starts = ends - lengths
    lefts = np.concatenate(
        [MARGIN + np.cumsum(steps[a:b]) - steps[a:b] for a, b in zip(starts, ends, strict=True)]
    )
    widths = lefts[ends - 1] + DRAWN + MARGIN
    pictures = np.zeros((count, 1, HEIGHT, int(widths.max())), np.float32)
    rows = np.repeat(np.arange(count), lengths)
    for picture, row, top, left in zip(drawn, rows, tops, lefts, strict=True):
        pictures[row, 0, top : top + DRAWN, left : left + DRAWN] = picture
    return Strings(
        torch.from_numpy(pictures),
        torch.from_numpy(widths),
        torch.from_numpy(lengths),
        scans.digits[picked],
        scans.ids[picked],
    )


def _draw(scans: Tensor, rng: np.random.Generator, distort: bool) -> Tensor:
    """Scans (N, 8, 8) enlarged to (N, DRAWN, DRAWN), each with an affine map of its own if ``distort``."""
    n = len(scans)
    maps = np.tile(np.eye(2, 3), (n, 1, 1))
    if distort:
        angle, shear = rng.uniform(-0.2, 0.2, (2, n))  # radians; px per px
        stretch_x, stretch_y = rng.uniform(0.85, 1.15, (2, n))
        maps[:, 0, 0], maps[:, 0, 1] = np.cos(angle) * stretch_x, shear - np.sin(angle) * stretch_y
        maps[:, 1, 0], maps[:, 1, 1] = np.sin(angle) * stretch_x, np.cos(angle) * stretch_y
        maps[:, :, 2] = rng.uniform(-0.1, 0.1, (n, 2))  # of half a picture
    grid = F.affine_grid(torch.from_numpy(maps).float(), [n, 1, DRAWN, DRAWN], align_corners=False)
    drawn = F.grid_sample(scans[:, None], grid, mode="bicubic", align_corners=False)
    return drawn[:, 0].clamp(0.0, 1.0)
