"""The flat vector: which tensors of a module travel, in which order, of which kind; and the ports of its graphs."""

import inspect
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor as TorchTensor
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from edge_agent.runtimes.engine import Vector
from export.spec import TrainingSpec, is_prunable
from protocol.errors import BundleError
from protocol.manifest import DataType, Kind, Port, Tensor

_DTYPES: dict[torch.dtype, DataType] = {torch.float32: "float32", torch.int64: "int64"}


@dataclass(frozen=True, slots=True)
class Ports:
    """What the graphs take and give, without the batch axis."""

    inputs: tuple[Port, ...]
    targets: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def names(self) -> list[str]:
        return [p.name for p in (*self.inputs, *self.targets, *self.outputs)]


def tensors_of(spec: TrainingSpec) -> tuple[Tensor, ...]:
    """The tensor table: parameters, then running statistics, then what does not change. Raises BundleError."""
    _check_batch_norms(spec.module)
    running = running_statistics(spec.module)
    kinds: dict[Kind, list[tuple[str, TorchTensor]]] = {"parameter": [], "buffer": [], "frozen": []}
    for name, parameter in spec.module.named_parameters():
        _check_parameter(name, parameter)
        kinds["parameter" if parameter.requires_grad else "frozen"].append((name, parameter))
    saved = spec.module.state_dict()
    for name, buffer in spec.module.named_buffers():
        if name in running:
            kinds["buffer"].append((name, buffer))
        elif name in saved and buffer.dtype == torch.float32:
            kinds["frozen"].append((name, buffer))
    if not kinds["parameter"]:
        raise BundleError("module: no parameter requires a gradient; leave some of them trainable")
    return _table(spec, kinds)


def running_statistics(module: nn.Module) -> dict[str, str]:
    """Names of the running means and variances that training moves, each with its layer's name.

    A layer that stays in evaluation mode when the module is put in training mode does not move its own.
    """
    found: dict[str, str] = {}
    for path, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.training and layer.running_mean is not None:
            for kind in ("running_mean", "running_var"):
                found[f"{path}.{kind}" if path else kind] = path
    return found


def flat_model(module: nn.Module, tensors: tuple[Tensor, ...]) -> Vector:
    """The module's values: float32[total], manifest order."""
    values = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    model = [values[t.name].detach().cpu().numpy().ravel() for t in tensors]
    return np.concatenate(model).astype(np.float32, copy=False)


def ports_of(spec: TrainingSpec, outputs: tuple[TorchTensor, ...], classes: dict[int, int], taken: set[str]) -> Ports:
    """Names and shapes: inputs after forward's arguments, then target, output; with a number where there are more.

    classes: how many, by the target's place among inputs and targets.
    """
    arguments = list(inspect.signature(spec.module.forward).parameters.values())
    positional = [a.name for a in arguments if a.kind is a.POSITIONAL_OR_KEYWORD]
    count = len(spec.input_tensors)
    named = positional[:count] if len(positional) >= count else _numbered("input", count)
    targets = _numbered("target", len(spec.target_tensors))
    return Ports(
        inputs=tuple(_port(_free(n, taken), t) for n, t in zip(named, spec.input_tensors, strict=True)),
        targets=tuple(
            _port(_free(n, taken), t, classes.get(count + i) if t.dtype == torch.int64 else None)
            for i, (n, t) in enumerate(zip(targets, spec.target_tensors, strict=True))
        ),
        outputs=tuple(
            _port(_free(n, taken), t) for n, t in zip(_numbered("output", len(outputs)), outputs, strict=True)
        ),
    )


def _table(spec: TrainingSpec, kinds: dict[Kind, list[tuple[str, TorchTensor]]]) -> tuple[Tensor, ...]:
    table, offset = [], 0
    for kind, members in kinds.items():
        for name, value in members:
            prunable = kind == "parameter" and is_prunable(spec, name, value)
            table.append(Tensor(name, tuple(value.shape), offset, kind, prunable))
            offset += value.numel()
    return tuple(table)


def _check_parameter(name: str, parameter: TorchTensor) -> None:
    if parameter.dtype != torch.float32:
        raise BundleError(f"{name}: a parameter of {parameter.dtype}; only float32 can train: call module.float()")
    if parameter.numel() == 0:
        raise BundleError(f"{name}: a parameter without elements; remove it")
    if not torch.isfinite(parameter).all():
        raise BundleError(f"{name}: holds NaN or infinity; initialise it, or load other weights")


def _check_batch_norms(module: nn.Module) -> None:
    for path, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats and layer.momentum is None:
            raise BundleError(
                f"{path} ({type(layer).__name__}): momentum=None keeps a cumulative average, which devices cannot "
                "share; set momentum=0.1"
            )


def _numbered(word: str, count: int) -> list[str]:
    return [word] if count == 1 else [f"{word}_{i}" for i in range(count)]


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _port(name: str, example: TorchTensor, classes: int | None = None) -> Port:
    return Port(name, tuple(example.shape[1:]), _DTYPES[example.dtype], classes)
