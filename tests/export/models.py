"""Models that newcomers try, and which of them are refused: what docs/models.md tells of."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as f

from benchmarks.networks import Squeeze, convolution
from export import TrainingSpec
from tests.export.nets import (
    CLASSES,
    LABELS,
    AnyNumber,
    Encoder,
    LightningLike,
    N,
    Net,
    Resting,
    Tied,
    Two,
    UNet,
    Vision,
    applied,
    autoencoder,
    bag,
    bernoulli,
    convolutional_autoencoder,
    dilated,
    flat,
    head,
    image,
    keyword_spotting,
    mlp,
    mobilenet,
    normalised,
    numbers,
    part_of_loss,
    pooled,
    recurrent,
    resnet,
    scores,
    uncertain,
    upsampled,
    variational,
    vgg,
    words,
)


@dataclass(frozen=True, slots=True)
class Model:
    """One row. `instead` names the row that a refused one becomes by the remedy that the refusal gives."""

    name: str
    make: Callable[[], TrainingSpec]
    instead: str | None = None


MODELS = (
    Model(
        "LeNet",
        lambda: scores(
            nn.Sequential(
                nn.Conv2d(1, 6, 5, padding=2),
                nn.Sigmoid(),
                nn.AvgPool2d(2),
                nn.Conv2d(6, 16, 5),
                nn.Sigmoid(),
                nn.AvgPool2d(2),
                nn.Flatten(),
                nn.Linear(64, CLASSES),
            ),
            image(1, 16, 16),
        ),
    ),
    Model("VGG-like, BatchNorm and dropout", vgg),
    Model("ResNet-8", lambda: resnet(1)),
    Model("ResNet-20", lambda: resnet(3)),
    Model("MobileNetV2-like: ReLU6, depthwise, inverted residuals, dropout", lambda: mobilenet(lambda: nn.ReLU6(True))),
    Model(
        "MobileNetV3-like: Hardswish, squeeze and excitation with Hardsigmoid",
        lambda: mobilenet(nn.Hardswish, Squeeze(8)),
    ),
    Model("DS-CNN, keyword spotting", keyword_spotting),
    Model("1-D CNN, dilation, padding='same', AdaptiveAvgPool1d", dilated),
    Model(
        "1-D CNN, largest over time (x.max(dim=2))",
        lambda: scores(
            Net(lambda m, x: m["head"](m["c"](x).max(dim=2).values), c=nn.Conv1d(5, 8, 3), head=nn.Linear(8, CLASSES)),
            image(5, 12),
        ),
    ),
    Model(
        "CNN, AdaptiveMaxPool2d(1)",
        lambda: scores(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)), image()
        ),
    ),
    Model("MLP, LayerNorm, GELU, dropout", lambda: flat(mlp(nn.LayerNorm(16), nn.GELU(), nn.Dropout(0.1)))),
    Model("Transformer encoder, dropout=0", lambda: scores(Encoder(0.0), words())),
    Model("Transformer encoder, dropout=0.1, attention included", lambda: scores(Encoder(0.1), words())),
    Model("Transformer encoder, batch_first=False", lambda: scores(Encoder(0.1, batch_first=False), words())),
    Model(
        "nn.MultiheadAttention, dropout",
        lambda: scores(
            Net(
                lambda m, x: m["head"](m["a"](x, x, x)[0].mean(1)),
                a=nn.MultiheadAttention(8, 2, 0.1, batch_first=True),
                head=nn.Linear(8, CLASSES),
            ),
            image(6, 8),
        ),
    ),
    Model("Vision transformer, dropout", lambda: scores(Vision(), image())),
    Model("LSTM classifier", lambda: recurrent(nn.LSTM(6, 12, batch_first=True))),
    Model(
        "LSTM, 2 layers, both directions",
        lambda: recurrent(nn.LSTM(6, 12, num_layers=2, bidirectional=True, batch_first=True), 24),
    ),
    Model(
        "LSTM, 2 layers with dropout between them",
        lambda: recurrent(nn.LSTM(6, 12, num_layers=2, dropout=0.2, batch_first=True)),
    ),
    Model(
        "LSTM layers with nn.Dropout between them",
        lambda: scores(
            Net(
                lambda m, x: m["head"](m["b"](m["drop"](m["a"](x)[0]))[0][:, -1]),
                a=nn.LSTM(6, 12, batch_first=True),
                drop=nn.Dropout(0.2),
                b=nn.LSTM(12, 12, batch_first=True),
                head=nn.Linear(12, CLASSES),
            ),
            torch.randn(N, 10, 6),
        ),
    ),
    Model("GRU classifier", lambda: recurrent(nn.GRU(6, 12, batch_first=True))),
    Model("Embedding and mean, int64 inputs", lambda: bag(nn.Embedding(50, 8, padding_idx=0), lambda x: x.mean(1))),
    Model("EmbeddingBag", lambda: bag(nn.EmbeddingBag(50, 8), lambda x: x)),
    Model("Autoencoder, mse", autoencoder),
    Model("Convolutional autoencoder, ConvTranspose2d", convolutional_autoencoder),
    Model(
        "Variational autoencoder, randn_like in forward",
        lambda: variational(True),
        "Variational autoencoder, noise as an input",
    ),
    Model("Variational autoencoder, noise as an input", lambda: variational(False)),
    Model(
        "U-Net with ConvTranspose2d, pixel labels",
        lambda: TrainingSpec(UNet(), image(3, 8, 8), torch.randint(0, 2, (N, 8, 8)), "cross_entropy", ("accuracy",)),
    ),
    Model(
        "Binary classifier, BCE with logits, float targets",
        lambda: numbers(nn.Linear(10, 1), torch.randn(N, 10), bernoulli(), "binary_cross_entropy_with_logits"),
    ),
    Model(
        "Binary classifier, Sigmoid and nn.BCELoss",
        lambda: numbers(nn.Sequential(nn.Linear(10, 1), nn.Sigmoid()), torch.randn(N, 10), bernoulli(), nn.BCELoss()),
    ),
    Model("Two inputs", lambda: TrainingSpec(Two(), (image(1, 8, 8), torch.randn(N, 5)), LABELS, "cross_entropy")),
    Model(
        "forward(self, *parts)",
        lambda: TrainingSpec(AnyNumber(), (torch.randn(N, 2), torch.randn(N, 4)), LABELS, "cross_entropy"),
    ),
    Model("Regression with two outputs, Softplus, a loss of one's own", uncertain),
    Model("nn.HuberLoss", lambda: numbers(nn.Linear(6, 1), torch.randn(N, 6), torch.randn(N, 1), nn.HuberLoss())),
    Model(
        "nn.CrossEntropyLoss, label_smoothing=0.1",
        lambda: flat(mlp(nn.ReLU()), nn.CrossEntropyLoss(label_smoothing=0.1)),
    ),
    Model(
        "nn.CrossEntropyLoss with class weights",
        lambda: flat(mlp(nn.ReLU()), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))),
    ),
    Model(
        "LogSoftmax and nn.NLLLoss",
        lambda: flat(mlp(nn.ReLU(), nn.Linear(16, 16), nn.ReLU()).append(nn.LogSoftmax(1)), nn.NLLLoss()),
    ),
    Model("Tied weights", lambda: TrainingSpec(Tied(), words(6), torch.randint(0, 50, (N,)), "cross_entropy")),
    Model(
        "Frozen backbone, its BatchNorm training on",
        lambda: scores(nn.Sequential(nn.Sequential(*convolution(3, 8, 3)).requires_grad_(False), *head(8)), image()),
    ),
    Model(
        "Frozen backbone in evaluation mode",
        lambda: scores(Resting(nn.Sequential(*convolution(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())), image()),
    ),
    Model("Unused parameters", lambda: part_of_loss(True), "Unused parameters, requires_grad=False"),
    Model("Unused parameters, requires_grad=False", lambda: part_of_loss(False)),
    Model("GroupNorm", lambda: normalised(nn.GroupNorm(2, 8))),
    Model("InstanceNorm2d", lambda: normalised(nn.InstanceNorm2d(8, affine=True))),
    Model(
        "PReLU, ELU, Softplus, SiLU, Mish", lambda: flat(mlp(nn.PReLU(), nn.ELU(), nn.Softplus(), nn.SiLU(), nn.Mish()))
    ),
    Model(
        "weight_norm (torch.nn.utils.parametrizations)",
        lambda: flat(mlp(nn.utils.parametrizations.weight_norm(nn.Linear(16, 16)))),
    ),
    Model(
        "spectral_norm",
        lambda: flat(mlp(nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)))),
        "weight_norm (torch.nn.utils.parametrizations)",
    ),
    Model("interpolate, nearest by 2", upsampled),
    Model("interpolate, bilinear", lambda: upsampled(mode="bilinear")),
    Model("interpolate, bicubic", lambda: upsampled(mode="bicubic")),
    Model(
        "PixelShuffle",
        lambda: numbers(nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2)), image(3, 4, 4), torch.rand(N, 1, 8, 8)),
    ),
    Model("MaxPool2d, ceil_mode=True", lambda: pooled(nn.MaxPool2d(2, ceil_mode=True), 7)),
    Model("AvgPool2d, ceil_mode=True", lambda: pooled(nn.AvgPool2d(2, ceil_mode=True), 7)),
    Model(
        "AvgPool2d, padding=1, count_include_pad=False",
        lambda: pooled(nn.AvgPool2d(3, 2, 1, count_include_pad=False), 7),
    ),
    Model(
        "forward gives a dict",
        lambda: flat(
            Net(lambda m, x: {"scores": m["l"](x)}, l=nn.Linear(6, CLASSES)),
            lambda o, t: f.cross_entropy(o["scores"], t),
        ),
        "A LightningModule-like class, its criterion as the loss",
    ),
    Model(
        "A LightningModule-like class, its criterion as the loss", lambda: flat(LightningLike(), nn.CrossEntropyLoss())
    ),
    Model(
        "x.view(32, -1), a batch size in forward", lambda: applied(lambda x: x.view(N, -1)), "x.view(x.shape[0], -1)"
    ),
    Model("x.view(x.shape[0], -1)", lambda: applied(lambda x: x.view(x.shape[0], -1))),
    Model("torch.einsum", lambda: applied(lambda x: torch.einsum("bi,bj->bij", x, x).sum(2))),
    Model("torch.matmul", lambda: applied(lambda x: torch.matmul(x[:, :, None], x[:, None, :]).sum(2))),
    Model("x.cumsum(1)", lambda: applied(lambda x: x.cumsum(1))),
    Model("A product with torch.tril", lambda: applied(lambda x: x @ torch.tril(torch.ones(CLASSES, CLASSES)).T)),
    Model("F.dropout(x) in evaluation too", lambda: applied(f.dropout), "MLP, LayerNorm, GELU, dropout"),
)
