"""Whole CNN-LSTM models as users write them: plain PyTorch, without this package. And the table of what is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .encoders import (
    VGG,
    AlexNet,
    CNN1d,
    LeNet5,
    MobileNetV3Small,
    NatureCNN,
    ResNet18,
    SpectrogramCNN,
    TextResNet,
)

States = tuple[Tensor, Tensor]


class VideoClassifier(nn.Module):
    """Frames (B, T, 3, 112, 112), encoded as one batch, then an LSTM over time -> class scores (B, 101)."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = ResNet18()
        self.lstm = nn.LSTM(512, 256, 2, batch_first=True)
        self.head = nn.Linear(256, 101)

    def forward(self, frames: Tensor) -> Tensor:
        B, T = frames.shape[:2]
        features = self.cnn(frames.view(B * T, *frames.shape[2:])).view(B, T, -1)
        return self.head(self.lstm(features)[0][:, -1])


class ActionRecogniser(nn.Module):
    """Frames (B, T, 3, 224, 224), encoded in a loop, as in LRCN (Donahue et al. 2015) -> class scores (B, 101), the
    mean over the frames."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = AlexNet()
        self.lstm = nn.LSTM(4096, 256, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(256, 101)

    def forward(self, frames: Tensor) -> Tensor:
        features = []
        for t in range(frames.size(1)):
            features.append(self.cnn(frames[:, t]))
        output, _ = self.lstm(torch.stack(features, dim=1))
        return self.head(self.dropout(output)).mean(dim=1)


class WordSpotter(nn.Module):
    """Log-mel spectrograms (B, 1, 64, T): a 2-D CNN, then a BiLSTM over time -> class scores (B, 35)."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = SpectrogramCNN()
        self.lstm = nn.LSTM(1024, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 35)

    def forward(self, mel: Tensor) -> Tensor:
        features = self.cnn(mel)  # (B, 128, 8, T/4)
        features = features.permute(0, 3, 1, 2).flatten(2)
        return self.head(self.lstm(features)[0].mean(dim=1))


class TextReader(nn.Module):
    """Lines of text (B, 1, 64, W): a CNN and BiLSTMs, for CTC -> scores (steps, B, 97)."""

    def __init__(self, cnn: nn.Module, channels: int, hidden: int) -> None:
        super().__init__()
        self.cnn = cnn
        self.lstm1 = nn.LSTM(channels, hidden, bidirectional=True, batch_first=True)
        self.linear1 = nn.Linear(2 * hidden, hidden)
        self.lstm2 = nn.LSTM(hidden, hidden, bidirectional=True, batch_first=True)
        self.linear2 = nn.Linear(2 * hidden, hidden)
        self.head = nn.Linear(hidden, 97)

    def forward(self, lines: Tensor) -> Tensor:
        features = self.cnn(lines).mean(dim=2).transpose(1, 2)  # (B, steps, channels)
        features = self.linear1(self.lstm1(features)[0])
        features = self.linear2(self.lstm2(features)[0])
        return self.head(features).transpose(0, 1)


class EmotionRecogniser(nn.Module):
    """Frames (B, T, 3, 96, 96), log-mel spectrograms (B, T, 1, 64, 32) and sensors (B, T, 6, 64), each with its CNN,
    concatenated, then an LSTM -> class scores (B, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.faces = MobileNetV3Small()
        self.audio = nn.Sequential(SpectrogramCNN(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.sensors = nn.Sequential(CNN1d(6), nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.lstm = nn.LSTM(576 + 128 + 128, 256, batch_first=True)
        self.head = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 7))

    def forward(self, frames: Tensor, mel: Tensor, sensors: Tensor) -> Tensor:
        B, T = frames.shape[:2]
        parts = [
            cnn(x.flatten(0, 1)).view(B, T, -1)
            for cnn, x in ((self.faces, frames), (self.audio, mel), (self.sensors, sensors))
        ]
        output, _ = self.lstm(torch.cat(parts, dim=2))
        return self.head(output[:, -1])


class Policy(nn.Module):
    """One step of a recurrent actor-critic: frames (B, 4, 84, 84), states (1, B, 512) -> logits (B, 18), value (B,) and
    the new states."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = NatureCNN()
        self.lstm = nn.LSTM(512, 512)
        self.actor = nn.Linear(512, 18)
        self.critic = nn.Linear(512, 1)

    def forward(self, frames: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, States]:
        output, states = self.lstm(self.cnn(frames).unsqueeze(0), (h, c))
        output = output.squeeze(0)
        return self.actor(output), self.critic(output).squeeze(-1), states


class PolicyRollout(Policy):
    """The same on sequences of frames (T, B, 4, 84, 84) -> logits (T, B, 18), values (T, B) and the last states."""

    def forward(self, frames: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, States]:
        T, B = frames.shape[:2]
        features = self.cnn(frames.reshape(T * B, *frames.shape[2:])).reshape(T, B, -1)
        output, states = self.lstm(features, (h, c))
        return self.actor(output), self.critic(output).squeeze(-1), states


class Forecaster(nn.Module):
    """Series (B, T, 16) -> the next 24 values (B, 24)."""

    def __init__(self) -> None:
        super().__init__()
        self.cnn = CNN1d(16)
        self.lstm = nn.LSTM(128, 128, 2, batch_first=True)
        self.head = nn.Linear(128, 24)

    def forward(self, series: Tensor) -> Tensor:
        features = self.cnn(series.transpose(1, 2)).transpose(1, 2)
        _, (h_n, _) = self.lstm(features)
        return self.head(h_n[-1])


class Sentiment(nn.Module):
    """Token numbers (B, T) below 20,000: embedding, 1-D CNN, LSTM -> a logit (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20_000, 128, padding_idx=0)
        self.dropout = nn.Dropout(0.25)
        self.conv = nn.Conv1d(128, 64, 5)
        self.pool = nn.MaxPool1d(4)
        self.lstm = nn.LSTM(64, 70, batch_first=True)
        self.head = nn.Linear(70, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.dropout(self.embedding(tokens)).transpose(1, 2)
        features = self.pool(torch.relu(self.conv(embedded))).transpose(1, 2)
        return self.head(self.lstm(features)[0][:, -1]).squeeze(-1)


class SleepStager(nn.Module):
    """EEG of T epochs of 30 s at 100 Hz (B, T, 3000): CNNs with small and with large filters, then a BiLSTM with a
    shortcut, as in DeepSleepNet (Supratak et al. 2017) -> scores of the stages (B, T, 5)."""

    def __init__(self) -> None:
        super().__init__()

        def conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
            padding = kernel // 2
            layer = nn.Conv1d(channels, out, kernel, stride, padding, bias=False)
            return nn.Sequential(layer, nn.BatchNorm1d(out), nn.ReLU())

        def cnn(kernel: int, stride: int, pool: int, inner: int, last: int) -> nn.Sequential:
            return nn.Sequential(
                conv(1, 64, kernel, stride),
                nn.MaxPool1d(pool),
                nn.Dropout(),
                conv(64, 128, inner),
                conv(128, 128, inner),
                conv(128, 128, inner),
                nn.MaxPool1d(last),
                nn.Flatten(),
            )

        self.small = cnn(50, 6, 8, 8, 4)
        self.large = cnn(400, 50, 4, 6, 2)
        features = self.small(torch.zeros(2, 1, 3000)).size(1) + self.large(torch.zeros(2, 1, 3000)).size(1)
        self.lstm = nn.LSTM(features, 256, 2, batch_first=True, bidirectional=True)
        self.shortcut = nn.Sequential(nn.Linear(features, 512), nn.ReLU())
        self.head = nn.Linear(512, 5)

    def forward(self, eeg: Tensor) -> Tensor:
        B, T = eeg.shape[:2]
        epochs = eeg.reshape(B * T, 1, -1)
        features = torch.cat([self.small(epochs), self.large(epochs)], dim=1).reshape(B, T, -1)
        return self.head(self.lstm(features)[0] + self.shortcut(features))


class Separator(nn.Module):
    """Magnitude spectrograms of stereo music (B, 2, 2049, T) -> those of one instrument, as in Open-Unmix (Stöter et
    al. 2019)."""

    BINS, KEPT, HIDDEN = 2049, 1487, 512

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(self.KEPT))
        self.scale = nn.Parameter(torch.ones(self.KEPT))
        self.fc1 = nn.Linear(2 * self.KEPT, self.HIDDEN, bias=False)
        self.bn1 = nn.BatchNorm1d(self.HIDDEN)
        self.lstm = nn.LSTM(self.HIDDEN, self.HIDDEN // 2, 3, bidirectional=True)
        self.fc2 = nn.Linear(2 * self.HIDDEN, self.HIDDEN, bias=False)
        self.bn2 = nn.BatchNorm1d(self.HIDDEN)
        self.fc3 = nn.Linear(self.HIDDEN, 2 * self.BINS, bias=False)
        self.bn3 = nn.BatchNorm1d(2 * self.BINS)
        self.out_scale = nn.Parameter(torch.ones(self.BINS))
        self.out_mean = nn.Parameter(torch.ones(self.BINS))

    def forward(self, mix: Tensor) -> Tensor:
        steps = mix.permute(3, 0, 1, 2)  # (T, B, 2, bins)
        T, B = steps.shape[:2]
        x = (steps[..., : self.KEPT] + self.mean) * self.scale
        x = torch.tanh(self.bn1(self.fc1(x.reshape(T * B, -1)))).reshape(T, B, -1)
        x = torch.cat([x, self.lstm(x)[0]], dim=-1)
        x = torch.relu(self.bn2(self.fc2(x.reshape(T * B, -1))))
        x = self.bn3(self.fc3(x)).reshape(T, B, 2, self.BINS)
        mask = torch.relu(x * self.out_scale + self.out_mean)
        return (mask * steps).permute(1, 2, 3, 0)


class Denoiser(nn.Module):
    """Waveforms (B, 1, samples) -> the same shape, by a 1-D convolutional U-net with an LSTM at its bottom, as in
    Demucs (Défossez et al. 2020). The samples are 1024 * T + 1364 for T steps of the LSTM."""

    def __init__(self, depth: int = 5, hidden: int = 48) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        channels = 1
        for level in range(depth):
            width = hidden << level
            self.encoder.append(
                nn.Sequential(
                    nn.Conv1d(channels, width, 8, 4), nn.ReLU(), nn.Conv1d(width, 2 * width, 1), nn.GLU(1)
                )
            )
            last: list[nn.Module] = [nn.ReLU()] if level else []
            self.decoder.insert(
                0,
                nn.Sequential(
                    nn.Conv1d(width, 2 * width, 1),
                    nn.GLU(1),
                    nn.ConvTranspose1d(width, channels, 8, 4),
                    *last,
                ),
            )
            channels = width
        self.lstm = nn.LSTM(channels, channels, 2)

    def forward(self, noisy: Tensor) -> Tensor:
        scale = noisy.std(dim=-1, keepdim=True) + 1e-3
        x = noisy / scale
        skips = []
        for encode in self.encoder:
            x = encode(x)
            skips.append(x)
        x = self.lstm(x.permute(2, 0, 1))[0].permute(1, 2, 0)
        for decode in self.decoder:
            x = decode(x + skips.pop())
        return x * scale


Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Model:
    """A model or an encoder: its constructor, and the shapes of its inputs for T steps of B sequences."""

    build: Callable[[], nn.Module]
    shapes: Callable[[int, int], Shapes]
    tokens: int = 0
    """The inputs are numbers of type int64 below this; otherwise they are normally distributed, float32."""
    draws: int = 2
    """Inputs on which results are compared in inference. The error of a few numbers varies: they take more."""

    def axes(self) -> list[list[int]]:
        """Per input the dimensions that depend on T or B, which an export has to leave open."""
        pairs = zip(self.shapes(16, 2), self.shapes(32, 3), strict=True)
        return [
            [k for k, sizes in enumerate(zip(*pair, strict=True)) if len(set(sizes)) > 1] for pair in pairs
        ]

    def draw(self, T: int, B: int) -> tuple[Tensor, ...]:
        """Random inputs."""
        if self.tokens:
            return tuple(torch.randint(self.tokens, shape) for shape in self.shapes(T, B))
        return tuple(torch.randn(shape) for shape in self.shapes(T, B))


MODELS: dict[str, Model] = {
    "video": Model(VideoClassifier, lambda T, B: ((B, T, 3, 112, 112),)),
    # the number of frames is fixed: an exporter unrolls the loop over them
    "video-loop": Model(ActionRecogniser, lambda T, B: ((B, 8, 3, 224, 224),)),
    "words": Model(WordSpotter, lambda T, B: ((B, 1, 64, 4 * T),)),
    "text-vgg": Model(lambda: TextReader(VGG(), 256, 256), lambda T, B: ((B, 1, 64, 4 * T + 4),)),
    "text-resnet": Model(lambda: TextReader(TextResNet(), 512, 512), lambda T, B: ((B, 1, 64, 4 * T - 4),)),
    "hybrid": Model(
        EmotionRecogniser, lambda T, B: ((B, T, 3, 96, 96), (B, T, 1, 64, 32), (B, T, 6, 64)), draws=8
    ),
    "policy-step": Model(Policy, lambda T, B: ((B, 4, 84, 84), (1, B, 512), (1, B, 512)), draws=16),
    "policy-rollout": Model(PolicyRollout, lambda T, B: ((T, B, 4, 84, 84), (1, B, 512), (1, B, 512))),
    "forecaster": Model(Forecaster, lambda T, B: ((B, 4 * T, 16),), draws=16),
    "sentiment": Model(Sentiment, lambda T, B: ((B, 4 * T + 4),), tokens=20_000, draws=16),
    "sleep": Model(SleepStager, lambda T, B: ((B, T, 3000),)),
    "separation": Model(Separator, lambda T, B: ((B, 2, 2049, T),)),
    "denoising": Model(Denoiser, lambda T, B: ((B, 1, 1024 * T + 1364),)),
    # encoders alone
    "vgg-64": Model(VGG, lambda T, B: ((B, 1, 64, 4 * T),)),
    "vgg-32": Model(VGG, lambda T, B: ((B, 1, 32, 4 * T),)),
    "resnet18": Model(ResNet18, lambda T, B: ((B, 3, 112, 112),)),
    "mobilenetv3": Model(MobileNetV3Small, lambda T, B: ((B, 3, 96, 96),)),
    "lenet5": Model(LeNet5, lambda T, B: ((B, 1, 32, 32),)),
    "nature-cnn": Model(NatureCNN, lambda T, B: ((B, 4, 84, 84),)),
    "cnn-1d": Model(lambda: CNN1d(16), lambda T, B: ((B, 16, 4 * T),)),
    "spectrogram": Model(SpectrogramCNN, lambda T, B: ((B, 1, 64, 4 * T),)),
}


def make(name: str, T: int, B: int, seed: int) -> tuple[nn.Module, list[tuple[Tensor, ...]]]:
    """A model and its ``draws`` inputs, random numbers in float32 on the CPU. Its activations keep their scale from
    layer to layer, as in a trained model: at PyTorch's defaults they vanish in a deep one, and with them most errors.
    """
    model = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = model.build()
        for layer in module.modules():
            if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        _set_statistics(module, model.draw(max(T // 4, 4), B))
        return module, [model.draw(T, B) for _ in range(model.draws)]


def _set_statistics(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Gives the batch norms the statistics of the inputs. In float64: every process must get the same numbers."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            module.double()(*(x.double() for x in inputs))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        module.float()
