"""What a user's function returns to be exported: a module, examples, a loss, metrics, and what may be pruned."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from protocol.errors import ConfigurationError
from protocol.manifest import MetricName

Loss = Callable[..., Tensor]

LOSSES: dict[str, Loss] = {
    "cross_entropy": functional.cross_entropy,
    "binary_cross_entropy_with_logits": functional.binary_cross_entropy_with_logits,
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
}

_TYPES = (torch.float32, torch.int64)
_LINE = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSpec:
    """A model and all that is needed to train it on devices.

    module: float32 parameters; its forward takes `inputs` and gives one tensor or a tuple of tensors.
    inputs, targets: a tensor, or a tuple of tensors, with examples along the first axis; at least two examples, of
        float32 or int64. Their other axes are what devices will feed: only the first may vary.
    loss: "cross_entropy", "binary_cross_entropy_with_logits", "mse", "l1", or a function of what forward gives and
        the targets, `loss(outputs, *targets)`, to one number: the mean over the examples.
    metrics: of "accuracy", "binary_accuracy", "mae", "mse", on the first output and the first target.
    prunable: patterns over parameter names, as in `("features.*.weight",)`; without it, every trained weight of two
        axes or more (convolutions and linear layers).
    line: the model's name over all its versions; without it, the function's name. version: counts up in a line.

    A file `digits.py` that fleet-export takes as `digits.py:digits`:

        import torch
        from torch import nn
        from export import TrainingSpec

        def digits() -> TrainingSpec:
            module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
            return TrainingSpec(
                module=module,
                inputs=torch.rand(8, 1, 8, 8),
                targets=torch.randint(0, 10, (8,)),
                loss="cross_entropy",
                metrics=("accuracy",),
            )
    """

    module: nn.Module
    inputs: Tensor | tuple[Tensor, ...]
    targets: Tensor | tuple[Tensor, ...]
    loss: str | Loss
    metrics: tuple[MetricName, ...] = ()
    prunable: tuple[str, ...] | None = None
    line: str | None = None
    version: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.module, nn.Module):
            raise ConfigurationError(f"module: {type(self.module).__name__} is not a torch.nn.Module")
        _check_examples("inputs", self.input_tensors)
        _check_examples("targets", self.target_tensors)
        counts = {len(t) for t in (*self.input_tensors, *self.target_tensors)}
        if len(counts) > 1:
            raise ConfigurationError(f"inputs, targets: {sorted(counts)} examples; give the same number of each")
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise ConfigurationError(f"loss: {self.loss!r} is unknown; use {', '.join(LOSSES)} or a function")
        if not isinstance(self.loss, str) and not callable(self.loss):
            raise ConfigurationError(f"loss: {type(self.loss).__name__} cannot be called; give a name or a function")
        for metric in self.metrics:
            if metric not in get_args(MetricName):
                raise ConfigurationError(f"metrics: {metric!r} is unknown; use {', '.join(get_args(MetricName))}")
        if self.line is not None:
            check_line(self.line)
        if self.version < 1:
            raise ConfigurationError(f"version: {self.version!r} must be a whole number of at least 1")

    @property
    def input_tensors(self) -> tuple[Tensor, ...]:
        return (self.inputs,) if isinstance(self.inputs, Tensor) else tuple(self.inputs)

    @property
    def target_tensors(self) -> tuple[Tensor, ...]:
        return (self.targets,) if isinstance(self.targets, Tensor) else tuple(self.targets)

    @property
    def loss_function(self) -> Loss:
        return LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    @property
    def loss_name(self) -> str:
        if isinstance(self.loss, str):
            return self.loss
        return str(getattr(self.loss, "__name__", type(self.loss).__name__))


def check_line(line: str) -> str:
    """The name, if it can stand in topics, tables and file names. Raises ConfigurationError."""
    if not _LINE.fullmatch(line):
        raise ConfigurationError(
            f"line: {line!r} must be 2 to 63 of a-z, 0-9 and '-', beginning with a letter or digit; set line or --name"
        )
    return line


def line_from(function: str) -> str:
    """The model's name after its function's: `DigitsCnn` and `digits_cnn` give `digitscnn` and `digits-cnn`."""
    return check_line(function.lower().strip("_").replace("_", "-"))


def is_prunable(spec: TrainingSpec, name: str, parameter: Tensor) -> bool:
    """Whether a trained parameter may be pruned."""
    if spec.prunable is None:
        return parameter.ndim >= 2
    return any(fnmatchcase(name, pattern) for pattern in spec.prunable)


def _check_examples(where: str, tensors: tuple[Tensor, ...]) -> None:
    if not tensors:
        raise ConfigurationError(f"{where}: empty; give at least one tensor of examples")
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise ConfigurationError(f"{where}[{i}]: {type(tensor).__name__} is not a tensor")
        if tensor.dtype not in _TYPES:
            raise ConfigurationError(
                f"{where}[{i}]: {tensor.dtype} is not supported; use float32 (x.float()) or int64 (x.long())"
            )
        if tensor.ndim == 0 or len(tensor) < 2:
            raise ConfigurationError(
                f"{where}[{i}]: shape {tuple(tensor.shape)}; give at least 2 examples along the first axis"
            )
