"""The one table of cases. A new case is one line here; the benchmarks, the gate and the tests walk it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cnnlstm_fast import LSTMSpec

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
MODES = ("inference", "training")
"""Training is a forward and a backward pass with the gradients of the input and of all weights."""


@dataclass(frozen=True)
class Case:
    """One call: T steps, B sequences, I input_size, H hidden_size."""

    name: str
    T: int
    B: int
    I: int
    H: int
    layers: int
    bidirectional: bool
    use: str
    """Who makes such a call."""
    proj_size: int = 0
    lengths: tuple[float, float] | None = None
    """The sequences' lengths are spread from one share of T to another, both ends included, in mixed order."""
    empty: int = 0
    """So many sequences, on top of the spread, have length zero."""
    packed: bool = False
    """The lengths come as a PackedSequence, not as the argument ``lengths``."""
    strided: bool = False
    """The input is a view of a feature map (B, I, 1, T) instead of a contiguous (T, B, I)."""
    states: bool = False
    """The caller hands in h0 and c0, and its loss depends on the final states, too."""
    dtypes: tuple[str, ...] = ("f32", "bf16")

    def __post_init__(self) -> None:
        if self.packed and self.lengths is None:
            raise ValueError(f"{self.name}: packed needs lengths.")
        if self.empty and (self.packed or self.lengths is None):
            raise ValueError(f"{self.name}: empty sequences need lengths and cannot be packed.")
        if self.packed and self.strided:
            raise ValueError(f"{self.name}: packing copies the input, so that packed excludes strided.")

    def spec(self, mode: str, dtype: str) -> LSTMSpec:
        """What the dispatcher sees of the call."""
        return LSTMSpec(
            device="cpu",
            dtype=DTYPES[dtype],
            T=self.T,
            B=self.B,
            input_size=self.I,
            hidden_size=self.H,
            proj_size=self.proj_size,
            num_layers=self.layers,
            bidirectional=self.bidirectional,
            bias=True,
            packed=self.packed,
            lengths=self.lengths is not None and not self.packed,
            reset=False,
            dropout=False,
            all_cells=False,
            grad=mode == "training",
            tracing=False,
        )


TABLE: tuple[Case, ...] = (
    #    name                  T    B   I    H  L  bidirectional
    Case("word-b1", 16, 1, 512, 256, 1, False, "reader of short words, one image"),
    Case("crnn-b1", 26, 1, 512, 256, 2, True, "CRNN text recogniser, one line"),
    Case("crnn-b32", 26, 32, 512, 256, 2, True, "CRNN text recogniser, a batch"),
    Case("series-b1", 100, 1, 64, 128, 1, False, "forecaster, one series"),
    Case("series-b32", 100, 32, 64, 128, 1, False, "forecaster, a batch"),
    Case("speech-b1", 293, 1, 60, 128, 4, True, "acoustic model, three seconds of one speaker"),
    Case("policy-step", 1, 1, 512, 512, 1, False, "recurrent policy, one step", states=True),
    Case("sensor-b64", 128, 64, 128, 128, 1, False, "activity recognition, a batch of windows"),
    # the odd ones
    Case("one-step-b16", 1, 16, 64, 128, 2, False, "streams advanced together by a step", states=True),
    Case("hidden-200", 50, 8, 128, 200, 1, True, "a hidden size that no vector width divides twice"),
    Case("input-257", 100, 4, 257, 128, 1, False, "bins of a 512-point spectrogram"),
    Case("strided-map", 26, 8, 512, 256, 1, True, "feature map of a CNN, permuted", strided=True),
    Case("packed", 100, 16, 64, 128, 2, True, "PackedSequence", lengths=(0.45, 1.0), packed=True),
    Case("projection", 50, 8, 80, 256, 1, False, "LSTM with a projection (LSTMP)", proj_size=64),
    Case("empty-rows", 60, 16, 64, 128, 1, True, "silent clips among others", lengths=(0.45, 1.0), empty=3),
    Case("no-steps", 0, 4, 32, 64, 1, False, "nothing has arrived yet", states=True),
)
CASES: dict[str, Case] = {case.name: case for case in TABLE}
