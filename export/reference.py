"""`reference.safetensors`: a small batch, and some of what torch makes of it, for devices to replay.

The batch is of at most EXAMPLES of the spec's examples, beside them as in parity.py, and torch is run on the very
values that are stored. Where float32 would take more than RAW_BYTES, an input is rounded to 256 steps between its
lowest and highest value; where even two examples do not fit PACKED_BYTES, the first values are repeated to the end:
no picture any more, and still of the range that the model is fed.

Deep networks have kinks by the million, and where one is so close that rounding crosses it, another runtime rightly
finds another gradient. So of several draws of noise the first is taken on which torch's steps stay as they are when
the parameters move by rounding, or the steadiest.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch

from edge_agent.runtimes.comparison import TOLERANCE, Difference, compare, sampled
from edge_agent.runtimes.engine import Array
from edge_agent.runtimes.reference import FORMAT, KINDS, Record, unscaled
from edge_agent.runtimes.safetensors import format_tensors
from export.parity import SEED, is_finite, noised, whole_record
from export.spec import TrainingSpec
from export.torch_steps import truth
from protocol.manifest import Manifest

EXAMPLES, FEWEST, DRAWS = 8, 2, 6
# As much as the rounding of a dozen layers makes of itself, and what a steady network makes of that.
NUDGE, STEADY = 1e-6, 0.1 * TOLERANCE
FULL = "full"
RAW_BYTES = 32 << 10
# Two colour images of 224 x 224 pixels are 301 thousand.
PACKED_BYTES = 320 << 10
# Values of one kind over all tensors and variants: of a wrong function any few hundred tell.
SAMPLES = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """An input or target as the file has it. scale: float32[2], the lowest value and the step, for bytes that stand
    for floats. values: flat, repeated to the end where they are fewer than the shape has."""

    shape: tuple[int, ...]
    values: Array
    scale: Array | None = None

    def tensor(self) -> torch.Tensor:
        """What torch, and later every device, is given."""
        values = self.values if self.scale is None else unscaled(self.values, self.scale)
        if values.dtype.kind != "f":
            values = values.astype(np.int64)
        return torch.from_numpy(np.resize(values, self.shape))


@dataclass(frozen=True, slots=True, eq=False)
class Small:
    """A few examples of a spec, and how they are stored."""

    spec: TrainingSpec
    ports: tuple[Stored, ...]


def recorded(spec: TrainingSpec, near: TrainingSpec, manifest: Manifest, turn: int = 0) -> tuple[Small, Record]:
    """A few of the examples, small enough to store, and all that torch makes of them. near: the spec beside its
    examples. Every turn has other draws, for networks so deep that no draw is steady."""
    best, least = None, float("inf")
    for draw in range(DRAWS):
        few = small(spec, near, draw, SEED + turn * DRAWS + draw)
        found = whole_record(few.spec, manifest)
        moved = sensitivity(few.spec, manifest, found)
        if best is None or moved < least:
            best, least = (few, found), moved
        if least <= STEADY or near is spec:
            break
    assert best is not None, "no draws"
    return best


def small(spec: TrainingSpec, near: TrainingSpec, draw: int = 0, seed: int = SEED) -> Small:
    """The first few examples, small enough to store; with each draw other noise, and after some draws fewer."""
    source = near if draw == 0 else noised(spec, seed)
    for beside, packed in ((source, True), (spec, True), (spec, False)):
        few = _few(beside, packed, EXAMPLES >> draw // 2)
        if is_finite(few.spec):
            return few
    # Parity will say what is wrong with the examples themselves.
    return few


def sensitivity(spec: TrainingSpec, manifest: Manifest, found: Record) -> float:
    """How far the furthest of torch's gradients and parameters moves at a nudge, relative to its magnitude."""
    module = copy.deepcopy(spec.module)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1 + NUDGE * torch.randn(parameter.shape, generator=generator))
    nudged = truth(replace(spec, module=module), manifest)
    rows: list[Difference] = []
    for kind in ("gradient", "three steps"):
        rows += compare(kind, [e.values for e in nudged[kind]], found.steps[FULL][kind])
    return max(row.difference for row in rows)


def same_examples(one: TrainingSpec, other: TrainingSpec) -> bool:
    """Whether torch would be given the same values."""
    pairs = zip(one.input_tensors + one.target_tensors, other.input_tensors + other.target_tensors, strict=True)
    return all(torch.equal(a.detach().cpu(), b.detach().cpu()) for a, b in pairs)


def format_record(record: Record, few: Small, manifest: Manifest) -> bytes:
    """The file's bytes. record: all that torch makes of the small batch."""
    arrays: dict[str, Array] = {}
    for port, stored in zip((*manifest.inputs, *manifest.targets), few.ports, strict=True):
        arrays[f"batch/{port.name}"] = stored.values
        if stored.scale is not None:
            arrays[f"scale/{port.name}"] = stored.scale
    for variant, steps in record.steps.items():
        for kind in KINDS:
            kept = sampled(steps[kind], max(SAMPLES // len(record.steps), len(steps[kind])))
            empty = np.zeros(0, dtype=np.float32)
            arrays[f"values/{variant}/{kind}"] = np.concatenate([empty, *(e.values for e in kept)])
            arrays[f"magnitudes/{variant}/{kind}"] = np.array([e.magnitude for e in kept], dtype=np.float32)
    return format_tensors(arrays, {"format": FORMAT, "examples": str(len(record.batch)), "torch": record.torch})


def _few(spec: TrainingSpec, packed: bool, most: int) -> Small:
    """The first examples. packed: floats may be rounded to bytes."""
    tensors = (*spec.input_tensors, *spec.target_tensors)
    for count in range(min(most, len(tensors[0])), FEWEST - 1, -1):
        ports = [_raw(t[:count]) for t in tensors]
        if packed and _bytes(ports) > RAW_BYTES:
            ports = [_packed(p) for p in ports]
        if _bytes(ports) <= PACKED_BYTES:
            break
    else:
        ports = [_shortened(p, PACKED_BYTES // len(ports)) for p in ports]
    given, n = tuple(p.tensor() for p in ports), len(spec.input_tensors)
    return Small(replace(spec, inputs=given[:n], targets=given[n:]), tuple(ports))


def _bytes(ports: list[Stored]) -> int:
    return sum(p.values.nbytes for p in ports)


def _raw(tensor: torch.Tensor) -> Stored:
    """Every value as it is, whole numbers in the smallest type that holds them."""
    values = tensor.detach().cpu().numpy()
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype.kind != "f" and flat.size:
        kinds = (np.uint8, np.int16, np.int32, np.int64)
        fits = (k for k in kinds if np.iinfo(k).min <= flat.min() and flat.max() <= np.iinfo(k).max)
        flat = flat.astype(next(fits))
    return Stored(values.shape, flat)


def _packed(port: Stored) -> Stored:
    """Floats in bytes; whole numbers stay exact where they span no more than 256."""
    values = port.values
    if values.dtype.kind != "f" or not np.isfinite(values).all():
        return port
    lowest, highest = float(values.min()), float(values.max())
    whole = highest - lowest <= 255 and bool((values == np.rint(values)).all())
    step = 1.0 if whole else (highest - lowest) / 255
    scale = np.array([lowest, step], dtype=np.float32)
    if not (np.isfinite(scale).all() and scale[1] > 0):
        return port
    codes = np.clip(np.rint((values.astype(np.float64) - scale[0]) / scale[1]), 0, 255)
    return Stored(port.shape, codes.astype(np.uint8), scale)


def _shortened(port: Stored, limit: int) -> Stored:
    """The first values, as many as fit; an odd number, so that no two rows or examples begin alike."""
    count = limit // port.values.itemsize
    if count >= port.values.size:
        return port
    return replace(port, values=port.values[: count - 1 + count % 2])
