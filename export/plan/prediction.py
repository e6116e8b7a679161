"""A plan: what one bundle will ask of one device."""

from dataclasses import dataclass

from edge_agent.runtimes.portable import NAME as PORTABLE
from export.plan.footprint import Disk, Memory, Wire, fetched, predict_disk, predict_memory, predict_wire
from export.plan.graph import read_graph
from export.plan.pace import Pace, predict_pace
from protocol.bundle import Bundle
from protocol.errors import ConfigurationError
from protocol.layout import layout_of
from protocol.manifest import MANIFEST_FILE
from protocol.profile import Profile
from protocol.width import narrowed
from sparse.codecs import parse_codec

OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the device would train. examples: in its memory, 0 where that is not to be counted."""

    batch: int = 32
    steps: int = 1
    codec: str = "all/float32"
    variant: str = "full"
    backend: str = PORTABLE
    optimizer: str = "sgd"
    examples: int = 0

    def __post_init__(self) -> None:
        for key, value, least in (("batch", self.batch, 1), ("steps", self.steps, 1), ("examples", self.examples, 0)):
            if not least <= value <= 1_000_000_000:
                raise ConfigurationError(f"--{key}: {value} is outside {least}..1000000000")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigurationError(f"--optimizer: {self.optimizer!r} is unknown; use {' or '.join(OPTIMIZERS)}")


@dataclass(frozen=True, slots=True)
class Plan:
    """The prediction, and what it is for."""

    line: str
    version: int
    wanted: Wanted
    device: Profile
    nodes: int
    pace: Pace
    memory: Memory
    disk: Disk
    wire: Wire

    @property
    def round_s(self) -> float:
        return self.wanted.steps * self.pace.step_s


def predict(bundle: Bundle, device: Profile, wanted: Wanted) -> Plan:
    """Raises ConfigurationError naming an option that is wrong, BundleError where the bundle is."""
    try:
        spec = parse_codec(wanted.codec)
    except ValueError as error:
        raise ConfigurationError(f"--codec: {error}") from None
    manifest = narrowed(bundle.manifest, wanted.variant)
    variant, layout = manifest.variant(wanted.variant), layout_of(manifest, wanted.variant)
    files = variant.backends.get(wanted.backend)
    if files is None or "train" not in files.files:
        able = ", ".join(name for name, held in variant.backends.items() if "train" in held.files) or "none"
        raise ConfigurationError(
            f"--backend: variant {variant.name!r} has no training graph for {wanted.backend!r}, but for {able}"
        )
    graph = read_graph(bundle.path(files.files["train"]), wanted.batch)
    manifest_bytes = (bundle.root / MANIFEST_FILE).stat().st_size
    wire = predict_wire(manifest, fetched(manifest, variant, wanted.backend), manifest_bytes, layout, spec)
    memory = predict_memory(
        graph, manifest, variant, layout, device, wanted.optimizer, wanted.batch, wanted.examples, wire.update
    )
    around = memory.tensors + memory.vectors + memory.graph
    pace = predict_pace(graph, device, wanted.optimizer, layout.n_parameters, around)
    return Plan(
        manifest.line, manifest.version, wanted, device, graph.nodes, pace, memory, predict_disk(wire, layout), wire
    )
