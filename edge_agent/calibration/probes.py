"""The probes of a calibration: single operators, in shapes like those of training graphs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_agent.runtimes.engine import Array
from edge_agent.runtimes.graph_writer import Attribute, Named, Node, write_graph
from edge_agent.runtimes.work import Operation, Shape

_FLOAT, _BOOL, _INTEGER = np.dtype(np.float32), np.dtype(np.bool_), np.dtype(np.int64)


@dataclass(frozen=True, slots=True)
class Probe:
    """An operator on float32 `inputs`, after which come int64 `constants`, by their names in ONNX.

    times: how often it stands in the graph, each on the result of the one before. A short operator is timed best so,
    and calling the runtime can be told from running an operator. before: a Transpose of the last two axes of the second
    input, which the runtime takes into a matrix product.
    """

    kind: str
    inputs: tuple[Shape, ...]
    output: Shape
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    constants: Mapping[str, Sequence[int]] = field(default_factory=dict)
    times: int = 1
    given: np.dtype[np.generic] = _FLOAT
    result: np.dtype[np.generic] = _FLOAT
    transposed: bool = False

    @property
    def operation(self) -> Operation:
        """What a plan would make of it."""
        seen = {k: (v,) if isinstance(v, int) else tuple(v) for k, v in self.attributes.items()}
        constants = {name: tuple(values) for name, values in self.constants.items()}
        turned = {"transB": (1,)} if self.transposed else {}
        return Operation(self.kind, self.inputs, (self.output,), {**seen, **constants, **turned})

    def graph(self) -> bytes:
        """The graph from `x0`, `x1`, ... to `y`."""
        names = [f"x{i}" for i in range(len(self.inputs))]
        nodes = [] if not self.transposed else [Node("Transpose", ["x1"], ["turned"], {"perm": self._swapped()})]
        rest = ["turned" if self.transposed and name == "x1" else name for name in names[1:]]
        for i in range(self.times):
            first, out = f"y{i}" if i else "x0", "y" if i == self.times - 1 else f"y{i + 1}"
            nodes.append(Node(self.kind, [first, *rest, *self.constants], [out], self.attributes))
        held = {name: np.array(values, np.int64) for name, values in self.constants.items()}
        inputs = [Named(f"x{i}", shape, self.given) for i, shape in enumerate(self._given_shapes())]
        return write_graph(nodes, inputs, [Named("y", self.output, self.result)], held)

    def arrays(self, rng: np.random.Generator) -> list[Array]:
        """Values for its inputs: near one, of which no operator makes NaN, infinity or denormal numbers."""
        return [(1 + 0.1 * rng.random(shape)).astype(self.given) for shape in self._given_shapes()]

    def _given_shapes(self) -> list[Shape]:
        shapes = list(self.inputs)
        if self.transposed:
            shapes[1] = (*shapes[1][:-2], shapes[1][-1], shapes[1][-2])
        return shapes

    def _swapped(self) -> tuple[int, ...]:
        rank = len(self.inputs[1])
        return (*range(rank - 2), rank - 1, rank - 2)


def _conv(n: int, into: int, out: int, size: int, kernel: int, group: int = 1) -> Probe:
    shapes = ((n, into, size, size), (out, into // group, kernel, kernel))
    pads = (kernel // 2,) * 4
    return Probe("Conv", shapes, (n, out, size, size), {"kernel_shape": (kernel, kernel), "pads": pads, "group": group})


def _strided(n: int, into: int, out: int, size: int, kernel: int) -> Probe:
    shapes = ((n, into, size), (out, into, kernel))
    attributes: dict[str, Attribute] = {"kernel_shape": (kernel,), "pads": (kernel // 2,) * 2, "strides": (2,)}
    return Probe("Conv", shapes, (n, out, size // 2), attributes)


def _conv_transpose(n: int, into: int, out: int, size: int, kernel: int, group: int = 1) -> Probe:
    shapes = ((n, into, size, size), (into, out // group, kernel, kernel))
    pads = (kernel // 2,) * 4
    attributes: dict[str, Attribute] = {"kernel_shape": (kernel, kernel), "pads": pads, "group": group}
    return Probe("ConvTranspose", shapes, (n, out, size, size), attributes)


def _fold(n: int, into: int, out: int, size: int, kernel: int) -> Probe:
    shapes = ((n, into, size), (into, out, kernel))
    attributes: dict[str, Attribute] = {"kernel_shape": (kernel,), "pads": (kernel // 2,) * 2}
    return Probe("ConvTranspose", shapes, (n, out, size), attributes)


def _stride(shape: Shape, step: int) -> Probe:
    out = (*shape[:-1], -(-shape[-1] // step))
    constants = {"starts": (0,), "ends": (shape[-1],), "axes": (len(shape) - 1,), "steps": (step,)}
    return Probe("Slice", (shape,), out, {}, constants)


def _matmul(n: int, m: int, k: int, p: int, *, transposed: bool = False) -> Probe:
    return Probe("MatMul", ((n, m, k), (n, k, p)), (n, m, p), transposed=transposed)


def _gemm(m: int, k: int, n: int, left: int = 0, right: int = 0) -> Probe:
    a, b = (k, m) if left else (m, k), (n, k) if right else (k, n)
    return Probe("Gemm", (a, b), (m, n), {"transA": left, "transB": right})


def _each(kind: str, shape: Shape, *others: Shape, times: int = 1) -> Probe:
    return Probe(kind, (shape, *others), shape, times=times)


def _compare(shape: Shape) -> Probe:
    return Probe("Greater", (shape, shape), shape, result=_BOOL)


def _cast(shape: Shape) -> Probe:
    return Probe("Cast", (shape,), shape, {"to": 1}, given=_BOOL)


def _reduce(shape: Shape, *axes: int) -> Probe:
    kept = tuple(1 if i in axes else size for i, size in enumerate(shape))
    return Probe("ReduceSum", (shape,), kept, {"keepdims": 1}, {"axes": axes})


def _transpose(shape: Shape, *order: int) -> Probe:
    return Probe("Transpose", (shape,), tuple(shape[i] for i in order), {"perm": order})


def _slice(shape: Shape, size: int) -> Probe:
    out = (*shape[:-2], size, size)
    constants = {"starts": (0, 0), "ends": (size, size), "axes": (len(shape) - 2, len(shape) - 1)}
    return Probe("Slice", (shape,), out, {}, constants)


def _pad(shape: Shape) -> Probe:
    out = (*shape[:-2], shape[-2] + 2, shape[-1] + 2)
    ones = (*(0,) * (len(shape) - 2), 1, 1)
    return Probe("Pad", (shape,), out, {}, {"pads": ones + ones})


def _concat(shape: Shape, parts: int) -> Probe:
    out = (shape[0], parts * shape[1], *shape[2:])
    return Probe("Concat", (shape,) * parts, out, {"axis": 1})


def _norm(n: int, channels: int, size: int) -> Probe:
    return Probe("BatchNormalization", ((n, channels, size, size), *((channels,),) * 4), (n, channels, size, size))


def _pool(n: int, channels: int, size: int) -> Probe:
    half = (n, channels, size // 2, size // 2)
    return Probe("MaxPool", ((n, channels, size, size),), half, {"kernel_shape": (2, 2), "strides": (2, 2)})


def _lookup(rows: int, width: int) -> Probe:
    indices = tuple(i * 7919 % rows for i in range(rows))
    return Probe("Gather", ((rows, width),), (rows, width), {"axis": 0}, {"indices": indices})


# The operators of training graphs on a few values: what they run is then in memory.
TOUCHED: tuple[Probe, ...] = (
    _each("Add", (16,), (16,)),
    _each("Mul", (16, 4), (4,)),
    _each("Exp", (16,)),
    _compare((16,)),
    _cast((16,)),
    _reduce((4, 16), 0),
    _norm(1, 2, 4),
    _pool(1, 2, 4),
    _slice((1, 2, 6, 6), 4),
    _pad((1, 2, 4, 4)),
    _concat((1, 2, 4, 4), 2),
    _transpose((4, 4, 4), 0, 2, 1),
    _lookup(16, 4),
    _gemm(16, 16, 16),
    _matmul(2, 16, 16, 16),
    _conv(1, 4, 4, 8, 3),
    _conv(1, 4, 4, 8, 3, 4),
    _conv_transpose(1, 4, 4, 8, 3),
)

# Few enough for seconds on a small board, and each unit of work in at least two of them.
PROBES: tuple[Probe, ...] = (
    _each("Add", (4,), (4,)),
    _each("Add", (16384,), (16384,)),
    _each("Mul", (4, 16, 32, 32), (4, 16, 32, 32)),
    _each("Mul", (32, 16, 32, 32), (32, 16, 32, 32)),
    _each("Mul", (1 << 21,), (1 << 21,)),
    _each("Relu", (3 << 20,)),
    _each("Add", (1 << 17,), (1 << 17,)),
    _concat((32, 16, 32, 32), 4),
    _each("Relu", (16, 16, 32, 32)),
    _each("Add", (16, 16, 32, 32), (16, 1, 1)),
    _each("Mul", (32, 64, 8, 8), (64, 1, 1)),
    _each("Exp", (16384,)),
    _each("Sqrt", (65536,)),
    _each("Erf", (65536,)),
    _each("Sigmoid", (1024,), times=20),
    _compare((65536,)),
    _cast((65536,)),
    _reduce((32, 16, 32, 32), 0, 2, 3),
    _reduce((32, 64, 8, 8), 0, 2, 3),
    _reduce((32, 64, 144), 0),
    _reduce((1, 64, 240), 0),
    _reduce((512, 64), 1),
    _norm(8, 16, 32),
    _norm(32, 64, 8),
    _pool(8, 16, 32),
    _pool(32, 64, 8),
    _slice((8, 16, 34, 34), 32),
    _slice((32, 64, 10, 10), 8),
    _stride((32, 32, 64), 2),
    _stride((8, 16, 32, 32), 2),
    _pad((32, 16, 16, 16)),
    _concat((8, 16, 32, 32), 9),
    _concat((32, 64, 8, 8), 9),
    _transpose((16, 9, 16, 256), 0, 2, 1, 3),
    _transpose((64, 32, 32), 0, 2, 1),
    _transpose((512, 256), 1, 0),
    _lookup(1024, 64),
    _lookup(4096, 1),
    _gemm(1, 64, 64),
    _gemm(32, 1024, 64, 0, 1),
    _gemm(64, 32, 1024, 1, 0),
    _gemm(512, 64, 192),
    _gemm(512, 192, 64, 0, 1),
    _matmul(1, 256, 256, 256),
    _matmul(32, 32, 16, 32),
    _matmul(8, 16, 1024, 144, transposed=True),
    _matmul(16, 64, 64, 576, transposed=True),
    _matmul(16, 32, 16, 160, transposed=True),
    _matmul(512, 1, 256, 9, transposed=True),
    _conv(1, 16, 16, 32, 3),
    _conv(8, 16, 16, 32, 3),
    _conv(8, 32, 32, 16, 3),
    _conv(8, 64, 64, 8, 3),
    _conv(8, 32, 64, 16, 1),
    _conv(4, 64, 64, 16, 3, 64),
    _conv(4, 48, 48, 24, 3, 48),
    _strided(1, 32, 48, 64, 5),
    _strided(8, 32, 48, 64, 5),
    _conv_transpose(4, 16, 16, 32, 3),
    _conv_transpose(8, 64, 64, 8, 3),
    _fold(8, 48, 32, 32, 5),
    _fold(4, 32, 16, 128, 3),
    _conv_transpose(4, 64, 64, 16, 3, 64),
)
