"""The zoo's networks and the blocks they are made of, at sizes that devices of some hundred MiB are given. torch alone.

Two variants are worth a word. A norm is a layer made of a number of channels, so that one network comes with BatchNorm
or with GroupNorm. Convolutions before a norm have no bias, which the norm would take away again.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Callable[[int], nn.Module]
Activation = Callable[[], nn.Module]

# Groups of two channels in the narrowest layer (16 channels) of the networks below, of eight in the widest (64).
group_norm: Norm = partial(nn.GroupNorm, 8)


def convolution(
    into: int, out: int, size: int, stride: int = 1, groups: int = 1, norm: Norm = nn.BatchNorm2d
) -> list[nn.Module]:
    return [nn.Conv2d(into, out, size, stride, size // 2, groups=groups, bias=False), norm(out)]


class Block(nn.Module):
    """He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), figure 2; its shortcut B is projected."""

    def __init__(self, into: int, out: int, stride: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        first, second = convolution(into, out, 3, stride, norm=norm), convolution(out, out, 3, norm=norm)
        self.body = nn.Sequential(*first, nn.ReLU(inplace=True), *second)
        same = stride == 1 and into == out
        self.shortcut = nn.Sequential() if same else nn.Sequential(*convolution(into, out, 1, stride, norm=norm))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


class Squeeze(nn.Module):
    """Weighs channels by what the whole image holds (Hu et al., CVPR 2018), with MobileNetV3's hard sigmoid."""

    def __init__(self, channels: int, hidden: int = 4) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)  # type: ignore[no-any-return]


class Inverted(nn.Module):
    """MobileNetV2's bottleneck (Sandler et al., CVPR 2018), with V3's squeeze where it is asked for."""

    def __init__(
        self, into: int, out: int, stride: int, act: Activation, expansion: int = 3, squeeze: bool = False
    ) -> None:
        super().__init__()
        wide = expansion * into
        self.body = nn.Sequential(
            *([*convolution(into, wide, 1), act()] if expansion > 1 else []),
            *convolution(wide, wide, 3, stride, groups=wide),
            act(),
            *([Squeeze(wide, max(4, wide // 4))] if squeeze else []),
            *convolution(wide, out, 1),
        )
        self.residual = stride == 1 and into == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class Encoder(nn.Module):
    """A transformer encoder over words, its outputs averaged and classified."""

    def __init__(self, vocabulary: int, length: int, width: int, classes: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Parameter(0.02 * torch.randn(1, length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.encoder(self.words(words) + self.places).mean(1))  # type: ignore[no-any-return]


class Forecaster(nn.Module):
    """An LSTM over a series, its last state taken to one number."""

    def __init__(self, series: int, width: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(series, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


def cnn_1d() -> nn.Module:
    """Six signals of 128 samples to six activities: the layers of examples/hapt_cnn.py; 31 thousand parameters."""
    layers: list[nn.Module] = []
    for into, out, size in ((6, 32, 9), (32, 48, 5), (48, 64, 5)):
        layers += [nn.Conv1d(into, out, size, stride=2, padding=size // 2), nn.BatchNorm1d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 6))


def cnn_2conv() -> nn.Module:
    """28x28 grey pixels to ten classes by two convolutions with BatchNorm and pools; 99 thousand parameters."""
    layers: list[nn.Module] = []
    for into, out in ((1, 32), (32, 64)):
        layers += [nn.Conv2d(into, out, 3, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 5 * 5, 50), nn.ReLU(), nn.Linear(50, 10))


def resnet(blocks: int, norm: Norm) -> nn.Module:
    """32x32 pixels to ten classes as in He et al., section 4.2: 6 blocks + 2 layers, 16, 32 and 64 channels wide."""
    layers: list[nn.Module] = [*convolution(3, 16, 3, norm=norm), nn.ReLU()]
    into = 16
    for out in (16, 32, 64):
        for i in range(blocks):
            layers.append(Block(into, out, 2 if out > 16 and i == 0 else 1, norm))
            into = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def mobilenet_v2() -> nn.Module:
    """96x96 pixels to two classes (is a person there?), as narrow and as deep as microcontrollers are given it."""
    layers: list[nn.Module] = [*convolution(3, 16, 3, 2), nn.ReLU6()]
    into = 16
    for expansion, out, stride in ((1, 8, 1), (6, 16, 2), (6, 16, 1), (6, 24, 2), (6, 24, 1), (6, 32, 2), (6, 32, 1)):
        layers.append(Inverted(into, out, stride, nn.ReLU6, expansion))
        into = out
    layers += [*convolution(into, 128, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 2)]
    return nn.Sequential(*layers)


def mobilenet_v3() -> nn.Module:
    """96x96 pixels to two classes in the manner of MobileNetV3-Small (Howard et al., ICCV 2019), half as wide."""
    rectified, hard = partial(nn.ReLU, inplace=True), partial(nn.Hardswish, inplace=True)
    layers: list[nn.Module] = [*convolution(3, 16, 3, 2), hard(), Inverted(16, 16, 2, rectified, 1, squeeze=True)]
    layers += [Inverted(16, 24, 2, rectified, 4), Inverted(24, 24, 1, rectified, 3)]
    layers += [Inverted(24, 32, 2, hard, 4, squeeze=True), Inverted(32, 32, 1, hard, 4, squeeze=True)]
    layers += [*convolution(32, 96, 1), hard(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(96, 128), hard(), nn.Linear(128, 2))


def ds_cnn() -> nn.Module:
    """A second of speech as 49x10 MFCC to twelve words (Zhang et al., "Hello Edge", 2017): the small DS-CNN."""
    first = nn.Conv2d(1, 64, (10, 4), (2, 2), (5, 1), bias=False)
    layers: list[nn.Module] = [first, nn.BatchNorm2d(64), nn.ReLU()]
    for _ in range(4):
        layers += [*convolution(64, 64, 3, groups=64), nn.ReLU(), *convolution(64, 64, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))
