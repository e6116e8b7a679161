"""Many small operators of many kinds in one graph, as training graphs have them: what starting an operator costs.

A chain of one operator stays in the processor's fastest memory, code and branches and all, and starts it in half of the
time that it takes among others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_agent.runtimes.engine import Array
from edge_agent.runtimes.graph_writer import Attribute, Named, Node, write_graph
from edge_agent.runtimes.work import Operation, Shape

_SHAPE: Shape = (8, 16)
_TURNED: Shape = (16, 8)
_SQUARE: Shape = (16, 16)
_ROW: Shape = (8, 1)


@dataclass(frozen=True, slots=True)
class Line:
    """An operator: the first operand is what the line before wrote."""

    kind: str
    reads: tuple[Shape, ...]
    out: Shape
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    constants: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


# Two, so that starting an operator can be told from setting up one that is more than element by element.
LIGHT: Sequence[Line] = (
    Line("Add", (_SHAPE, _SHAPE), _SHAPE),
    Line("Mul", (_SHAPE, _SHAPE), _SHAPE),
    Line("Sigmoid", (_SHAPE,), _SHAPE),
    Line("Reshape", (_SHAPE,), _TURNED, {}, {"shape": _TURNED}),
    Line("Neg", (_TURNED,), _TURNED),
    Line("Reshape", (_TURNED,), _SHAPE, {}, {"shape": _SHAPE}),
    Line("Relu", (_SHAPE,), _SHAPE),
    Line("Sub", (_SHAPE, _SHAPE), _SHAPE),
    Line("Max", (_SHAPE, _SHAPE), _SHAPE),
    Line("Sqrt", (_SHAPE,), _SHAPE),
    Line("Div", (_SHAPE, _SHAPE), _SHAPE),
    Line("Tanh", (_SHAPE,), _SHAPE),
)
HEAVY: Sequence[Line] = (
    Line("Transpose", (_SHAPE,), _TURNED, {"perm": (1, 0)}),
    Line("Transpose", (_TURNED,), _SHAPE, {"perm": (1, 0)}),
    Line("Add", (_SHAPE, _SHAPE), _SHAPE),
    Line("Gemm", (_SHAPE, _SQUARE), _SHAPE),
    Line("Slice", (_SHAPE,), (8, 8), {}, {"starts": (0,), "ends": (8,), "axes": (1,)}),
    Line("Pad", ((8, 8),), _SHAPE, {}, {"pads": (0, 0, 0, 8)}),
    Line("ReduceSum", (_SHAPE,), _ROW, {"keepdims": 1}, {"axes": (1,)}),
    Line("Sub", (_ROW, _SHAPE), _SHAPE),
    Line("Slice", (_SHAPE,), (4, 16), {}, {"starts": (2,), "ends": (6,), "axes": (0,)}),
    Line("Pad", ((4, 16),), _SHAPE, {}, {"pads": (4, 0, 0, 0)}),
    Line("MatMul", (_SHAPE, _SQUARE), _SHAPE),
    Line("ReduceMean", (_SHAPE,), _ROW, {"keepdims": 1}, {"axes": (1,)}),
    Line("Mul", (_ROW, _SHAPE), _SHAPE),
)
MEDLEYS = (LIGHT, HEAVY)
# A loaded node takes some kilobytes, so that as many as training graphs have do not stay in the cache between steps.
NODES = 600
# Read besides the chain.
_INPUTS: Mapping[str, Shape] = {"x0": _SHAPE, "x1": _SHAPE, "x2": _SQUARE}


def operations(verse: Sequence[Line]) -> list[Operation]:
    """What a plan would make of the graph."""
    once = []
    for line in verse:
        said = {name: (v,) if isinstance(v, int) else tuple(v) for name, v in line.attributes.items()}
        once.append(Operation(line.kind, line.reads, (line.out,), {**said, **line.constants}))
    return once * (NODES // len(verse))


def graph(verse: Sequence[Line]) -> bytes:
    """The graph from `x0`, `x1` and `x2` to `y`."""
    held = {f"{i}_{name}": np.array(v, np.int64) for i, line in enumerate(verse) for name, v in line.constants.items()}
    inputs = [Named(name, shape, np.dtype(np.float32)) for name, shape in _INPUTS.items()]
    return write_graph(list(_nodes(verse)), inputs, [Named("y", _SHAPE, np.dtype(np.float32))], held)


def arrays(rng: np.random.Generator) -> list[Array]:
    return [(1 + 0.1 * rng.random(shape)).astype(np.float32) for shape in _INPUTS.values()]


def output() -> Array:
    return np.empty(_SHAPE, np.float32)


def _nodes(verse: Sequence[Line]) -> Iterator[Node]:
    names, last = ["x0"], NODES // len(verse) * len(verse) - 1
    for number in range(last + 1):
        place = number % len(verse)
        line = verse[place]
        others = [_other(verse, shape, number, names) for shape in line.reads[1:]]
        out = "y" if number == last else f"y{number}"
        yield Node(line.kind, [names[-1], *others, *(f"{place}_{n}" for n in line.constants)], [out], line.attributes)
        names.append(out)


def _other(verse: Sequence[Line], shape: Shape, number: int, names: Sequence[str]) -> str:
    """A second operand: what the line before wrote a verse ago, as backward passes read what forward ones kept."""
    ago = number - len(verse)
    if ago > 0 and verse[(ago - 1) % len(verse)].out == shape:
        return names[ago]
    return "x2" if shape == _SQUARE else "x1"
