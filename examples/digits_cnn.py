"""A small convolutional network for scikit-learn's handwritten digits, ready to be exported:

    fleet-export examples/digits_cnn.py:digits --out bundles/digits

The function below is all that fleet-export needs. It is called once, on your machine; devices get graphs, never this
code, and need no torch.
"""

import torch
from torch import nn

from export import TrainingSpec


class DigitsCnn(nn.Module):
    """Images of 8 by 8 points, one channel, to scores for the ten digits; 21 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            # BatchNorm follows each convolution. Its running statistics travel with the parameters: every device
            # measures them on its own data, and the coordinator averages them.
            nn.Conv2d(1, 32, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Linear(64 * 2 * 2, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        # The argument's name becomes the name of the graph's input. flatten(1) keeps the batch axis as it is, which
        # matters: devices choose their own batch size, so no line here may depend on it.
        return self.classifier(self.features(image).flatten(1))  # type: ignore[no-any-return]


def digits() -> TrainingSpec:
    """The model, with a fixed seed, so that every export starts from the same weights."""
    torch.manual_seed(0)
    return TrainingSpec(
        module=DigitsCnn(),
        # Random examples will do: shapes and types are what counts. They also serve for the check that ONNX Runtime
        # computes the same loss and gradients as torch, for which constant ones will not do.
        inputs=torch.rand(16, 1, 8, 8),
        targets=torch.randint(0, 10, (16,)),
        loss="cross_entropy",
        metrics=("accuracy",),
    )
