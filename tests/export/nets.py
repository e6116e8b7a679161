"""Networks that newcomers try, small, with examples: what tests/export/models.py tells of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from benchmarks.networks import Block, Inverted, convolution
from export import TrainingSpec

N, CLASSES = 8, 4
LABELS = torch.arange(N) % CLASSES
Function = Callable[..., Any]


class Net(nn.Module):
    """Named layers, and a forward over them and the inputs."""

    def __init__(self, forward: Function, **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layers, x)


class Encoder(nn.Module):
    def __init__(self, dropout: float, batch_first: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Parameter(0.02 * torch.randn(1, 10, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=dropout, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.batch_first, self.head = batch_first, nn.Linear(16, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.first, self.places = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(0.02 * torch.randn(1, 17, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.layer(x)[:, 0])  # type: ignore[no-any-return]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.numbers = nn.Conv2d(1, 4, 3), nn.Linear(5, 8)
        self.head = nn.Linear(152, CLASSES)

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        parts = [f.relu(self.image(image)).flatten(1), f.relu(self.numbers(numbers))]
        return self.head(torch.cat(parts, 1))  # type: ignore[no-any-return]


class AnyNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, *parts: Tensor) -> Tensor:
        return self.head(torch.cat(parts, 1))  # type: ignore[no-any-return]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.middle = nn.Embedding(50, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 50, bias=False)
        self.out.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.out(torch.tanh(self.middle(self.words(words).mean(1))))  # type: ignore[no-any-return]


class LightningLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.criterion = mlp(nn.ReLU()), nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)  # type: ignore[no-any-return]

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        return self.criterion(self(batch[0]), batch[1])  # type: ignore[no-any-return]


class Resting(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.head = part.requires_grad_(False), nn.Linear(8, CLASSES)

    def train(self, mode: bool = True) -> "Resting":
        super().train(mode)
        self.part.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))  # type: ignore[no-any-return]


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = f.relu(self.down(x))
        deep = f.relu(self.deep(f.max_pool2d(first, 2)))
        return self.out(torch.cat([self.up(deep), first], 1))  # type: ignore[no-any-return]


def mlp(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), *middle, nn.Linear(16, CLASSES))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def image(*shape: int) -> Tensor:
    return torch.randn(N, *(shape or (3, 16, 16)))


def words(length: int = 10) -> Tensor:
    return torch.randint(0, 50, (N, length))


def scores(module: nn.Module, x: Tensor, loss: Any = "cross_entropy") -> TrainingSpec:
    return TrainingSpec(module, x, LABELS, loss)


def flat(module: nn.Module, loss: Any = "cross_entropy") -> TrainingSpec:
    return scores(module, torch.randn(N, 6), loss)


def numbers(module: nn.Module, x: Tensor, target: Tensor, loss: Any = "mse") -> TrainingSpec:
    return TrainingSpec(module, x, target, loss)


def recurrent(layer: nn.Module, width: int = 12) -> TrainingSpec:
    net = Net(lambda m, x: m["head"](m["layer"](x)[0][:, -1]), layer=layer, head=nn.Linear(width, CLASSES))
    return scores(net, torch.randn(N, 10, 6))


def vgg() -> TrainingSpec:
    features = [*convolution(3, 8, 3), nn.ReLU(True), nn.MaxPool2d(2), *convolution(8, 16, 3), nn.ReLU(True)]
    top = [nn.Linear(256, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, CLASSES)]
    return scores(nn.Sequential(*features, nn.AdaptiveAvgPool2d(4), nn.Flatten(), *top), image())


def resnet(blocks: int) -> TrainingSpec:
    layers: list[nn.Module] = [*convolution(3, 8, 3), nn.ReLU()]
    into = 8
    for out in (8, 16, 32):
        for i in range(blocks):
            layers.append(Block(into, out, 2 if out > 8 and i == 0 else 1))
            into = out
    return scores(nn.Sequential(*layers, *head(32)), image())


def mobilenet(act: Callable[[], nn.Module], *extra: nn.Module) -> TrainingSpec:
    body = [*convolution(3, 8, 3, 2), act(), Inverted(8, 8, 1, act), *extra, Inverted(8, 16, 2, act)]
    return scores(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), head(16)[2]), image())


def keyword_spotting() -> TrainingSpec:
    part: list[nn.Module] = [nn.Conv2d(1, 16, (10, 4), (2, 2), (5, 1), bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for _ in range(2):
        part += [*convolution(16, 16, 3, groups=16), nn.ReLU(), *convolution(16, 16, 1), nn.ReLU()]
    return scores(nn.Sequential(*part, nn.AvgPool2d((12, 5)), nn.Flatten(), nn.Linear(32, CLASSES)), image(1, 49, 10))


def dilated() -> TrainingSpec:
    layers = [nn.Conv1d(9, 16, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv1d(16, 16, 3, padding="same", dilation=4)]
    top = [nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, CLASSES)]
    return scores(nn.Sequential(*layers, *top), image(9, 32))


def autoencoder() -> TrainingSpec:
    x = torch.rand(N, 36)
    return numbers(nn.Sequential(nn.Linear(36, 4), nn.ReLU(), nn.Linear(4, 36), nn.Sigmoid()), x, x)


def convolutional_autoencoder() -> TrainingSpec:
    x = torch.rand(N, 1, 8, 8)
    up = nn.ConvTranspose2d(8, 1, 3, stride=2, padding=1, output_padding=1)
    return numbers(nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), up), x, x)


def reparametrised(net: nn.ModuleDict, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, log_var = net["encode"](x).chunk(2, 1)
    return net["decode"](mean + torch.exp(0.5 * log_var) * noise), mean, log_var


def evidence(outputs: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    again, mean, log_var = outputs
    return f.mse_loss(again, x) - 0.5 * (1 + log_var - mean.square() - log_var.exp()).mean()


def variational(noise_inside: bool) -> TrainingSpec:
    x = torch.randn(N, 10)
    parts = {"encode": nn.Linear(10, 6), "decode": nn.Linear(3, 10)}
    if noise_inside:
        inside = Net(lambda m, x: reparametrised(m, x, torch.randn_like(x[:, :3])), **parts)
        return TrainingSpec(inside, x, x, evidence)
    given = Net(lambda m, x: reparametrised(m, x[:, :10], x[:, 10:]), **parts)
    return TrainingSpec(given, torch.cat([x, torch.randn(N, 3)], 1), x, evidence)


def uncertain() -> TrainingSpec:
    layers = {"body": nn.Linear(6, 16), "mean": nn.Linear(16, 1), "spread": nn.Linear(16, 1)}
    net = Net(lambda m, x: (m["mean"](m["body"](x)), f.softplus(m["spread"](m["body"](x))) + 1e-3), **layers)

    def likelihood(outputs: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        mean, spread = outputs
        return (0.5 * torch.log(spread) + 0.5 * (target - mean).square() / spread).mean()

    return TrainingSpec(net, torch.randn(N, 6), torch.randn(N, 1), likelihood)


def bag(layer: nn.Module, over: Function) -> TrainingSpec:
    return scores(Net(lambda m, x: m["head"](over(m["words"](x))), words=layer, head=nn.Linear(8, CLASSES)), words())


def upsampled(**how: Any) -> TrainingSpec:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Upsample(scale_factor=2, **how), nn.Conv2d(4, 1, 1))
    return numbers(net, image(3, 4, 4), torch.rand(N, 1, 8, 8))


def pooled(pool: nn.Module, size: int) -> TrainingSpec:
    return scores(
        nn.Sequential(nn.Conv2d(3, 8, 3), pool, nn.Flatten(), nn.Linear(8 * size**2, CLASSES)), image(3, 15, 15)
    )


def normalised(norm: nn.Module) -> TrainingSpec:
    return scores(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), *head(8)), image())


def applied(function: Function) -> TrainingSpec:
    return flat(Net(lambda m, x: function(m["linear"](x)), linear=nn.Linear(6, CLASSES)))


def bernoulli() -> Tensor:
    return (LABELS % 2).float()[:, None]


def part_of_loss(with_aux: bool) -> TrainingSpec:
    net = Net(lambda m, x: m["head"](x), head=nn.Linear(6, CLASSES), aux=nn.Linear(6, CLASSES))
    net.layers["aux"].requires_grad_(with_aux)
    return flat(net)
