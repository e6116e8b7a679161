"""Many small operators of many kinds in one graph, as training graphs have them: what starting an operator costs.

A chain of one operator stays in the processor's fastest memory, code and branches and all, and starts it in half of the
time that it takes among others.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edge_agent.runtimes.engine import Array
from edge_agent.runtimes.graph_writer import Attribute, Named, Node, write_graph
from edge_agent.runtimes.work import Operation, Shape

_SHAPE: Shape = (8, 16)
_TURNED: Shape = (16, 8)
_SQUARE: Shape = (16, 16)
_ROW: Shape = (8, 1)

# One verse: kind, the shapes that it reads, the shape that it writes, attributes, and constants. The first operand is
# what the line before wrote, others are inputs of that shape.
_VERSE: Sequence[tuple[str, tuple[Shape, ...], Shape, Mapping[str, Attribute], Mapping[str, tuple[int, ...]]]] = (
    ("Add", (_SHAPE, _SHAPE), _SHAPE, {}, {}),
    ("Reshape", (_SHAPE,), _TURNED, {}, {"shape": _TURNED}),
    ("Transpose", (_TURNED,), _SHAPE, {"perm": (1, 0)}, {}),
    ("Mul", (_SHAPE, _SHAPE), _SHAPE, {}, {}),
    ("Sigmoid", (_SHAPE,), _SHAPE, {}, {}),
    ("Gemm", (_SHAPE, _SQUARE), _SHAPE, {}, {}),
    ("Neg", (_SHAPE,), _SHAPE, {}, {}),
    ("Slice", (_SHAPE,), (8, 8), {}, {"starts": (0,), "ends": (8,), "axes": (1,)}),
    ("Pad", ((8, 8),), _SHAPE, {}, {"pads": (0, 0, 0, 8)}),
    ("Relu", (_SHAPE,), _SHAPE, {}, {}),
    ("Sub", (_SHAPE, _SHAPE), _SHAPE, {}, {}),
    ("ReduceSum", (_SHAPE,), _ROW, {"keepdims": 1}, {"axes": (1,)}),
    ("Sub", (_ROW, _SHAPE), _SHAPE, {}, {}),
    ("Max", (_SHAPE, _SHAPE), _SHAPE, {}, {}),
    ("Sqrt", (_SHAPE,), _SHAPE, {}, {}),
    ("Unsqueeze", (_SHAPE,), (1, *_SHAPE), {}, {"axes": (0,)}),
    ("MatMul", ((1, *_SHAPE), _SQUARE), (1, *_SHAPE), {}, {}),
    ("Reshape", ((1, *_SHAPE),), _SHAPE, {}, {"shape": _SHAPE}),
    ("Div", (_SHAPE, _SHAPE), _SHAPE, {}, {}),
    ("Tanh", (_SHAPE,), _SHAPE, {}, {}),
)
# A loaded node takes some kilobytes, so that as many as a training graph has do not stay in the cache from step to step.
VERSES = 40
# Read besides the chain.
_INPUTS: Mapping[str, Shape] = {"x0": _SHAPE, "x1": _SHAPE, "x2": _SQUARE}


def operations() -> list[Operation]:
    """What a plan would make of the graph."""
    verse = [
        Operation(
            kind,
            reads,
            (out,),
            {**{k: (v,) if isinstance(v, int) else tuple(v) for k, v in attributes.items()}, **constants},
        )
        for kind, reads, out, attributes, constants in _VERSE
    ]
    return verse * VERSES


def graph() -> bytes:
    """The graph from `x0`, `x1` and `x2` to `y`."""
    held = {f"{i}_{name}": np.array(v, np.int64) for i, line in enumerate(_VERSE) for name, v in line[4].items()}
    inputs = [Named(name, shape, np.dtype(np.float32)) for name, shape in _INPUTS.items()]
    return write_graph(list(_nodes()), inputs, [Named("y", _SHAPE, np.dtype(np.float32))], held)


def arrays(rng: np.random.Generator) -> list[Array]:
    return [(1 + 0.1 * rng.random(shape)).astype(np.float32) for shape in _INPUTS.values()]


def output() -> Array:
    return np.empty(_SHAPE, np.float32)


def _nodes() -> Iterator[Node]:
    others = {_SHAPE: "x1", _SQUARE: "x2"}
    last = "x0"
    for number in range(VERSES * len(_VERSE)):
        place = number % len(_VERSE)
        kind, reads, _, attributes, constants = _VERSE[place]
        out = "y" if number == VERSES * len(_VERSE) - 1 else f"y{number}"
        yield Node(
            kind, [last, *(others[s] for s in reads[1:]), *(f"{place}_{n}" for n in constants)], [out], attributes
        )
        last = out
