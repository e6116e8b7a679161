"""The proof that a backend computes what torch computes; no bundle is written without it.

One training step: loss, every gradient, every running statistic after it. Then three steps of SGD with momentum and
weight decay, torch.optim's against ours, and the evaluation graph's loss and outputs. How far each may be from
torch's is in edge_agent/runtimes/comparison.py, and what torch does in export/torch_steps.py. The exporter compares
every value; then it replays the record in the bundle, which holds some of them, as devices will.

Where: beside the spec's examples, not on them. Examples of zeros, of equal images or with a constant background put
ReLU, max-pooling and the like exactly on a kink, where rounding chooses the slope and two right answers differ by all
of it; and zeros say nothing of the weights that they are multiplied with. So every floating input gets seeded noise
(see `beside`); integer inputs and targets are as given. A function that is finite on the examples but not beside
them, as a logarithm may be, is checked on the examples themselves.

A deep network has a kink for each of a million activations, and now and then rounding crosses one: torch's own float32
then differs from its float64 by a hundredth, and otherwise by a millionth. So the exporter has up to DRAWS draws of
noise, each on half the examples of the one before, and records the first that every backend holds on. A backend that
computes another function differs on all of them.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from edge_agent.runtimes import reference
from edge_agent.runtimes.comparison import TOLERANCE, Difference, Kind
from edge_agent.runtimes.engine import Batch, Engine
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.reference import Record
from export.capture import EAGER_FAILURES
from export.layout import flat_model
from export.spec import TrainingSpec
from export.torch_steps import Truth, detached, truth
from protocol.errors import BundleError
from protocol.manifest import Manifest, Parity

# Of an input's spread: far above rounding, and still what the user meant to feed.
NOISE, SEED = 0.1, 20
DRAWS, FEW = 6, 4


def batch_of(spec: TrainingSpec) -> Batch:
    """The spec's examples as arrays."""
    return Batch(
        tuple(t.detach().cpu().numpy() for t in spec.input_tensors),
        tuple(t.detach().cpu().numpy() for t in spec.target_tensors),
    )


def beside(spec: TrainingSpec, draw: int = 0) -> TrainingSpec:
    """The spec with noise on its floating inputs, or as it is where torch's loss would not be finite with it. Every
    further draw has other noise, on the first half of the examples, but on FEW where there are as many."""
    spec = spec if draw == 0 else _first(spec, max(FEW, len(spec.input_tensors[0]) >> draw))
    moved = noised(spec, SEED + draw)
    return moved if is_finite(moved) else spec


def _first(spec: TrainingSpec, count: int) -> TrainingSpec:
    inputs, targets = (tuple(t[:count] for t in ts) for ts in (spec.input_tensors, spec.target_tensors))
    return replace(spec, inputs=inputs, targets=targets)


def noised(spec: TrainingSpec, seed: int) -> TrainingSpec:
    """The spec with noise from this seed on its floating inputs."""
    generator = torch.Generator().manual_seed(seed)
    return replace(spec, inputs=tuple(_noisy(t.detach().cpu(), generator) for t in spec.input_tensors))


def is_finite(spec: TrainingSpec) -> bool:
    """Whether torch takes the spec's examples and makes a finite loss of them."""
    try:
        with torch.no_grad():
            loss = detached(spec)(*spec.input_tensors, *spec.target_tensors)[0]
    except EAGER_FAILURES:
        # A value that is looked up, as an index kept in a float, has no neighbours.
        return False
    return bool(torch.isfinite(loss))


def whole_record(spec: TrainingSpec, manifest: Manifest) -> Record:
    """All that torch makes of the spec's examples, in every variant, as a record to replay."""
    steps: dict[str, Truth] = {v.name: truth(spec, manifest, v.name) for v in manifest.variants}
    return Record(batch_of(spec), torch.__version__, steps)


def prove(
    spec: TrainingSpec, manifest: Manifest, engine: Engine, record: Record | None = None, variant: str = "full"
) -> Parity:
    """The largest differences of a backend's steps from those of `record`, which without it are torch's on the spec's
    own examples. Raises BundleError naming the tensor and the difference if one is over its tolerance."""
    record = record or whole_record(spec, manifest)
    model = flat_model(spec.module, manifest.tensors)
    rows = reference.one_step(engine, manifest, model, record, variant)
    check(rows)
    rows += reference.three_steps(engine, manifest, model, record, variant)
    check(rows)
    kinds: tuple[Kind, ...] = ("loss", "gradient", "statistics", "three steps")
    loss, gradient, statistics, three = (max((r.difference for r in rows if r.kind == k), default=0.0) for k in kinds)
    return Parity(loss, gradient, statistics, three, TOLERANCE, torch.__version__)


def evaluation(
    spec: TrainingSpec, manifest: Manifest, evaluator: Evaluator, record: Record | None = None, variant: str = "full"
) -> None:
    """Holds the evaluation graph's loss and outputs against torch's. Raises BundleError."""
    record = record or whole_record(spec, manifest)
    check(reference.evaluation(evaluator, flat_model(spec.module, manifest.tensors), record, variant))


def check(rows: Sequence[Difference]) -> None:
    """Raises BundleError naming the first tensor that is too far from torch's."""
    for row in rows:
        if not row.ok:
            raise BundleError(
                f"{row.what}: differs from torch by {row.difference:.2e} of its magnitude, the tolerance is "
                f"{row.tolerance:.0e}; the runtime computes another function for one of the layers on its way: replace "
                "layers until it agrees"
            )


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
