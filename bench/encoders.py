"""CNN encoders as users write them: plain PyTorch, each with its usual sizes."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def conv_block(channels: int, out: int, pool: tuple[int, int] | None = None) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU and, where ``pool`` is given, max-pooling."""
    layers = [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *([] if pool is None else [nn.MaxPool2d(pool)]))


class VGG(nn.Module):
    """The CNN of CRNN (Shi et al. 2015) at half its width: lines of text (B, 1, H, W) -> (B, 256, h, W/4-1)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(True),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(True),
            nn.MaxPool2d((2, 1)),
            conv_block(128, 256),
            conv_block(256, 256, (2, 1)),
            nn.Conv2d(256, 256, 2),
            nn.ReLU(True),
        )

    def forward(self, lines: Tensor) -> Tensor:
        return self.layers(lines)


class BasicBlock(nn.Module):
    """The residual block of ResNet-18 (He et al. 2016)."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return self.relu(y)


class ResNet18(nn.Module):
    """Images (B, 3, H, W) -> features (B, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        widths = (64, 64, 128, 256, 512)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(BasicBlock(a, b, stride=1 if a == b else 2), BasicBlock(b, b))
                for a, b in pairwise(widths)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images: Tensor) -> Tensor:
        return torch.flatten(self.pool(self.stages(self.stem(images))), 1)


class TextResNet(nn.Module):
    """A residual CNN for text, after FAN (Cheng et al. 2017): lines of text (B, 1, H, W) -> (B, 512, h, W/4+1)."""

    def __init__(self) -> None:
        super().__init__()

        def stage(channels: int, out: int, blocks: int) -> nn.Sequential:
            first = BasicBlock(channels, out)
            return nn.Sequential(
                first, *(BasicBlock(out, out) for _ in range(blocks - 1)), conv_block(out, out)
            )

        self.layers = nn.Sequential(
            conv_block(1, 32),
            conv_block(32, 64, (2, 2)),
            stage(64, 128, 1),
            nn.MaxPool2d(2),
            stage(128, 256, 2),
            nn.MaxPool2d(2, (2, 1), padding=(0, 1)),
            stage(256, 512, 5),
            stage(512, 512, 3),
            nn.Conv2d(512, 512, 2, (2, 1), padding=(0, 1), bias=False),
            nn.BatchNorm2d(512),
            nn.ReLU(inplace=True),
            nn.Conv2d(512, 512, 2, bias=False),
            nn.BatchNorm2d(512),
            nn.ReLU(inplace=True),
        )

    def forward(self, lines: Tensor) -> Tensor:
        return self.layers(lines)


class SqueezeExcite(nn.Module):
    """Scales each channel by a weight that depends on the mean of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.relu = nn.ReLU()
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.relu(self.fc1(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Expands by a 1x1 convolution, filters each channel, weighs the channels, and projects."""

    def __init__(
        self, channels: int, expanded: int, out: int, kernel: int, stride: int, excite: bool, hard: bool
    ) -> None:
        super().__init__()
        activation = nn.Hardswish if hard else nn.ReLU

        def norm(n: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(n, eps=0.001, momentum=0.01)

        layers: list[nn.Module] = []
        if expanded != channels:
            layers += [nn.Conv2d(channels, expanded, 1, bias=False), norm(expanded), activation(inplace=True)]
        depthwise = nn.Conv2d(
            expanded, expanded, kernel, stride, padding=kernel // 2, groups=expanded, bias=False
        )
        layers += [depthwise, norm(expanded), activation(inplace=True)]
        if excite:
            layers.append(SqueezeExcite(expanded, (expanded // 4 + 4) // 8 * 8))
        layers += [nn.Conv2d(expanded, out, 1, bias=False), norm(out)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class MobileNetV3Small(nn.Module):
    """MobileNetV3-small (Howard et al. 2019): images (B, 3, H, W) -> features (B, 576)."""

    BLOCKS = (
        # expanded, out, kernel, stride, squeeze-excite, hard-swish
        (16, 16, 3, 2, True, False),
        (72, 24, 3, 2, False, False),
        (88, 24, 3, 1, False, False),
        (96, 40, 5, 2, True, True),
        (240, 40, 5, 1, True, True),
        (240, 40, 5, 1, True, True),
        (120, 48, 5, 1, True, True),
        (144, 48, 5, 1, True, True),
        (288, 96, 5, 2, True, True),
        (576, 96, 5, 1, True, True),
        (576, 96, 5, 1, True, True),
    )

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, 16, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(16, eps=0.001, momentum=0.01),
            nn.Hardswish(inplace=True),
        ]
        channels = 16
        for expanded, out, kernel, stride, excite, hard in self.BLOCKS:
            layers.append(InvertedResidual(channels, expanded, out, kernel, stride, excite, hard))
            channels = out
        layers += [
            nn.Conv2d(channels, 576, 1, bias=False),
            nn.BatchNorm2d(576, eps=0.001, momentum=0.01),
            nn.Hardswish(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998): images (B, 1, 32, 32) -> features (B, 84)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(torch.tanh(self.conv1(images)))
        x = self.pool(torch.tanh(self.conv2(x)))
        x = torch.tanh(self.fc1(x.view(x.size(0), -1)))
        return torch.tanh(self.fc2(x))


class AlexNet(nn.Module):
    """The convolutions and the first fully connected layer of AlexNet (Krizhevsky 2014): images (B, 3, 224, 224) ->
    features (B, 4096)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        self.fc6 = nn.Sequential(
            nn.Flatten(), nn.Dropout(), nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.fc6(self.features(images))


class NatureCNN(nn.Module):
    """The CNN of DQN (Mnih et al. 2015): frames (B, 4, 84, 84) of bytes / 255 -> features (B, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3136, 512),
            nn.ReLU(),
        )

    def forward(self, frames: Tensor) -> Tensor:
        return self.layers(frames)


class CNN1d(nn.Module):
    """Series (B, channels, T) -> features (B, 128, T/4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(channels, 64, 5, padding=2, bias=False),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(64, 128, 5, padding=2, bias=False),
            nn.BatchNorm1d(128),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(128, 128, 3, padding=1, bias=False),
            nn.BatchNorm1d(128),
            nn.ReLU(),
        )

    def forward(self, series: Tensor) -> Tensor:
        return self.layers(series)


class SpectrogramCNN(nn.Module):
    """Log-mel spectrograms (B, 1, 64, T) -> features (B, 128, 8, T/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_block(1, 32),
            conv_block(32, 32, (2, 2)),
            conv_block(32, 64),
            conv_block(64, 64, (2, 2)),
            conv_block(64, 128, (2, 1)),
        )

    def forward(self, mel: Tensor) -> Tensor:
        return self.layers(mel)
