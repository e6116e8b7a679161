"""Spoken digits as 32x32 log-mel pictures, ten words; 48 thousand parameters."""

import torch
from torch import nn

from export import TrainingSpec


def fsdd() -> TrainingSpec:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return TrainingSpec(
        module=module,
        inputs=torch.randn(32, 1, 32, 32),
        targets=torch.randint(0, 10, (32,)),
        loss="cross_entropy",
        metrics=("accuracy",),
        line="fsdd-cnn",
    )
