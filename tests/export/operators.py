"""Every operator that a training graph covers, each in a small case: what docs/operators.md tells of."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from export import TrainingSpec

EXAMPLES = 4
Make = Callable[[], TrainingSpec]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the page. `make` is called after the generator was seeded."""

    group: str
    name: str
    make: Make


class Probed(nn.Module):
    """A layer behind a parameter as large as an example, whose gradient tells that of the layer's input.

    The parameter is zero, and counts for every example and place differently: what is alike for a batch would vanish
    behind its normalisation.
    """

    def __init__(self, layer: Callable[[Tensor], Any], example: Tensor) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros_like(example[0]))
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x + self.probe * torch.cos(x))


class Chosen(nn.Module):
    """Named layers, and a function of them and the input."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleDict(layers), function

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(self.layers, *values)


def normal(*shape: int) -> Tensor:
    return torch.randn(EXAMPLES, *shape)


def tied(*shape: int) -> Tensor:
    """Values of which many are equal."""
    return torch.randint(-2, 3, (EXAMPLES, *shape)).float()


def labels(classes: int, *shape: int) -> Tensor:
    return torch.randint(0, classes, (EXAMPLES, *shape))


def on(layer: Callable[[Tensor], Any], x: Tensor) -> TrainingSpec:
    """The layer's result, compared with numbers drawn at random."""
    probed = Probed(layer, x)
    with torch.no_grad():
        target = torch.randn_like(layer(x))
    return TrainingSpec(probed, x, target, "mse")


def under(loss: Any, x: Tensor, *targets: Tensor) -> TrainingSpec:
    """The input itself under a loss."""
    return TrainingSpec(Probed(nn.Identity(), x), x, targets, loss)


def drawn(layer: nn.Module) -> nn.Module:
    """The layer with every parameter drawn at random, weights of ones and zeros included."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return layer


def _convolutions() -> list[Case]:
    image, odd, sound = (4, 8, 8), (4, 9, 7), (4, 11)
    forms: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "Conv2d": (lambda: nn.Conv2d(4, 6, 3), image),
        "Conv2d, kernel 1": (lambda: nn.Conv2d(4, 6, 1), image),
        "Conv2d, kernel 1, stride 2": (lambda: nn.Conv2d(4, 6, 1, 2, bias=False), odd),
        "Conv2d, padding": (lambda: nn.Conv2d(4, 6, 3, padding=(1, 2)), odd),
        "Conv2d, padding='same'": (lambda: nn.Conv2d(4, 6, (3, 4), padding="same"), odd),
        "Conv2d, padding_mode='reflect'": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), odd),
        "Conv2d, padding_mode='circular'": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), odd),
        "Conv2d, stride with a remainder": (lambda: nn.Conv2d(4, 6, 3, 2), image),
        "Conv2d, uneven kernel, stride and padding": (lambda: nn.Conv2d(4, 6, (5, 2), (3, 2), (2, 1)), odd),
        "Conv2d, stride over the kernel": (lambda: nn.Conv2d(4, 6, 2, 3), image),
        "Conv2d, dilation": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2), odd),
        "Conv2d, dilation and stride": (lambda: nn.Conv2d(4, 6, 3, 2, (1, 2), (2, 1)), odd),
        "Conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), image),
        "Conv2d, groups, stride and dilation": (lambda: nn.Conv2d(4, 8, 3, 2, 2, 2, groups=2), odd),
        "Conv2d, kernel 1 in groups": (lambda: nn.Conv2d(4, 8, 1, groups=2), image),
        "Conv2d, depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), image),
        "Conv2d, depthwise, stride 2": (lambda: nn.Conv2d(4, 4, 5, 2, 2, groups=4), odd),
        "Conv2d, depthwise with a multiplier": (lambda: nn.Conv2d(4, 8, 3, groups=4), image),
        "Conv1d": (lambda: nn.Conv1d(4, 6, 3), sound),
        "Conv1d, stride with a remainder, padding": (lambda: nn.Conv1d(4, 6, 4, 3, 2), sound),
        "Conv1d, dilation, padding='same'": (lambda: nn.Conv1d(4, 6, 3, dilation=2, padding="same"), sound),
        "Conv1d, groups": (lambda: nn.Conv1d(4, 6, 3, groups=2), sound),
        "Conv1d, depthwise, dilation": (lambda: nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=4), sound),
        "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 3, 3), image),
        "ConvTranspose2d, stride and padding": (lambda: nn.ConvTranspose2d(4, 3, 4, 2, 1, bias=False), image),
        "ConvTranspose2d, output_padding": (lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, (1, 0)), odd),
        "ConvTranspose2d, groups and dilation": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, dilation=2), image),
        "ConvTranspose2d, stride over the kernel": (lambda: nn.ConvTranspose2d(4, 3, 2, 3), image),
        "ConvTranspose1d, stride and output_padding": (lambda: nn.ConvTranspose1d(4, 3, 3, 2, 1, 1), sound),
        "ConvTranspose1d, groups": (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), sound),
        "Fold and Unfold": (
            lambda: nn.Sequential(nn.Unfold(3, 1, 1, 2), nn.Fold((8, 8), 3, 1, 1, 2)),
            (4, 8, 8),
        ),
    }
    return [Case("convolution", name, partial(_layer, make, shape)) for name, (make, shape) in forms.items()]


def _layer(make: Callable[[], Any], shape: tuple[int, ...]) -> TrainingSpec:
    return on(make(), normal(*shape))


def _linear() -> list[Case]:
    return [
        Case("linear", "Linear", lambda: on(nn.Linear(6, 5), normal(6))),
        Case("linear", "Linear, no bias", lambda: on(nn.Linear(6, 5, bias=False), normal(6))),
        Case("linear", "Linear over further axes", lambda: on(nn.Linear(6, 5), normal(3, 2, 6))),
        Case(
            "linear",
            "Bilinear",
            lambda: on(Chosen(lambda m, x: m["b"](x[:, :2], x[:, 2:]), b=nn.Bilinear(2, 4, 3)), normal(6)),
        ),
        Case("linear", "torch.matmul of two results", lambda: on(lambda x: x @ x.transpose(1, 2), normal(3, 5))),
        Case("linear", "torch.bmm", lambda: on(lambda x: torch.bmm(x, x.transpose(1, 2)), normal(3, 5))),
        Case("linear", "torch.einsum", lambda: on(lambda x: torch.einsum("bi,bj->bij", x, x), normal(5))),
        Case(
            "linear",
            "torch.einsum, a sum over several axes",
            lambda: on(lambda x: torch.einsum("bhqd,bhkd->bqk", x, x), normal(2, 3, 5)),
        ),
        Case(
            "linear",
            "weight_norm",
            lambda: on(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), normal(6)),
        ),
        Case(
            "linear",
            "a product with a parameter twice",
            lambda: on(
                Chosen(lambda m, x: x @ m["l"].weight.T @ m["l"].weight, l=nn.Linear(6, 4, bias=False)), normal(6)
            ),
        ),
    ]


def _normalisations() -> list[Case]:
    image, sound, flat = (6, 4, 3), (6, 5), (6,)
    forms: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "BatchNorm2d": (lambda: drawn(nn.BatchNorm2d(6)), image),
        "BatchNorm2d, momentum=0.3": (lambda: drawn(nn.BatchNorm2d(6, momentum=0.3, eps=1e-3)), image),
        "BatchNorm2d, affine=False": (lambda: nn.BatchNorm2d(6, affine=False), image),
        "BatchNorm2d, track_running_stats=False": (
            lambda: drawn(nn.BatchNorm2d(6, track_running_stats=False)),
            image,
        ),
        "BatchNorm2d in evaluation mode": (lambda: Still(drawn(nn.BatchNorm2d(6))), image),
        "BatchNorm1d over features": (lambda: drawn(nn.BatchNorm1d(6)), flat),
        "BatchNorm1d over time": (lambda: drawn(nn.BatchNorm1d(6)), sound),
        "GroupNorm": (lambda: drawn(nn.GroupNorm(3, 6)), image),
        "GroupNorm, one group": (lambda: drawn(nn.GroupNorm(1, 6)), image),
        "GroupNorm, affine=False": (lambda: nn.GroupNorm(2, 6, affine=False), sound),
        "GroupNorm over features": (lambda: drawn(nn.GroupNorm(2, 6)), flat),
        "LayerNorm": (lambda: drawn(nn.LayerNorm(6)), flat),
        "LayerNorm over several axes": (lambda: drawn(nn.LayerNorm([4, 3])), image),
        "LayerNorm, no bias": (lambda: drawn(nn.LayerNorm(5, bias=False)), sound),
        "LayerNorm, elementwise_affine=False": (lambda: nn.LayerNorm(5, elementwise_affine=False), sound),
        "RMSNorm": (lambda: drawn(nn.RMSNorm(5)), sound),
        "InstanceNorm2d": (lambda: nn.InstanceNorm2d(6), image),
        "InstanceNorm2d, affine=True": (lambda: drawn(nn.InstanceNorm2d(6, affine=True)), image),
        "InstanceNorm1d": (lambda: drawn(nn.InstanceNorm1d(6, affine=True)), sound),
        "LocalResponseNorm": (lambda: nn.LocalResponseNorm(3, 0.5), image),
        "F.normalize": (lambda: Function(lambda x: f.normalize(x, dim=1)), sound),
    }
    return [Case("normalisation", name, partial(_layer, make, shape)) for name, (make, shape) in forms.items()]


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Still(nn.Module):
    """A layer that stays in evaluation mode while the model trains."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def train(self, mode: bool = True) -> "Still":
        super().train(mode)
        self.layer.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


def _activations() -> list[Case]:
    forms: dict[str, Callable[[], nn.Module]] = {
        "ReLU": nn.ReLU,
        "ReLU6": nn.ReLU6,
        "LeakyReLU": lambda: nn.LeakyReLU(0.2),
        "PReLU": nn.PReLU,
        "PReLU, a slope a channel": lambda: drawn(nn.PReLU(6)),
        "ELU": lambda: nn.ELU(0.7),
        "CELU": lambda: nn.CELU(1.3),
        "SELU": nn.SELU,
        "GELU": nn.GELU,
        "GELU, approximate='tanh'": lambda: nn.GELU("tanh"),
        "SiLU": nn.SiLU,
        "Mish": nn.Mish,
        "Hardswish": nn.Hardswish,
        "Hardsigmoid": nn.Hardsigmoid,
        "Hardtanh": lambda: nn.Hardtanh(-0.5, 2.0),
        "Hardshrink": nn.Hardshrink,
        "Softshrink": nn.Softshrink,
        "Tanhshrink": nn.Tanhshrink,
        "Threshold": lambda: nn.Threshold(0.3, -1.0),
        "Sigmoid": nn.Sigmoid,
        "LogSigmoid": nn.LogSigmoid,
        "Tanh": nn.Tanh,
        "Softsign": nn.Softsign,
        "Softplus": lambda: nn.Softplus(2.0, 5.0),
        "Softmax": lambda: nn.Softmax(1),
        "Softmin": lambda: nn.Softmin(1),
        "LogSoftmax": lambda: nn.LogSoftmax(1),
        "GLU": lambda: nn.GLU(1),
    }
    # Whole numbers put values on the kinks, where torch takes one slope or the other; large ones reach the far ends.
    return [
        Case("activation", name, partial(lambda make: on(make(), 3.0 * tied(6, 4) + _some_off()), make))
        for name, make in forms.items()
    ] + [
        Case("activation", "Softmax of scores up to 1000", lambda: on(nn.Softmax(1), 500 * tied(6))),
        Case("activation", "Sigmoid and Tanh of values up to 200", lambda: on(_squashed, 100 * tied(6))),
    ]


def _some_off() -> Tensor:
    off = torch.randn(EXAMPLES, 6, 4)
    off[:2] = 0
    return off


def _squashed(x: Tensor) -> Tensor:
    return torch.sigmoid(x) + torch.tanh(x)


def _pools() -> list[Case]:
    image, odd, sound = (3, 8, 8), (3, 9, 7), (3, 11)
    forms: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "MaxPool2d": (lambda: nn.MaxPool2d(2), image),
        "MaxPool2d, a remainder": (lambda: nn.MaxPool2d(2), odd),
        "MaxPool2d, uneven": (lambda: nn.MaxPool2d((3, 1)), odd),
        "MaxPool2d, large windows": (lambda: nn.MaxPool2d(7), odd),
        "MaxPool2d, overlapping": (lambda: nn.MaxPool2d(3, 2), odd),
        "MaxPool2d, padding": (lambda: nn.MaxPool2d(3, 2, 1), image),
        "MaxPool2d, ceil_mode": (lambda: nn.MaxPool2d(2, ceil_mode=True), odd),
        "MaxPool2d, padding and ceil_mode": (lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), image),
        "MaxPool2d, dilation": (lambda: nn.MaxPool2d(3, 1, dilation=2), odd),
        "MaxPool2d, gaps between windows": (lambda: nn.MaxPool2d(2, 3), image),
        "MaxPool1d": (lambda: nn.MaxPool1d(2), sound),
        "MaxPool1d, overlapping, padding": (lambda: nn.MaxPool1d(3, 2, 1), sound),
        "MaxPool1d, dilation, ceil_mode": (lambda: nn.MaxPool1d(3, 2, dilation=2, ceil_mode=True), sound),
        "AvgPool2d": (lambda: nn.AvgPool2d(2), odd),
        "AvgPool2d, overlapping": (lambda: nn.AvgPool2d(3, 2), image),
        "AvgPool2d, padding": (lambda: nn.AvgPool2d(3, 2, 1), odd),
        "AvgPool2d, padding not counted": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), odd),
        "AvgPool2d, ceil_mode": (lambda: nn.AvgPool2d(2, ceil_mode=True), odd),
        "AvgPool2d, ceil_mode and padding": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), image),
        "AvgPool2d, ceil_mode, padding not counted": (lambda: nn.AvgPool2d(3, 2, 1, True, False), image),
        "AvgPool2d, divisor_override": (lambda: nn.AvgPool2d(3, 2, 1, divisor_override=4), image),
        "AvgPool1d": (lambda: nn.AvgPool1d(3), sound),
        "AvgPool1d, padding not counted, ceil_mode": (lambda: nn.AvgPool1d(3, 2, 1, True, False), sound),
        "LPPool2d": (lambda: nn.LPPool2d(2, 2), image),
        "AdaptiveAvgPool2d, even": (lambda: nn.AdaptiveAvgPool2d(4), image),
        "AdaptiveAvgPool2d, uneven": (lambda: nn.AdaptiveAvgPool2d((4, 3)), odd),
        "AdaptiveAvgPool2d, global": (lambda: nn.AdaptiveAvgPool2d(1), odd),
        "AdaptiveAvgPool2d, one axis kept": (lambda: nn.AdaptiveAvgPool2d((None, 2)), image),
        "AdaptiveAvgPool1d, even": (lambda: nn.AdaptiveAvgPool1d(5), (3, 10)),
        "AdaptiveAvgPool1d, uneven": (lambda: nn.AdaptiveAvgPool1d(4), sound),
        "AdaptiveMaxPool2d, even": (lambda: nn.AdaptiveMaxPool2d(4), image),
        "AdaptiveMaxPool2d, uneven": (lambda: nn.AdaptiveMaxPool2d((4, 3)), odd),
        "AdaptiveMaxPool2d, global": (lambda: nn.AdaptiveMaxPool2d(1), odd),
        "AdaptiveMaxPool1d, even": (lambda: nn.AdaptiveMaxPool1d(5), (3, 10)),
        "AdaptiveMaxPool1d, uneven": (lambda: nn.AdaptiveMaxPool1d(4), sound),
        "mean over the map": (lambda: Function(lambda x: x.mean((2, 3))), image),
        "amax over the map": (lambda: Function(lambda x: x.amax((2, 3))), image),
        "max over time": (lambda: Function(lambda x: x.max(2).values), sound),
        "min over time": (lambda: Function(lambda x: x.min(dim=2).values), sound),
    }
    # Whole numbers: of equal values the first of a window has all of the gradient.
    return [
        Case("pooling", name, partial(_pooled, make, shape, "LPPool" not in name))
        for name, (make, shape) in forms.items()
    ]


def _pooled(make: Callable[[], nn.Module], shape: tuple[int, ...], whole: bool) -> TrainingSpec:
    return on(make(), tied(*shape) if whole else normal(*shape))


LAYERS = (*_convolutions(), *_linear(), *_normalisations(), *_activations(), *_pools())
