"""Human activity from a waist-worn phone: six signals, 128 samples, six activities; 31 thousand parameters."""

import torch
from torch import nn

from export import TrainingSpec


def hapt() -> TrainingSpec:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv1d(6, 32, 9, stride=2, padding=4),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Conv1d(32, 48, 5, stride=2, padding=2),
        nn.BatchNorm1d(48),
        nn.ReLU(),
        nn.Conv1d(48, 64, 5, stride=2, padding=2),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 6),
    )
    return TrainingSpec(
        module=module,
        inputs=torch.randn(32, 6, 128),
        targets=torch.randint(0, 6, (32,)),
        loss="cross_entropy",
        metrics=("accuracy",),
        line="hapt-cnn",
    )
