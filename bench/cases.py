"""The table of cases. A new case is one line here; the benchmarks, the accuracy check and the tests iterate over it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from cnnlstm_fast import LSTMSpec

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "amp": torch.float32}
"""The dtype of the tensors. "amp": float32 weights and input under autocast to bfloat16."""
MODES = ("inference", "training")
"""Training is a forward and a backward pass with the gradients of the input and all weights."""
SUITES = {
    "quick": "a few calls of all kinds, under two minutes on two cores",
    "core": "known hard and odd calls, inference and training",
    "cpu": "inference",
    "train": "training",
    "model": "whole models, CNN included",
    "encoder": "the CNNs alone",
    "gpu": "inference and training, float16 and the largest calls included, for a GPU",
    "all": "everything that this machine can run",
}


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
    """The sequences' lengths are evenly spaced from one share of T to another, both included, and shuffled."""
    empty: int = 0
    """Number of sequences of length zero, which are not part of that spacing."""
    packed: bool = False
    """The lengths are given by a PackedSequence, not by the argument ``lengths``."""
    strided: bool = False
    """The input is a view of a feature map (B, I, 1, T) instead of a contiguous (T, B, I)."""
    states: bool = False
    """The caller passes h0 and c0, and its loss also depends on the final states."""
    resets: float = 0.0
    """The share of steps before which the state is zeroed."""
    dropout: float = 0.0
    """Between the layers, and of all dropouts of a whole model, in training. The accuracy check runs without it."""
    model: str = ""
    """A call of a whole model, or of an encoder, instead of the layer alone: a name in ``models.MODELS``."""
    modes: tuple[str, ...] = MODES
    dtypes: tuple[str, ...] = ("f32", "bf16")
    suites: tuple[str, ...] = ()
    """The suites that it belongs to, in addition to those by mode; see ``calls``."""
    pause: float = 0.0
    """Seconds between two calls, in which a stream waits for its next frame, and caches and threads cool down."""
    cell: bool = False
    """T calls of an nn.LSTMCell in a row, instead of one of an nn.LSTM."""
    gpu_only: bool = False
    """Too large to be measured on a CPU."""

    def __post_init__(self) -> None:
        if self.packed and self.lengths is None:
            raise ValueError(f"{self.name}: packed needs lengths.")
        if self.empty and (self.packed or self.lengths is None):
            raise ValueError(f"{self.name}: empty sequences need lengths and cannot be packed.")
        if self.packed and self.strided:
            raise ValueError(f"{self.name}: packing copies the input, so that packed excludes strided.")
        if self.resets and (self.lengths is not None or self.bidirectional):
            raise ValueError(f"{self.name}: resets exclude lengths and a second direction.")

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def spec(self, mode: str, dtype: str, device: str = "cpu") -> LSTMSpec:
        """The specification of the call that the dispatcher gets."""
        return LSTMSpec(
            device=device,
            dtype=torch.bfloat16 if dtype == "amp" else DTYPES[dtype],
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
            reset=self.resets > 0.0,
            dropout=self.dropout > 0.0 and mode == "training",
            all_cells=False,
            grad=mode == "training",
            tracing=False,
            cell=self.cell,
        )


def _text_recognition() -> Iterator[Case]:
    grid = itertools.product((1, 8, 32), (26, 32, 149), (256, 512), (128, 256, 512), (1, 2))
    for B, T, I, H, L in grid:
        name = f"text-b{B}-t{T}-i{I}-h{H}-l{L}"
        quick = ("quick",) if (B, T, I, H, L) in {(1, 26, 512, 256, 2), (32, 26, 512, 256, 2)} else ()
        yield Case(name, T, B, I, H, L, True, "text recognition", suites=quick)


INFERENCE = (
    #    name                   T    B     I     H  L  bidirectional
    Case("stream-step", 1, 1, 128, 128, 1, False, "streaming, one step", states=True, suites=("quick",)),
    Case("stream-paused", 1, 1, 128, 128, 1, False, "streaming, a step every 10 ms", states=True, pause=0.01),
    Case("voice-activity", 310, 1, 128, 128, 1, False, "voice activity detection", suites=("quick",)),
    *_text_recognition(),
    Case(
        *("text-packed", 150, 8, 960, 200, 3, True, "text recognition, lines of unequal length"),
        lengths=(0.45, 1.0),
        packed=True,
    ),
    Case("diarization-b1", 589, 1, 60, 128, 4, True, "speaker diarization, one window", suites=("quick",)),
    Case("diarization-b32", 589, 32, 60, 128, 4, True, "speaker diarization, a batch"),
    Case("separation", 255, 1, 512, 256, 3, True, "music source separation"),
    Case("dual-path-b22", 100, 22, 128, 128, 1, True, "dual-path speech separation", strided=True),
    Case("dual-path-b500", 100, 500, 128, 128, 1, True, "dual-path speech separation", strided=True),
    Case("codec", 75, 1, 512, 512, 2, False, "neural audio codec, one second"),
    Case("denoising", 62, 1, 768, 768, 2, False, "speech denoising, one second"),
    *(
        Case(f"speech-b{B}-t{T}", T, B, 2560, 1024, 4, True, "speech recognition")
        for B, T in itertools.product((1, 8), (100, 400))
    ),
    Case("activity", 8, 256, 7232, 128, 2, False, "activity recognition, a batch of windows"),
    Case("video-b1", 28, 1, 512, 512, 3, False, "video classification, one clip"),
    Case("video-b8", 28, 8, 512, 512, 3, False, "video classification, a batch"),
    *(
        Case(f"policy-b{B}", 1, B, 512, 256, 1, False, "recurrent policy, one step", states=True)
        for B in (1, 8, 64)
    ),
)

TRAINING = (
    Case("train-text", 26, 192, 512, 256, 1, True, "text recognition, words", suites=("quick",)),
    Case("train-lines", 149, 32, 256, 256, 1, True, "text recognition, lines"),
    Case("train-diarization", 589, 32, 60, 128, 4, True, "speaker diarization", dropout=0.5),
    Case(
        *("train-speech", 800, 64, 1312, 1024, 1, True, "speech recognition, packed"),
        lengths=(0.45, 1.0),
        packed=True,
        gpu_only=True,
    ),
    Case("train-video", 28, 40, 512, 512, 3, False, "video classification"),
    Case("train-wide", 40, 16, 512, 1024, 1, True, "captioning"),
    Case("train-activity", 8, 256, 7232, 128, 2, False, "activity recognition"),
    Case("train-policy", 128, 128, 257, 256, 1, False, "recurrent policy, episodes that end", resets=0.03),
    Case("train-separation", 255, 16, 512, 256, 3, False, "music source separation"),
    Case("train-sentiment-t200", 200, 64, 128, 128, 1, True, "text sentiment, short reviews"),
    Case("train-sentiment-t500", 500, 64, 128, 128, 1, True, "text sentiment, long reviews"),
    Case("train-clicks", 50, 1024, 64, 64, 1, False, "click sequences"),
    Case("train-sales", 60, 256, 64, 128, 1, False, "sales forecasts"),
)

CORE = (
    Case("word-b1", 16, 1, 512, 256, 1, False, "reader of short words, one image"),
    Case("crnn-b1", 26, 1, 512, 256, 2, True, "CRNN text recogniser, one line"),
    Case("crnn-b32", 26, 32, 512, 256, 2, True, "CRNN text recogniser, a batch"),
    Case("series-b1", 100, 1, 64, 128, 1, False, "forecaster, one series"),
    Case("series-b32", 100, 32, 64, 128, 1, False, "forecaster, a batch"),
    Case("speech-b1", 293, 1, 60, 128, 4, True, "acoustic model, three seconds of one speaker"),
    Case("policy-step", 1, 1, 512, 512, 1, False, "recurrent policy, one step", states=True),
    Case("sensor-b64", 128, 64, 128, 128, 1, False, "activity recognition, a batch of windows"),
    Case("one-step-b16", 1, 16, 64, 128, 2, False, "streams advanced together by a step", states=True),
    Case("hidden-200", 50, 8, 128, 200, 1, True, "a hidden size that no vector width divides twice"),
    Case("input-257", 100, 4, 257, 128, 1, False, "bins of a 512-point spectrogram"),
    Case("strided-map", 26, 8, 512, 256, 1, True, "feature map of a CNN, permuted", strided=True),
    Case(
        *("packed", 100, 16, 64, 128, 2, True, "PackedSequence"),
        lengths=(0.45, 1.0),
        packed=True,
        suites=("quick",),
    ),
    Case("projection", 50, 8, 80, 256, 1, False, "LSTM with a projection (LSTMP)", proj_size=64),
    Case("empty-rows", 60, 16, 64, 128, 1, True, "silent clips among others", lengths=(0.45, 1.0), empty=3),
    Case("no-steps", 0, 4, 32, 64, 1, False, "nothing has arrived yet", states=True),
)

MODELS = tuple(
    Case(f"model-{model}-b{B}", T, B, I, H, layers, bidirectional, use, model=model)
    for model, batches, T, I, H, layers, bidirectional, use in (
        # the sizes are those of its LSTMs
        ("video", (1,), 16, 512, 256, 2, False, "video classification"),
        ("video-loop", (1,), 8, 4096, 256, 1, False, "action recognition, frame by frame"),
        ("words", (1, 16), 32, 1024, 128, 1, True, "spoken words"),
        ("text-vgg", (1,), 149, 256, 256, 2, True, "text recognition, a line"),
        ("text-resnet", (1,), 151, 512, 512, 2, True, "text recognition, a line"),
        ("hybrid", (1,), 8, 832, 256, 1, False, "emotions from video, sound and sensors"),
        ("policy-step", (1, 32), 1, 512, 512, 1, False, "recurrent policy, one step"),
        ("policy-rollout", (8,), 16, 512, 512, 1, False, "recurrent policy, a rollout"),
        ("forecaster", (1, 32), 64, 128, 128, 2, False, "forecasts"),
        ("sentiment", (1, 32), 100, 64, 70, 1, False, "text sentiment"),
        ("sleep", (1,), 20, 3200, 256, 2, True, "sleep stages from EEG"),
        ("separation", (1,), 255, 512, 256, 3, True, "music source separation"),
        ("denoising", (1,), 62, 768, 768, 2, False, "speech denoising, a second"),
    )
    for B in batches
)

ENCODERS = tuple(
    Case(f"encoder-{name}-b{B}", T, B, 0, 0, 0, False, use, model=model)
    for name, model, T, batches, use in (
        # T: steps of the LSTM that would follow, where they set the size of the input
        ("vgg-64x600", "vgg-64", 150, (1,), "text recognition, a line"),
        ("vgg-32x256", "vgg-32", 64, (8,), "text recognition, short lines"),
        ("resnet18-112", "resnet18", 1, (1, 16), "video, frames"),
        ("mobilenetv3-96", "mobilenetv3", 1, (1, 16), "video on small devices, frames"),
        ("lenet5", "lenet5", 1, (16,), "characters"),
        ("nature-cnn", "nature-cnn", 1, (1, 32), "recurrent policy, frames"),
        ("cnn-1d-16x256", "cnn-1d", 64, (1, 32), "series"),
        ("spectrogram-64x128", "spectrogram", 32, (1, 8), "spoken words"),
    )
    for B in batches
)


def _with(cases: tuple[Case, ...], suite: str = "", **defaults: Any) -> tuple[Case, ...]:
    """The cases of a section, with the fields that all of them share."""
    return tuple(replace(c, suites=(*c.suites, suite) if suite else c.suites, **defaults) for c in cases)


TABLE: tuple[Case, ...] = (
    *_with(CORE, "core"),
    *_with(INFERENCE, modes=("inference",)),
    *_with(TRAINING, modes=("training",), dtypes=("f32", "amp")),
    *_with(MODELS, "model", dtypes=("f32", "amp")),
    *_with(ENCODERS, "encoder", dtypes=("f32", "amp")),
)
CASES: dict[str, Case] = {case.name: case for case in TABLE}


class Call(NamedTuple):
    """One row of a benchmark."""

    case: Case
    mode: str
    dtype: str


def calls(suite: str, contains: str = "", device: str = "cpu") -> list[Call]:
    """The rows of a suite whose name contains a text, those of the suite `quick` first."""
    cases = sorted(TABLE, key=lambda case: "quick" not in case.suites)
    found = [call for call in calls_of(cases, device) if _in_suite(call.case, call.mode, suite)]
    return [call for call in found if contains in f"{call.case.name} {call.mode} {call.dtype}"]


def calls_of(cases: Iterable[Case], device: str = "cpu") -> Iterator[Call]:
    """All calls of the cases: on a GPU also in float16, on a CPU without the cases that are ``gpu_only``."""
    for case in cases:
        if case.gpu_only and device == "cpu":
            continue
        dtypes = (*case.dtypes, "fp16") if device == "cuda" and "amp" not in case.dtypes else case.dtypes
        for mode, dtype in itertools.product(case.modes, dtypes):
            yield Call(case, mode, dtype)


def of_shape(text: str) -> Case:
    """The case of a shape from the command line, "T,B,I,H[,layers[,directions]]".

    Raises:
        ValueError: the text has another form.
    """
    numbers = text.split(",")
    if not 4 <= len(numbers) <= 6 or not all(n.strip().isdecimal() and int(n) > 0 for n in numbers):
        raise ValueError(
            f"--shape: expected T,B,I,H[,layers[,directions]], such as 26,1,512,256,2,2, got {text!r}."
        )
    T, B, I, H, layers, directions = (*map(int, numbers), 1, 1)[:6]
    if directions > 2:
        raise ValueError(f"--shape: expected 1 or 2 directions, got {directions}.")
    return Case(
        f"shape-{text.replace(',', '-')}", T, B, I, H, layers, directions == 2, "a shape of the caller's"
    )


def _in_suite(case: Case, mode: str, suite: str) -> bool:
    if suite in ("all", "gpu"):
        return True
    if suite in ("cpu", "train"):
        return not case.model and mode == {"cpu": "inference", "train": "training"}[suite]
    return suite in case.suites
