"""What a training step asks of a device, counted from its portable graph."""

from pathlib import Path

from edge_agent.runtimes.work import multiply_adds
from export.plan.footprint import uses_of
from export.plan.graph import Graph, read_graph
from export.plan.liveness import peak
from protocol.manifest import Load

# What grows with the batch is told from what does not by two sizes of it.
_SMALL, _LARGE = 8, 32


def load_of(path: Path) -> Load:
    """The load of a training graph. Raises BundleError where it cannot be read."""
    small, large = (_counts(read_graph(path, batch)) for batch in (_SMALL, _LARGE))
    adds, example = ((b - a) / (_LARGE - _SMALL) for a, b in zip(small, large, strict=True))
    return Load(round(adds), max(0, round(small[1] - _SMALL * example)), max(0, round(example)))


def _counts(graph: Graph) -> tuple[int, int]:
    """Multiplications and additions, and the bytes that the runtime takes for tensors."""
    adds = sum(s.times * multiply_adds(s.operation) for s in graph.steps if s.operation is not None)
    return adds, peak(uses_of(graph), graph.sizes, graph.held).resident
