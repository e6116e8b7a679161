"""The same model as it learns from others' outputs: a spec whose targets are the probabilities of the classes."""

from dataclasses import replace

import torch
from torch import Tensor

from export.spec import TrainingSpec
from protocol.errors import ConfigurationError

# Of a line, which has at most 63 characters.
_ENDING = "-distillation"
_LONGEST = 63


def distillation_spec(spec: TrainingSpec) -> TrainingSpec:
    """The spec of the student: cross entropy against a teacher's probabilities, whose gradient is that of the
    Kullback-Leibler divergence from it (Hinton, Vinyals, Dean 2015, section 2, at temperature 1).

    Raises ConfigurationError for a model that does not tell classes apart.
    """
    training = spec.module.training
    with torch.no_grad():
        said = spec.module.eval()(*spec.input_tensors)
    spec.module.train(training)
    classes = spec.loss == "cross_entropy" and len(spec.target_tensors) == 1 and spec.target_tensors[0].ndim == 1
    if not (classes and isinstance(said, Tensor) and said.ndim == 2):
        raise ConfigurationError(
            f"--distillation: is for a model of one output (examples, classes) under the loss cross_entropy, and this "
            f"one's loss is {spec.loss_name}; leave it out"
        )
    return replace(spec, targets=torch.softmax(said, dim=1), metrics=())


def distillation_line(line: str) -> str:
    """The name of the student's bundle, after the model's."""
    return line[: _LONGEST - len(_ENDING)] + _ENDING
