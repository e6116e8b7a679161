"""What a bundle says of itself: tensors and their places in the flat vector, inputs, graphs, files and digests."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from protocol import bounded_json
from protocol.errors import BundleError, ConfigurationError
from protocol.records import RecordError, read_record, write_record

FORMAT = 2
MANIFEST_FILE = "manifest.json"
# The variant that trains everything.
FULL = "full"
_VARIANT_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

# Bounds on what a device will read before it trusts anything in it.
MAX_MANIFEST_BYTES = 4 << 20
MAX_TENSORS = 10_000
MAX_ELEMENTS = 1 << 30
MAX_DIMENSIONS = 16
# Of the reason why a backend was left out.
MAX_REASON = 1000
# How graphs name what they give beside the loss and the model's outputs.
METRIC, GRADIENT, NEXT = "metric.", ".grad", ".next"

Kind = Literal["parameter", "buffer", "frozen"]
DataType = Literal["float32", "int64"]
MetricName = Literal["accuracy", "binary_accuracy", "mae", "mse"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the model. `offset` counts float32 elements from the start of the flat vector."""

    name: str
    shape: tuple[int, ...]
    offset: int
    kind: Kind
    prunable: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Port:
    """One input, target or output of the model: its shape without the batch axis, and its type.

    `classes` says, for integer targets, that values run from 0 to classes - 1.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DataType
    classes: int | None = None


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle, by its path with forward slashes from the bundle's root."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        parts = self.path.split("/")
        if self.path.startswith("/") or "\\" in self.path or any(p in ("", ".", "..") for p in parts):
            raise ValueError(f"path: {self.path!r} must stay inside the bundle")
        if not self.path.isprintable():
            raise ValueError(f"path: {self.path!r} has characters no file of ours has")
        if self.size < 0 or len(self.sha256) != 64:
            raise ValueError(f"sha256: {self.path!r} has no valid size and digest")


@dataclass(frozen=True, slots=True)
class Backend:
    """The graphs of one backend, by role (for example train, eval, checkpoint) to path, and what they need to run."""

    files: Mapping[str, str]
    requires: str


@dataclass(frozen=True, slots=True)
class Dropout:
    """One dropout of a training graph. Its mask is an input of the graph, `name`: float32[batch, *shape], zero with
    probability `rate`, otherwise 1 / (1 - rate)."""

    name: str
    shape: tuple[int, ...]
    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: {self.rate} of {self.name!r} is not a probability above 0")
        too_many = len(self.shape) > MAX_DIMENSIONS or any(not 0 < d <= MAX_ELEMENTS for d in self.shape)
        if too_many or math.prod(self.shape) > MAX_ELEMENTS:
            raise ValueError(f"shape: {self.name!r} has an impossible mask {self.shape}")


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that come and go together, in all the tensors that hold them. A width tier keeps the same number in each
    of `multiple` equal parts of the group, so that a grouped convolution stays one."""

    name: str
    size: int
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_ELEMENTS or self.multiple < 1 or self.size % self.multiple:
            raise ValueError(
                f"size: {self.size} channels of {self.name!r} in {self.multiple} equal parts are impossible"
            )


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a tensor's axis: `size` channels of `group` in order, `block` neighbouring entries for each, or
    `size` * `block` entries of no group, which every tier keeps."""

    group: str | None
    size: int
    block: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.size <= MAX_ELEMENTS and 0 < self.block <= MAX_ELEMENTS):
            raise ValueError(f"size: a segment of {self.size} times {self.block} entries is impossible")


@dataclass(frozen=True, slots=True)
class Load:
    """What a training step asks of a device, counted from the portable graph: multiplications and additions of one
    example in all its matrix products and convolutions, forward and backward, and the runtime's bytes, `fixed_bytes`
    and for each example `example_bytes`."""

    multiply_adds: int
    fixed_bytes: int
    example_bytes: int

    def __post_init__(self) -> None:
        if min(self.multiply_adds, self.fixed_bytes, self.example_bytes) < 0:
            raise ValueError(f"multiply_adds: {self} counts below zero")


@dataclass(frozen=True, slots=True)
class Variant:
    """One set of graphs over the same tensors, for example a freeze scheme. `full` trains everything.

    keep: of a width tier, how many channels of each group its tensors have; empty where all are kept. load: what a step
    asks of a device; None where it could not be counted.

    dropouts: in the order of the training graph's inputs, after the model's inputs and targets; the same for every
    backend, so that all of them take the same step from the same seed. frozen: parameters that this variant leaves as
    they are; their gradient is zero and no graph computes it. frozen_buffers: running statistics that it leaves too.
    """

    name: str
    backends: Mapping[str, Backend]
    dropouts: tuple[Dropout, ...] = ()
    frozen: tuple[str, ...] = ()
    frozen_buffers: tuple[str, ...] = ()
    keep: Mapping[str, int] = field(default_factory=dict)
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """The deployable graph and where each tensor's float32 bytes lie in it, so that a trained model is written by
    copying bytes and needs no ONNX library. `places` maps tensor names to byte offsets of their raw data."""

    path: str
    places: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Reference:
    """Where the record of torch's own steps lies, and the SHA-256 of the model they start from: the exported one, as
    float32 in manifest order. Whoever holds that model can replay them."""

    path: str
    model: str


@dataclass(frozen=True, slots=True)
class Parity:
    """What the exporter measured against torch before it wrote the bundle: largest relative differences."""

    loss: float
    gradient: float
    buffers: float
    three_steps: float
    tolerance: float
    torch: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole bundle. The flat vector is float32[parameters | buffers | frozen], in the order of `tensors`.

    left_out: backends that the exporter could not make, with why. groups: the channels that width tiers keep or leave.
    axes: of a tensor that holds some of them, the segments of each axis; other tensors are whole in every tier.
    mask: the file that says which parameters are kept, a bit for each, where the model was pruned before its export.
    """

    format: int
    line: str
    version: int
    tensors: tuple[Tensor, ...]
    inputs: tuple[Port, ...]
    targets: tuple[Port, ...]
    outputs: tuple[Port, ...]
    loss: str
    metrics: tuple[MetricName, ...]
    files: tuple[FileEntry, ...]
    variants: tuple[Variant, ...]
    inference: Inference
    parity: Mapping[str, Parity]
    reference: Reference | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[ChannelGroup, ...] = ()
    axes: Mapping[str, tuple[tuple[Segment, ...], ...]] = field(default_factory=dict)
    mask: str | None = None

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format: {self.format} is not the format this version reads ({FORMAT})")
        if not self.inputs or not self.variants or not self.tensors:
            raise ValueError("inputs: a bundle has at least one input, one tensor and one variant")
        if len(self.tensors) > MAX_TENSORS:
            raise ValueError(f"tensors: {len(self.tensors)} is more than the limit of {MAX_TENSORS}")
        order = {"parameter": 0, "buffer": 1, "frozen": 2}
        offset, stage, names = 0, 0, set()
        for t in self.tensors:
            # Each dimension first: a product of thousands of huge ones would take minutes.
            too_many = len(t.shape) > MAX_DIMENSIONS or any(not 0 <= d <= MAX_ELEMENTS for d in t.shape)
            if too_many or t.size > MAX_ELEMENTS:
                raise ValueError(f"tensors: {t.name} has an impossible shape {t.shape}")
            if t.offset != offset or order[t.kind] < stage or t.name in names:
                raise ValueError(f"tensors: {t.name} is out of place or named twice")
            offset, stage = offset + t.size, order[t.kind]
            names.add(t.name)
        if offset > MAX_ELEMENTS:
            raise ValueError(f"tensors: {offset} elements are more than the limit of {MAX_ELEMENTS}")
        if self.mask is not None and all(entry.path != self.mask for entry in self.files):
            raise ValueError(f"mask: {self.mask!r} is not listed among the files")
        _check_variants(self)
        _check_channels(self)

    def count(self, *kinds: Kind) -> int:
        """How many float32 elements the tensors of these kinds hold."""
        return sum(t.size for t in self.tensors if t.kind in kinds)

    @property
    def parameters(self) -> int:
        return self.count("parameter")

    @property
    def buffers(self) -> int:
        return self.count("buffer")

    @property
    def total(self) -> int:
        return self.count("parameter", "buffer", "frozen")

    def variant(self, name: str) -> Variant:
        """The variant of this name. Raises ConfigurationError naming those there are."""
        for known in self.variants:
            if known.name == name:
                return known
        names = ", ".join(v.name for v in self.variants)
        raise ConfigurationError(f"variant: {name!r} is not in this bundle; it holds {names}")

    def file(self, path: str) -> FileEntry:
        for entry in self.files:
            if entry.path == path:
                return entry
        raise BundleError(f"bundle: the manifest names {path!r} but does not list it among its files")


def is_variant_name(name: str) -> bool:
    """Whether a variant can be called so: it names folders, and stands in messages and tables."""
    return _VARIANT_NAME.fullmatch(name) is not None


def _check_variants(manifest: Manifest) -> None:
    kinds = {t.name: t.kind for t in manifest.tensors}
    for place, variant in enumerate(manifest.variants):
        where = f"variants: {variant.name}"
        if not is_variant_name(variant.name):
            raise ValueError(f"variants: {variant.name!r} must be 1 to 63 of a-z, 0-9 and '-'")
        if any(other.name == variant.name for other in manifest.variants[:place]):
            raise ValueError(f"{where} is there twice")
        for names, kind in ((variant.frozen, "parameter"), (variant.frozen_buffers, "buffer")):
            wrong = next((name for name in names if kinds.get(name) != kind), None)
            if wrong is not None:
                raise ValueError(f"{where} freezes {wrong!r}, which is no {kind} of this bundle")
            if len(set(names)) < len(names):
                raise ValueError(f"{where} freezes a {kind} twice")
        if variant.name == FULL and (variant.frozen or variant.frozen_buffers):
            raise ValueError(f"{where} trains everything and freezes nothing")
        if variant.frozen and len(variant.frozen) == sum(kind == "parameter" for kind in kinds.values()):
            raise ValueError(f"{where} freezes every parameter; leave at least one to train")


def _check_channels(manifest: Manifest) -> None:
    groups = {group.name: group for group in manifest.groups}
    if len(groups) < len(manifest.groups):
        raise ValueError("groups: a group of channels is there twice")
    shapes = {t.name: t.shape for t in manifest.tensors}
    for name, axes in manifest.axes.items():
        shape = tuple(sum(segment.size * segment.block for segment in axis) for axis in axes)
        if shapes.get(name) != shape:
            raise ValueError(f"axes: {name!r} has segments of {shape}, but its shape is {shapes.get(name)}")
        for segment in (segment for axis in axes for segment in axis if segment.group is not None):
            group = groups.get(segment.group or "")
            if group is None or group.size != segment.size:
                raise ValueError(f"axes: {name!r} has {segment.size} channels of {segment.group!r}, which has not")
    for variant in manifest.variants:
        if variant.keep and (variant.keep.keys() != groups.keys() or variant.name == FULL or variant.frozen):
            raise ValueError(f"variants: {variant.name} must keep channels of every group, and train them all")
        for name, count in variant.keep.items():
            if not 0 < count <= groups[name].size or count % groups[name].multiple:
                raise ValueError(f"variants: {variant.name} keeps {count} of {groups[name].size} channels of {name!r}")


# A device looks at its manifest many times a task, and has one or, when a new one comes, two of them.
@lru_cache(maxsize=2)
def parse_manifest(data: bytes) -> Manifest:
    """A manifest from its JSON bytes. Raises BundleError that names the offending key."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST_FILE}: {len(data)} bytes are over the limit of {MAX_MANIFEST_BYTES}")
    try:
        source = bounded_json.loads(data)
        _check_format(source)
        return read_record(Manifest, source)
    except (RecordError, ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_FILE}: {error}") from None


def _check_format(source: object) -> None:
    """Before all else, so that what a newer format has more is not said to be wrong. Raises ValueError."""
    found = source.get("format") if isinstance(source, dict) else None
    if type(found) is int and found != FORMAT:
        remedy = "upgrade what reads it (edge-agent, fleet-coordinator)" if found > FORMAT else "export it again"
        raise ValueError(f"format: {found} is not the format this version reads ({FORMAT}); {remedy}")


def format_manifest(manifest: Manifest) -> bytes:
    """The JSON bytes of a manifest, the same for the same manifest."""
    return (json.dumps(write_record(manifest), indent=1, sort_keys=True) + "\n").encode()
