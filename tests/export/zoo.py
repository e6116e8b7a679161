"""Small models of many kinds, each with its examples and loss, that must export."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from export import TrainingSpec

EXAMPLES = 6


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1)
        )
        self.head = nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image)
        x = torch.relu(x + self.body(x))
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Two layers share a weight; a name of its own is also a name the exporter likes to give to values."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)
        self.b = nn.Linear(5, 5)
        self.b.weight = self.a.weight
        self.relu = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)) * self.relu)  # type: ignore[no-any-return]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.scores = nn.Linear(7, 3)
        self.size = nn.Linear(7, 1)

    def forward(self, word: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.embedding(word), features], dim=1)
        return self.scores(x), self.size(x)


def two_losses(outputs: tuple[Tensor, Tensor], kind: Tensor, size: Tensor) -> Tensor:
    scores, sizes = outputs
    return nn.functional.cross_entropy(scores, kind) + 0.1 * nn.functional.mse_loss(sizes, size)


def classes(count: int) -> Tensor:
    return torch.randint(0, count, (EXAMPLES,))


def cnn_with_batch_norm() -> TrainingSpec:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    return TrainingSpec(module, torch.randn(EXAMPLES, 1, 8, 8), classes(3), "cross_entropy", ("accuracy",))


def cnn_without_batch_norm() -> TrainingSpec:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.SiLU(), nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(16, 3)
    )
    return TrainingSpec(module, torch.randn(EXAMPLES, 1, 8, 8), classes(3), "cross_entropy", ("accuracy",))


def cnn_1d() -> TrainingSpec:
    module = nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2), nn.BatchNorm1d(8), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(64, 4)
    )
    return TrainingSpec(module, torch.randn(EXAMPLES, 3, 16), classes(4), "cross_entropy", ("accuracy",))


def mlp_regression() -> TrainingSpec:
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return TrainingSpec(module, torch.randn(EXAMPLES, 4), torch.randn(EXAMPLES, 2), "mse", ("mse", "mae"))


def mlp_classification() -> TrainingSpec:
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    return TrainingSpec(module, torch.randn(EXAMPLES, 5), classes(3), "cross_entropy", ("accuracy",))


def mlp_with_batch_norm() -> TrainingSpec:
    module = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7, momentum=0.3), nn.GELU(), nn.Linear(7, 1))
    targets = torch.randint(0, 2, (EXAMPLES, 1)).float()
    loss = "binary_cross_entropy_with_logits"
    return TrainingSpec(module, torch.randn(EXAMPLES, 5), targets, loss, ("binary_accuracy",))


def layer_norm() -> TrainingSpec:
    module = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.LeakyReLU(), nn.Linear(8, 2))
    return TrainingSpec(module, torch.randn(EXAMPLES, 5), torch.randn(EXAMPLES, 2), "l1", ("mae",))


def residual() -> TrainingSpec:
    return TrainingSpec(Residual(), torch.randn(EXAMPLES, 3, 6, 6), classes(4), "cross_entropy", ("accuracy",))


def tied_weights() -> TrainingSpec:
    return TrainingSpec(Tied(), torch.randn(EXAMPLES, 5), torch.randn(EXAMPLES, 5), "mse")


def frozen_first_layer() -> TrainingSpec:
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(0.0), nn.Linear(7, 3))
    module[0].weight.requires_grad_(False)
    return TrainingSpec(module, torch.randn(EXAMPLES, 5), classes(3), "cross_entropy", ("accuracy",))


def two_inputs_two_outputs() -> TrainingSpec:
    inputs = (torch.randint(0, 10, (EXAMPLES,)), torch.randn(EXAMPLES, 3))
    return TrainingSpec(TwoHeads(), inputs, (classes(3), torch.randn(EXAMPLES, 1)), two_losses, ("accuracy",))


def transformer() -> TrainingSpec:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
    module = nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3))
    return TrainingSpec(module, torch.randn(EXAMPLES, 5, 8), classes(3), "cross_entropy", ("accuracy",))


def cnn_with_dropout() -> TrainingSpec:
    """Of whole channels, in place, and of single values."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.Dropout2d(0.2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 8),
        nn.Dropout(0.25, inplace=True),
        nn.GELU(),
        nn.Dropout(),
        nn.Linear(8, 3),
    )
    return TrainingSpec(module, torch.randn(EXAMPLES, 1, 8, 8), classes(3), "cross_entropy", ("accuracy",))


class SequenceFirst(nn.Module):
    """Attention with dropout, its axes in torch's old order, and a block that is left out at random."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16)
        self.block = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x.transpose(0, 1)).mean(dim=0)
        kept = x.new_empty(x.shape[0], 1).bernoulli_(0.8) / 0.8 if self.training else 1.0
        return self.head(x + kept * torch.tanh(self.block(x)))  # type: ignore[no-any-return]


def transformer_with_dropout() -> TrainingSpec:
    return TrainingSpec(SequenceFirst(), torch.randn(EXAMPLES, 5, 8), classes(3), "cross_entropy", ("accuracy",))


def activations() -> TrainingSpec:
    """All those for which the runtime has no gradient of its own."""
    module = nn.Sequential(
        nn.Linear(5, 8),
        nn.ELU(),
        nn.CELU(1.5),
        nn.SELU(inplace=True),
        nn.PReLU(8),
        nn.Softplus(2.0),
        nn.BatchNorm1d(8),
        nn.Mish(),
        nn.Hardswish(inplace=True),
        nn.Softshrink(0.01),
        nn.PReLU(),
        nn.Hardsigmoid(),
        nn.Linear(8, 3),
    )
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return TrainingSpec(module, torch.randn(EXAMPLES, 5), classes(3), loss, ("accuracy",))


class Frozen(nn.Sequential):
    """A pretrained part as its users freeze it: no gradients, and statistics that stay."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


def windows() -> TrainingSpec:
    """A frozen part, then layers that change the size or normalise without running statistics."""
    module = nn.Sequential(
        Frozen(),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.GroupNorm(2, 4),
        nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.InstanceNorm2d(4, affine=True),
        nn.Conv2d(4, 4, 3),
        nn.Upsample(scale_factor=2),
        nn.PixelShuffle(2),
        nn.Upsample(scale_factor=0.5, mode="bilinear"),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.Conv2d(1, 6, 1),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
        nn.LogSoftmax(1),
    )
    return TrainingSpec(module, torch.randn(EXAMPLES, 1, 8, 8), classes(3), nn.NLLLoss(), ("accuracy",))


class Dense(nn.Module):
    """Every layer sees the image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, torch.relu(self.first(self.norm(x)))], 1)
        y = torch.cat([x, y[:, :3], torch.relu(self.second(y))], 1)
        return self.head(y.amax(dim=(2, 3)))  # type: ignore[no-any-return]


def dense_connections() -> TrainingSpec:
    return TrainingSpec(Dense(), torch.randn(EXAMPLES, 2, 6, 6), classes(3), "cross_entropy", ("accuracy",))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.both = nn.RNN(4, 3, batch_first=True, bidirectional=True)
        self.cell = nn.GRUCell(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.both(self.lstm(x)[0])[0]
        return self.head(self.cell(x[:, 0], self.cell(x[:, 1])))  # type: ignore[no-any-return]


def recurrent() -> TrainingSpec:
    return TrainingSpec(Recurrent(), torch.randn(EXAMPLES, 2, 3), classes(3), "cross_entropy", ("accuracy",))


ZOO: dict[str, Callable[[], TrainingSpec]] = {
    make.__name__: make
    for make in (
        cnn_with_batch_norm,
        cnn_without_batch_norm,
        cnn_1d,
        mlp_regression,
        mlp_classification,
        mlp_with_batch_norm,
        layer_norm,
        residual,
        tied_weights,
        frozen_first_layer,
        two_inputs_two_outputs,
        transformer,
        cnn_with_dropout,
        transformer_with_dropout,
        activations,
        windows,
        dense_connections,
        recurrent,
    )
}


def spec_of(name: str) -> TrainingSpec:
    torch.manual_seed(1)
    return ZOO[name]()
