"""The record of torch's own steps in a bundle, and its replay by an engine on the machine at hand.

`reference.safetensors` holds a small batch and what torch made of it and the bundle's initial model: one training step
(loss, gradients, running statistics), three steps of SGD with momentum, and evaluation. docs/bundle.md has its layout.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_agent.runtimes import optimizers, safetensors
from edge_agent.runtimes.comparison import STEPS, Difference, Expected, Kind, compare, counts
from edge_agent.runtimes.engine import Array, Batch, Engine, Vector
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.safetensors import TensorFile
from protocol.bundle import Bundle
from protocol.errors import BundleError
from protocol.manifest import Manifest, Port

FORMAT = "1"
# Our own are a tenth of this.
MAX_BYTES = 8 << 20
MAX_EXAMPLES = 1024
# Of one input unfolded; a batch of 8 images of 1024 x 1024 pixels in colour is 25 million.
MAX_INPUT_ELEMENTS = 1 << 26
# Of the dropouts' masks in the single step; the three steps are seeded 0, 1, 2.
SEED = 20
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 1e-3

_INTEGERS = ("U8", "I16", "I32", "I64")
KINDS: tuple[Kind, ...] = ("loss", "gradient", "statistics", "three steps", "evaluation")


@dataclass(frozen=True, slots=True)
class Record:
    """The batch, torch's release, and for every variant by its name, but for width tiers, what torch found, of each
    kind."""

    batch: Batch
    torch: str
    steps: Mapping[str, Mapping[Kind, tuple[Expected, ...]]]


def load_record(bundle: Bundle) -> Record:
    """The bundle's record. Raises BundleError where there is none, or naming what is wrong with it."""
    if bundle.manifest.reference is None:
        raise BundleError(f"{bundle.root}: holds no reference steps; export it again with this version of fleet-export")
    path = bundle.path(bundle.manifest.reference.path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BundleError(f"{path}: {path.stat().st_size} bytes are over the limit of {MAX_BYTES} for a record")
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); export the bundle again") from None
    return parse_record(bundle.manifest, path.name, data)


def parse_record(manifest: Manifest, name: str, data: bytes) -> Record:
    """The record in the bytes of the file of this name, held against the manifest. Raises BundleError."""
    file = safetensors.parse(name, data)
    if file.text.get("format") != FORMAT:
        raise BundleError(f"{name}: format {file.text.get('format')!r} is not the one this version reads ({FORMAT})")
    said = str(file.text.get("examples", ""))
    if not (said.isascii() and said.isdigit() and len(said) <= 4 and 1 <= int(said) <= MAX_EXAMPLES):
        raise BundleError(f"{name}: {said[:20]!r} examples, where 1 to {MAX_EXAMPLES} are possible")
    examples = int(said)
    batch = Batch(
        tuple(_port(file, port, examples) for port in manifest.inputs),
        tuple(_port(file, port, examples) for port in manifest.targets),
    )
    steps = {
        v.name: {kind: _expected(file, manifest, v.name, kind, examples) for kind in KINDS}
        for v in manifest.variants
        if not v.keep
    }
    return Record(batch, str(file.text.get("torch", "")), steps)


def model_digest(model: Vector) -> str:
    """The SHA-256 by which whoever holds a model, float32[total], knows it for the one that the steps start from."""
    return hashlib.sha256(model.astype("<f4").tobytes()).hexdigest()


def sizes(manifest: Manifest, kind: Kind, examples: int) -> dict[str, int]:
    """The tensors that a kind of comparison is about, in the record's order, with the number of their elements."""
    match kind:
        case "loss":
            return {"loss": 1}
        case "gradient":
            return {t.name: t.size for t in manifest.tensors if t.kind == "parameter"}
        case "statistics":
            return {t.name: t.size for t in manifest.tensors if t.kind == "buffer"}
        case "three steps":
            return {t.name: t.size for t in manifest.tensors if t.kind != "frozen"}
        case "evaluation":
            return {"loss": 1, **{p.name: examples * math.prod(p.shape) for p in manifest.outputs}}


def one_step(
    engine: Engine, manifest: Manifest, model: Vector, record: Record, variant: str = "full"
) -> tuple[Difference, ...]:
    """A row for the loss, every gradient and every running statistic of one training step on the bundle's initial
    `model`: float32[total]. Raises DataError where the runtime refuses the batch."""
    steps = record.steps[variant]
    result = engine.step(model, record.batch, SEED)
    loss = np.array([result.loss], dtype=np.float32)
    gradient = list(_parts(result.gradient, sizes(manifest, "gradient", 0)))
    statistics = list(_parts(result.buffers, sizes(manifest, "statistics", 0)))
    return (
        *compare("loss", [loss], steps["loss"]),
        *compare("gradient", gradient, steps["gradient"]),
        *compare("statistics", statistics, steps["statistics"]),
    )


def three_steps(
    engine: Engine, manifest: Manifest, model: Vector, record: Record, variant: str = "full"
) -> tuple[Difference, ...]:
    """A row for every tensor after three steps of SGD with momentum and weight decay on the same batch."""
    n, m = manifest.parameters, manifest.buffers
    settings = optimizers.OptimizerSettings(name="sgd", momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    state, still, model = optimizers.init(settings, n), _frozen(manifest, variant), model.copy()
    for seed in range(STEPS):
        result = engine.step(model, record.batch, seed)
        state, moved = optimizers.step(settings, state, model[:n], result.gradient, LEARNING_RATE)
        # Weight decay would move what a variant leaves as it is.
        model[:n] = np.where(still, model[:n], moved)
        model[n : n + m] = result.buffers
    found = list(_parts(model[: n + m], sizes(manifest, "three steps", 0)))
    return compare("three steps", found, record.steps[variant]["three steps"])


def evaluation(evaluator: Evaluator, model: Vector, record: Record, variant: str = "full") -> tuple[Difference, ...]:
    """A row for the loss and every output in evaluation mode."""
    found = [np.asarray(values) for values in evaluator.outputs(model, record.batch)]
    return compare("evaluation", found, record.steps[variant]["evaluation"])


def replay(
    engine: Engine, manifest: Manifest, model: Vector, record: Record, variant: str = "full"
) -> tuple[Difference, ...]:
    """All rows that an engine is answerable for, on the bundle's initial `model`: float32[total]."""
    evaluated = np.array([engine.evaluate(model, record.batch).loss], dtype=np.float32)
    return (
        *one_step(engine, manifest, model, record, variant),
        *three_steps(engine, manifest, model, record, variant),
        *compare("evaluation", [evaluated], record.steps[variant]["evaluation"][:1]),
    )


def _parts(flat: Vector, named: Mapping[str, int]) -> Iterator[Vector]:
    start = 0
    for size in named.values():
        yield flat[start : start + size]
        start += size


def _frozen(manifest: Manifest, variant: str) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    held = manifest.variant(variant)
    still = np.zeros(manifest.parameters, dtype=np.bool_)
    for t in manifest.tensors:
        if t.name in held.frozen:
            still[t.offset : t.offset + t.size] = True
    return still


def _port(file: TensorFile, port: Port, examples: int) -> Array:
    """An input or target as torch had it: unscaled if it was stored in bytes, repeated if it was shortened."""
    shape = (examples, *port.shape)
    if math.prod(shape) > MAX_INPUT_ELEMENTS:
        raise BundleError(f"{file.name}: {port.name} of shape {shape} is over {MAX_INPUT_ELEMENTS} elements")
    name, scale = f"batch/{port.name}", f"scale/{port.name}"
    if port.dtype == "int64":
        values = file.array(name, _INTEGERS).astype(np.int64)
    elif scale in file.header:
        values = unscaled(file.array(name, ("U8",)), file.array(scale, shape=(2,)))
    else:
        values = file.array(name)
    if not 0 < values.size <= math.prod(shape):
        raise BundleError(f"{file.name}: {port.name} has {values.size} values where {shape} are needed")
    if port.classes is not None and not (values.min() >= 0 and values.max() < port.classes):
        raise BundleError(f"{file.name}: {port.name} holds classes outside 0..{port.classes - 1}")
    return np.resize(values, shape)


def unscaled(codes: Array, scale: Array) -> Array:
    """float32: lowest + step * code, rounded after each of the two operations, on any machine alike."""
    lowest, step = np.float32(scale[0]), np.float32(scale[1])
    scaled: Array = codes.astype(np.float32) * step + lowest
    return scaled


def _expected(file: TensorFile, manifest: Manifest, variant: str, kind: Kind, examples: int) -> tuple[Expected, ...]:
    named = sizes(manifest, kind, examples)
    values = file.array(f"values/{variant}/{kind}")
    magnitudes = file.array(f"magnitudes/{variant}/{kind}", shape=(len(named),))
    for array in (values, magnitudes):
        if not np.isfinite(array).all():
            raise BundleError(f"{file.name}: {kind} of {variant} holds NaN or infinity")
    if not min(len(named), sum(named.values())) <= values.size <= sum(named.values()) or (magnitudes < 0).any():
        raise BundleError(f"{file.name}: {values.size} values for {kind} of {variant}; it was altered")
    shares: Sequence[int] = counts(list(named.values()), values.size)
    parts = _parts(values, dict(zip(named, shares, strict=True)))
    return tuple(
        Expected(name, size, part, float(magnitude))
        for (name, size), part, magnitude in zip(named.items(), parts, magnitudes, strict=True)
    )
