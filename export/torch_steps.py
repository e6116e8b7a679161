"""Torch's own steps on a spec's examples: the truth that every backend is held against, computed once for all.

Dropout is on, torch's own, with the masks that an engine draws from the same seeds: what is proven is the module's
training step as users wrote it, for given masks.
"""

import copy
from collections.abc import Mapping

import torch

from edge_agent.runtimes.comparison import STEPS, Expected, Kind, whole
from edge_agent.runtimes.dropout import masks
from edge_agent.runtimes.reference import LEARNING_RATE, MOMENTUM, SEED, WEIGHT_DECAY
from export.capture import WithLoss
from export.dropout import Masks
from export.spec import TrainingSpec
from export.variants import settle
from protocol.manifest import FULL, Manifest, Variant

Truth = Mapping[Kind, tuple[Expected, ...]]


def truth(spec: TrainingSpec, manifest: Manifest, variant: str = FULL) -> Truth:
    """Everything that torch finds, of every kind, in full."""
    held = manifest.variant(variant)
    return {**_one_step(spec, manifest, held), **_three_steps(spec, manifest, held), **_evaluation(spec, manifest)}


def detached(spec: TrainingSpec, variant: Variant | None = None) -> WithLoss:
    """The module with its loss, in training mode with what the variant freezes frozen, free to be trained without the
    user's module moving."""
    wrapped = copy.deepcopy(WithLoss(spec)).train()
    if variant is not None:
        settle(wrapped.module, variant.frozen, variant.frozen_buffers)
    return wrapped


def _one_step(spec: TrainingSpec, manifest: Manifest, variant: Variant) -> Truth:
    wrapped = detached(spec, variant)
    loss = _loss(wrapped, spec, variant, SEED)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters, buffers = dict(wrapped.module.named_parameters()), dict(wrapped.module.named_buffers())
    gradients = []
    for tensor in manifest.tensors:
        if tensor.kind == "parameter":
            gradient = parameters[tensor.name].grad
            assert gradient is not None or tensor.name in variant.frozen
            gradients.append(_expected(tensor.name, torch.zeros(tensor.shape) if gradient is None else gradient))
    statistics = tuple(_expected(t.name, buffers[t.name]) for t in manifest.tensors if t.kind == "buffer")
    return {"loss": (_expected("loss", loss),), "gradient": tuple(gradients), "statistics": statistics}


def _three_steps(spec: TrainingSpec, manifest: Manifest, variant: Variant) -> Truth:
    wrapped = detached(spec, variant)
    trained = [p for p in wrapped.module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    for seed in range(STEPS):
        optimizer.zero_grad()
        _loss(wrapped, spec, variant, seed).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    values = {**dict(wrapped.module.named_parameters()), **dict(wrapped.module.named_buffers())}
    return {"three steps": tuple(_expected(t.name, values[t.name]) for t in manifest.tensors if t.kind != "frozen")}


def _evaluation(spec: TrainingSpec, manifest: Manifest) -> Truth:
    wrapped = detached(spec).eval()
    with torch.no_grad():
        found = wrapped(*spec.input_tensors, *spec.target_tensors)
    names = ["loss", *(p.name for p in manifest.outputs)]
    return {"evaluation": tuple(_expected(name, value) for name, value in zip(names, found, strict=True))}


def _loss(wrapped: WithLoss, spec: TrainingSpec, variant: Variant, seed: int) -> torch.Tensor:
    """Torch's loss, its dropouts with the masks that an engine draws from this seed."""
    examples = len(spec.input_tensors[0])
    with Masks(variant.dropouts, masks(variant.dropouts, examples, seed)):
        loss: torch.Tensor = wrapped(*spec.input_tensors, *spec.target_tensors)[0]
    return loss


def _expected(name: str, value: torch.Tensor) -> Expected:
    # A copy: torch goes on writing into what it has.
    return whole(name, value.detach().cpu().numpy().copy())
