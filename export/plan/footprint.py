"""What training a bundle takes besides time: memory by what holds it, disk, and bytes on the wire."""

import math
from dataclasses import dataclass

from export.plan.graph import Graph, Step
from export.plan.liveness import Use, peak
from protocol.layout import Layout
from protocol.manifest import MANIFEST_FILE, FileEntry, Manifest, Port, Variant
from protocol.profile import Profile
from sparse.codecs import CodecSpec, max_update_bytes, typical_update_bytes

_FLOAT = 4
# As edge_agent.assets has them: what agents leave where it is.
UNUSED_ROLES = frozenset({"optimizer"})


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes resident at the peak, by what holds them.

    idle: agent and runtime, from the profile. graph: the loaded nodes. tensors: what the runtime's arena takes for what
    it computes; alive: how much of it is needed at once, which is when `at` runs. batch: examples and dropout masks of
    a step. vectors: model, gradient and optimiser state, with what is made of them in a step. packing: what is held
    after the last step, when the update is made. data: examples in memory, if their number was given.
    """

    idle: int
    graph: int
    tensors: int
    alive: int
    at: str
    batch: int
    vectors: int
    packing: int
    data: int

    @property
    def peak(self) -> int:
        return self.idle + self.graph + self.tensors + self.data + max(self.vectors + self.batch, self.packing)


@dataclass(frozen=True, slots=True)
class Wire:
    """Bytes of payloads, without envelopes: once for the bundle, then each round down and up."""

    bundle: int
    model: int
    update: int
    most: int


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes at most: files of the bundle, the model in hand, the update in the outbox, and the residuals."""

    bundle: int
    model: int
    update: int
    residual: int

    @property
    def all(self) -> int:
        return self.bundle + self.model + self.update + self.residual


def predict_memory(
    graph: Graph, manifest: Manifest, variant: Variant, layout: Layout, profile: Profile, optimizer: str, batch: int,
    examples: int, update: int,
) -> Memory:  # fmt: skip
    """examples: how many the device holds in memory. update: bytes of the payload."""
    found = peak(uses_of(graph), graph.sizes, graph.held)
    model, gradient, trained = (_FLOAT * n for n in (manifest.total, manifest.parameters, layout.n_parameters))
    state = trained * (2 if optimizer == "adamw" else 1)
    # The model and the gradient stay. A step makes the new parameters, and AdamW one vector more on the way.
    vectors = model + gradient + state + trained * (2 if optimizer == "adamw" else 1)
    # Base model as bytes and as a vector, difference, residual, their sum, what was sent of it, and the new residual.
    packing = model + gradient + state + 3 * model + 4 * trained + update
    example = sum(_bytes(port) for port in (*manifest.inputs, *manifest.targets))
    masks = sum(_FLOAT * math.prod(dropout.shape) for dropout in variant.dropouts)
    return Memory(
        idle=round(profile.idle_mib * (1 << 20)),
        graph=round(graph.nodes * profile.node_bytes),
        tensors=found.resident,
        alive=found.size,
        at=graph.steps[found.at].kind if graph.steps else "nothing",
        batch=batch * (example + masks),
        vectors=vectors,
        packing=packing,
        data=examples * example,
    )


def uses_of(graph: Graph) -> list[Use]:
    """The operators of a graph in their order, as liveness looks at them."""
    return [Use(step.kind, step.reads, step.writes, _scratch(step)) for step in graph.steps]


def predict_wire(
    manifest: Manifest, files: list[FileEntry], manifest_bytes: int, layout: Layout, spec: CodecSpec
) -> Wire:
    """What goes through the broker for one device. An update's size is that of normally distributed differences."""
    n, buffers = layout.n_parameters, layout.n_buffers
    return Wire(
        bundle=manifest_bytes + sum(entry.size for entry in files),
        model=_FLOAT * manifest.total,
        update=typical_update_bytes(n, buffers, spec, shapes=layout.shapes),
        most=max_update_bytes(n, buffers, spec, shapes=layout.shapes),
    )


def predict_disk(wire: Wire, layout: Layout) -> Disk:
    """The residual is kept twice while an update waits: as it was, and as it will be."""
    return Disk(wire.bundle, wire.model, wire.most, 2 * _FLOAT * layout.n_parameters)


def fetched(manifest: Manifest, variant: Variant, backend: str) -> list[FileEntry]:
    """The files that an agent with this backend asks for in its first round, but for the manifest."""
    paths = [path for role, path in variant.backends[backend].files.items() if role not in UNUSED_ROLES]
    if manifest.reference is not None:
        paths.append(manifest.reference.path)
    return [manifest.file(path) for path in dict.fromkeys(paths) if path != MANIFEST_FILE]


def _scratch(step: Step) -> int:
    """A transposed convolution holds one image's columns before it adds them up."""
    if step.kind != "ConvTranspose" or step.operation is None:
        return 0
    x, w = step.operation.inputs[:2]
    return _FLOAT * math.prod(w[1:]) * step.operation.number("group", 1) * math.prod(x[2:])


def _bytes(port: Port) -> int:
    return math.prod(port.shape) * (8 if port.dtype == "int64" else _FLOAT)
