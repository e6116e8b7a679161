"""A training graph as a plan sees it: the operators that will run, with the shapes that they have at one batch size."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper, shape_inference

from edge_agent.runtimes.work import Operation, Shape
from protocol.errors import BundleError

# Constant inputs that say what is done, by operator and place, under their names in ONNX.
_SAYING = {
    **{(kind, 1): "axes" for kind in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")},
    ("Slice", 4): "steps",
}
_MATRIX = ("MatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class Step:
    """One operator: what it reads and writes by name, its operation, and how often it runs.

    operation: None where the shape of something that it touches is not known.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    operation: Operation | None
    times: int = 1


@dataclass(frozen=True, slots=True)
class Graph:
    """steps: in the order they run. sizes: bytes by tensor, of those that are known. held: names that the agent or the
    file holds: inputs, outputs and constants. nodes: all that the runtime loads, bodies of loops included."""

    steps: tuple[Step, ...]
    sizes: Mapping[str, int]
    held: frozenset[str]
    nodes: int

    @property
    def unknown(self) -> int:
        """How many operators are not counted, for want of a shape."""
        return sum(step.operation is None for step in self.steps)


def read_graph(path: Path, batch: int) -> Graph:
    """The graph in a file at that batch size. Raises BundleError."""
    try:
        model = onnx.load(path, load_external_data=False)
        _set_batch(model.graph, batch)
        model = shape_inference.infer_shapes(model, data_prop=True)
    except (OSError, ValueError, DecodeError, shape_inference.InferenceError) as error:
        raise BundleError(f"{path}: not a graph that can be planned ({error}); export the bundle again") from None
    graph = model.graph
    constant = _constants(graph)
    shapes, sizes = _known(graph)
    steps = tuple(_steps(graph, shapes, constant, 1))
    held = {i.name for i in (*graph.input, *graph.output)} | constant
    return Graph(steps, sizes, frozenset(held), _count(graph))


def _set_batch(graph: GraphProto, batch: int) -> None:
    """Every size that has a name in the graph's inputs is the batch's; outputs are inferred anew."""
    for given in graph.input:
        for size in given.type.tensor_type.shape.dim:
            if size.WhichOneof("value") != "dim_value":
                size.dim_value = batch
    for out in graph.output:
        for size in out.type.tensor_type.shape.dim:
            if size.WhichOneof("value") != "dim_value":
                size.ClearField("value")


def _constants(graph: GraphProto) -> set[str]:
    """What the runtime knows when it loads the graph: initialisers, and what is computed from them alone."""
    found = {i.name for i in graph.initializer}
    for node in graph.node:
        if not _bodies(node) and all(name in found for name in node.input if name):
            found.update(node.output)
    return found


def _known(graph: GraphProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shape and bytes of every tensor of which they are known."""
    shapes: dict[str, Shape] = {i.name: tuple(i.dims) for i in graph.initializer}
    sizes: dict[str, int] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = _shape(value)
        if shape is not None:
            shapes[value.name] = shape
            sizes[value.name] = math.prod(shape) * _element_bytes(value.type.tensor_type.elem_type)
    return shapes, sizes


def _shape(value: ValueInfoProto) -> Shape | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or any(not size.HasField("dim_value") for size in kind.shape.dim):
        return None
    return tuple(size.dim_value for size in kind.shape.dim)


def _element_bytes(kind: int) -> int:
    if kind == TensorProto.UNDEFINED:
        return 4
    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _steps(graph: GraphProto, shapes: Mapping[str, Shape], constant: set[str], times: int) -> Iterator[Step]:
    values = {i.name: i for i in graph.initializer}
    turned = _turned(graph)
    for node in graph.node:
        if all(name in constant for name in node.output):
            continue
        for body in _bodies(node):
            inner, _ = _known(body)
            rounds = times * _rounds(node, body, shapes, values)
            yield from _steps(body, {**shapes, **inner}, constant | _constants(body), rounds)
        reads = [turned.get(name, name) if node.op_type in _MATRIX else name for name in node.input]
        if node.output[0] in turned or _bodies(node):
            # A loop costs what its rounds cost; a transposition before a matrix product, what the product makes of it.
            continue
        yield Step(
            node.name or node.output[0],
            node.op_type,
            tuple(n for n in reads if n and n not in values),
            tuple(n for n in node.output if n),
            _operation(node, shapes, values, turned),
            times,
        )


def _turned(graph: GraphProto) -> dict[str, str]:
    """Transpositions of the last two axes that only matrix products read, which the runtime takes into these."""
    read: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            read.setdefault(name, set()).add(node.op_type)
    found = {}
    for node in graph.node:
        if node.op_type == "Transpose" and read.get(node.output[0], set()) in ({"MatMul"}, {"Gemm"}):
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
            rank = len(order)
            if order == [*range(rank - 2), rank - 1, rank - 2]:
                found[node.output[0]] = node.input[0]
    return found


def _operation(
    node: NodeProto, shapes: Mapping[str, Shape], values: Mapping[str, TensorProto], turned: Mapping[str, str]
) -> Operation | None:
    attributes = {a.name: said for a in node.attribute if (said := _said(a)) is not None}
    inputs = []
    for place, name in enumerate(node.input):
        saying = _SAYING.get((node.op_type, place))
        if saying is not None and name in values:
            attributes[saying] = tuple(int(v) for v in numpy_helper.to_array(values[name]).ravel())
        elif place and node.op_type in _BY_SHAPE:
            continue
        elif name:
            inputs.append(shapes.get(name))
    if node.op_type == "MatMul":
        marks = {"transA": node.input[0] in turned, "transB": node.input[1] in turned}
        attributes |= {name: (1,) for name, here in marks.items() if here}
    elif node.op_type == "Gemm":
        for name, place in (("transA", 0), ("transB", 1)):
            if node.input[place] in turned:
                inputs[place] = shapes.get(turned[node.input[place]])
                attributes[name] = (1 - attributes.get(name, (0,))[0],)
    outputs = [shapes.get(name) for name in node.output if name]
    if None in inputs or None in outputs:
        return None
    return Operation(node.op_type, _all(inputs), _all(outputs), attributes)


# Whose later inputs say what shape is wanted, and are no data.
_BY_SHAPE = frozenset({"Slice", "Pad", "Expand", "Tile", "Split", "Reshape", "Squeeze", "Unsqueeze", "Clip"})


def _all(shapes: Sequence[Shape | None]) -> tuple[Shape, ...]:
    return tuple(shape for shape in shapes if shape is not None)


def _said(attribute: AttributeProto) -> tuple[int, ...] | None:
    if attribute.type == AttributeProto.INT:
        return (attribute.i,)
    return tuple(attribute.ints) if attribute.type == AttributeProto.INTS else None


def _bodies(node: NodeProto) -> list[GraphProto]:
    return [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]


def _rounds(node: NodeProto, body: GraphProto, shapes: Mapping[str, Shape], values: Mapping[str, TensorProto]) -> int:
    """How often a body runs: a scan along its scanned inputs, a loop as often as a constant says, else once."""
    if node.op_type == "Scan":
        scanned = next((a.i for a in node.attribute if a.name == "num_scan_inputs"), 1)
        shape = shapes.get(node.input[-scanned], ())
        return shape[0] if shape else 1
    if node.op_type == "Loop" and node.input[0] in values:
        return int(numpy_helper.to_array(values[node.input[0]]).ravel()[0])
    return 1


def _count(graph: GraphProto) -> int:
    return len(graph.node) + sum(_count(body) for node in graph.node for body in _bodies(node))
