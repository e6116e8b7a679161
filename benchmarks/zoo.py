"""The model zoo: what people train on edge devices, each network with examples of its real size, a loss and a metric.

The examples are noise and their targets chosen at random: what a step costs does not depend on what is learnt, and
what a network can learn by heart shows that it trains.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import networks
from export import TrainingSpec

# What the specs hold unless told otherwise: enough for BatchNorm, and few enough for a quick export.
EXAMPLES = 8


@dataclass(frozen=True, slots=True)
class ZooModel:
    """A network, the shape of one input, and how many classes it tells apart (None: it forecasts a number).

    cnn: whether the targets for convolutional networks apply to it. words: the inputs are that many words' numbers.
    """

    network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int | None
    cnn: bool = True
    words: int | None = None


ZOO: Mapping[str, ZooModel] = {
    "cnn_1d": ZooModel(networks.cnn_1d, (6, 128), 6),
    "cnn_2conv": ZooModel(networks.cnn_2conv, (1, 28, 28), 10),
    "resnet8_bn": ZooModel(partial(networks.resnet, 1, nn.BatchNorm2d), (3, 32, 32), 10),
    "resnet8_gn": ZooModel(partial(networks.resnet, 1, networks.group_norm), (3, 32, 32), 10),
    "resnet20_bn": ZooModel(partial(networks.resnet, 3, nn.BatchNorm2d), (3, 32, 32), 10),
    "resnet20_gn": ZooModel(partial(networks.resnet, 3, networks.group_norm), (3, 32, 32), 10),
    "mobilenet_v2": ZooModel(networks.mobilenet_v2, (3, 96, 96), 2),
    "mobilenet_v3": ZooModel(networks.mobilenet_v3, (3, 96, 96), 2),
    "ds_cnn": ZooModel(networks.ds_cnn, (1, 49, 10), 12),
    "transformer": ZooModel(partial(networks.Encoder, 1000, 32, 64, 10), (32,), 10, cnn=False, words=1000),
    "lstm": ZooModel(partial(networks.Forecaster, 8, 64), (24, 8), None, cnn=False),
}


def spec_of(name: str, examples: int = EXAMPLES, seed: int = 1) -> TrainingSpec:
    """The zoo's model of that name with freshly drawn parameters and examples; the same for the same arguments."""
    model = ZOO[name]
    torch.manual_seed(seed)
    module, inputs = model.network(), _inputs(model, examples)
    if model.classes is None:
        return TrainingSpec(module, inputs, torch.randn(examples, 1), "mse", ("mae",))
    return TrainingSpec(module, inputs, torch.randint(0, model.classes, (examples,)), "cross_entropy", ("accuracy",))


def _inputs(model: ZooModel, examples: int) -> Tensor:
    if model.words is not None:
        return torch.randint(0, model.words, (examples, *model.shape))
    return torch.randn(examples, *model.shape)
