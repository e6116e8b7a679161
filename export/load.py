"""What a training step asks of a device, counted from its portable graph."""

from dataclasses import replace
from pathlib import Path

from edge_agent.runtimes.portable import NAME as PORTABLE
from edge_agent.runtimes.work import multiply_adds
from export.plan.footprint import uses_of
from export.plan.graph import Graph, read_graph
from export.plan.liveness import peak
from protocol.errors import BundleError
from protocol.manifest import Load, Manifest, Variant

# What grows with the batch is told from what does not by two sizes of it.
_SMALL, _LARGE = 8, 32


def load_of(path: Path) -> Load:
    """The load of a training graph. Raises BundleError where it cannot be read."""
    small, large = (_counts(read_graph(path, batch)) for batch in (_SMALL, _LARGE))
    adds, example = ((b - a) / (_LARGE - _SMALL) for a, b in zip(small, large, strict=True))
    return Load(round(adds), max(0, round(small[1] - _SMALL * example)), max(0, round(example)))


def with_loads(manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with the load of every variant whose graph can be counted. folder: of the bundle."""
    return replace(manifest, variants=tuple(_with_load(variant, folder) for variant in manifest.variants))


def _with_load(variant: Variant, folder: Path) -> Variant:
    if variant.load is not None:
        return variant
    try:
        return replace(variant, load=load_of(folder / variant.backends[PORTABLE].files["train"]))
    except BundleError:
        # A graph that no plan can be made of trains all the same.
        return variant


def _counts(graph: Graph) -> tuple[int, int]:
    """Multiplications and additions, and the bytes that the runtime takes for tensors."""
    adds = sum(s.times * multiply_adds(s.operation) for s in graph.steps if s.operation is not None)
    return adds, peak(uses_of(graph), graph.sizes, graph.held).resident
