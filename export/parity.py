"""The proof that a backend computes what torch computes; no bundle is written without it.

One training step: loss, every gradient, every running statistic after it. Then three steps of SGD with momentum and
weight decay, torch.optim's against ours. Differences are relative to the tensor's largest magnitude:
max |a - b| / max(|b|), b being torch's. A gradient smaller than SHARE of the model's largest counts as that much, and
any other magnitude below FLOOR as FLOOR: what should cancel to zero, as the gradient of a bias before BatchNorm, is
the rounding of its much larger terms. Dropout is on, torch's own, with the masks that the engine draws from the same
seeds: what is proven is the module's training step as users wrote it, for given masks.

Where: beside the spec's examples, not on them. Examples of zeros, of equal images or with a constant background put
ReLU, max-pooling and the like exactly on a kink, where rounding chooses the slope and two right answers differ by all
of it; and zeros say nothing of the weights that they are multiplied with. So every floating input gets seeded noise
(see `beside`); integer inputs and targets are as given. A function that is finite on the examples but not beside
them, as a logarithm may be, is checked on the examples themselves.
"""

import copy
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from edge_agent.runtimes import optimizers
from edge_agent.runtimes.dropout import masks
from edge_agent.runtimes.engine import Batch, Engine, Vector
from edge_agent.runtimes.evaluator import Evaluator
from export.capture import EAGER_FAILURES, WithLoss
from export.dropout import Masks
from export.layout import flat_model
from export.spec import TrainingSpec
from protocol.errors import BundleError
from protocol.manifest import Manifest, Parity

# float32 has 24 bits; sums over thousands of terms in another order cost the last ten of them.
TOLERANCE = 1e-3
# The loss and running statistics are shorter sums, and a variance of the wrong kind is off by little.
STRICT = 0.1 * TOLERANCE
SHARE = 1e-2
FLOOR = 1e-3
TINY = 1e-12
# Of an input's spread: far above rounding, and still what the user meant to feed.
NOISE, SEED = 0.1, 20
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, STEPS = 0.05, 0.9, 1e-3, 3


def batch_of(spec: TrainingSpec) -> Batch:
    """The spec's examples as arrays."""
    return Batch(
        tuple(t.detach().cpu().numpy() for t in spec.input_tensors),
        tuple(t.detach().cpu().numpy() for t in spec.target_tensors),
    )


def beside(spec: TrainingSpec) -> TrainingSpec:
    """The spec with noise on its floating inputs, or as it is where torch's loss would not be finite with it."""
    generator = torch.Generator().manual_seed(SEED)
    moved = replace(spec, inputs=tuple(_noisy(t.detach().cpu(), generator) for t in spec.input_tensors))
    try:
        with torch.no_grad():
            loss = _copy(moved)(*moved.input_tensors, *moved.target_tensors)[0]
    except EAGER_FAILURES:
        # A value that is looked up, as an index kept in a float, has no neighbours.
        return spec
    return moved if torch.isfinite(loss) else spec


def prove(spec: TrainingSpec, manifest: Manifest, engine: Engine) -> Parity:
    """The measured differences. Raises BundleError naming the tensor and the difference if one is over TOLERANCE."""
    loss, gradient, buffers = one_step(spec, manifest, engine)
    return Parity(loss, gradient, buffers, three_steps(spec, manifest, engine), TOLERANCE, torch.__version__)


def one_step(spec: TrainingSpec, manifest: Manifest, engine: Engine) -> tuple[float, float, float]:
    """Largest relative differences of loss, gradients and buffers after one training-mode pass."""
    model = flat_model(spec.module, manifest.tensors)
    result = engine.step(model, batch_of(spec), SEED)
    wrapped = _copy(spec)
    loss = _loss(wrapped, spec, manifest, SEED)
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = dict(wrapped.module.named_parameters())
    values = dict(wrapped.module.named_buffers())
    gradients, buffers = [0.0], [0.0]
    largest = max(float(p.grad.abs().max()) for p in parameters.values() if p.grad is not None)
    for tensor in manifest.tensors:
        begin, end = tensor.offset, tensor.offset + tensor.size
        if tensor.kind == "parameter":
            want = parameters[tensor.name].grad
            assert want is not None
            gradients.append(
                _difference(
                    f"gradient of {tensor.name}", result.gradient[begin:end], want, floor=max(SHARE * largest, TINY)
                )
            )
        elif tensor.kind == "buffer":
            after = result.buffers[begin - manifest.parameters : end - manifest.parameters]
            buffers.append(_difference(f"{tensor.name} after a step", after, values[tensor.name], tolerance=STRICT))
    at_loss = _difference("loss", np.array([result.loss], dtype=np.float32), loss, tolerance=STRICT)
    return at_loss, max(gradients), max(buffers)


def three_steps(spec: TrainingSpec, manifest: Manifest, engine: Engine) -> float:
    """Largest relative difference of any tensor after three optimiser steps on the same batch."""
    wrapped = _copy(spec)
    trained = [p for p in wrapped.module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    settings = optimizers.OptimizerSettings(name="sgd", momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    n, batch = manifest.parameters, batch_of(spec)
    model = flat_model(spec.module, manifest.tensors)
    state = optimizers.init(settings, n)
    for number in range(STEPS):
        optimizer.zero_grad()
        _loss(wrapped, spec, manifest, number).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        result = engine.step(model, batch, number)
        state, model[:n] = optimizers.step(settings, state, model[:n], result.gradient, LEARNING_RATE)
        model[n : n + manifest.buffers] = result.buffers
    values = {**dict(wrapped.module.named_parameters()), **dict(wrapped.module.named_buffers())}
    return max(
        _difference(f"{t.name} after {STEPS} optimiser steps", model[t.offset : t.offset + t.size], values[t.name])
        for t in manifest.tensors
    )


def evaluation(spec: TrainingSpec, manifest: Manifest, evaluator: Evaluator) -> None:
    """Holds the evaluation graph's loss and outputs against torch's. Raises BundleError."""
    wrapped = _copy(spec).eval()
    with torch.no_grad():
        wants: Iterable[torch.Tensor] = wrapped(*spec.input_tensors, *spec.target_tensors)
    names = ["loss", *(p.name for p in manifest.outputs)]
    model = flat_model(spec.module, manifest.tensors)
    for name, got, want in zip(names, evaluator.outputs(model, batch_of(spec)), wants, strict=True):
        _difference(f"{name} in evaluation", np.asarray(got), want)


def _loss(wrapped: WithLoss, spec: TrainingSpec, manifest: Manifest, seed: int) -> torch.Tensor:
    """Torch's loss, its dropouts with the masks that an engine draws from this seed."""
    dropouts, examples = manifest.variants[0].dropouts, len(spec.input_tensors[0])
    with Masks(dropouts, masks(dropouts, examples, seed)):
        loss: torch.Tensor = wrapped(*spec.input_tensors, *spec.target_tensors)[0]
    return loss


def _noisy(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal noise: of NOISE times each place's spread over the examples, or the whole tensor's where a place has
    none; of standard size where the tensor is one constant."""
    if not values.is_floating_point():
        return values
    noise = torch.randn(values.shape, generator=generator)
    whole = values.std()
    if whole == 0:
        return values + noise
    spread = values.std(dim=0, keepdim=True)
    return values + NOISE * torch.where(spread > 0, spread, whole) * noise


def _copy(spec: TrainingSpec) -> WithLoss:
    """The module with its loss, in training mode, free to be trained without the user's module moving."""
    return copy.deepcopy(WithLoss(spec)).train()


def _difference(
    what: str, got: Vector, want: torch.Tensor, *, tolerance: float = TOLERANCE, floor: float = FLOOR
) -> float:
    reference = want.detach().cpu().numpy().reshape(-1).astype(np.float64)
    distance = np.abs(got.reshape(-1).astype(np.float64) - reference)
    relative = float(distance.max() / max(floor, np.abs(reference).max()))
    if not relative <= tolerance:
        raise BundleError(
            f"{what}: differs from torch by {relative:.2e} of its magnitude, the tolerance is {tolerance:.0e}; the "
            "runtime computes another function for one of the layers on its way: replace layers until it agrees"
        )
    return relative
