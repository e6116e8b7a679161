"""A sparse model as a small ONNX file that any onnxruntime loads: its weights stored without their zeros.

ONNX has sparse tensors, which runtimes refuse or hardly read. So the weights of all sparse tensors are kept in two
constants, and the graph itself puts them in place:

    gaps uint8[k] --Cast, CumSum--> places int64[k] --+
    values float32[k] --------------------------------+-> ScatterElements into float32[n] of zeros -> Split -> Reshape

A gap is the distance from the value before it; one of more than 255 is bridged by values of zero. The runtime computes
this once, when it loads the file, as all that follows from constants alone: a step costs what it costs with dense
weights, and results are the same bits.
"""

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, TensorProto, helper, numpy_helper

_WIDEST = 255
# Of a tensor's Split and Reshape, about: one that saves no more than this stays as it is.
_OVERHEAD_BYTES = 128
_PREFIX = "sparse"


def without_zeros(dense: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The same model with its sparse tensors stored so, and their names; the file as it is if none would gain."""
    model = onnx.load_from_string(dense)
    chosen = [i for i in model.graph.initializer if _gains(i)]
    if not chosen:
        return dense, ()
    flat = np.concatenate([numpy_helper.to_array(i).ravel() for i in chosen])
    names = tuple(i.name for i in chosen)
    others = [i for i in model.graph.initializer if i.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(others)
    gaps, values = encode(flat)
    _add(model.graph, chosen, gaps, values, len(flat))
    onnx.checker.check_model(model)
    smaller = model.SerializeToString()
    return (smaller, names) if len(smaller) < len(dense) else (dense, ())


def encode(flat: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Gaps uint8[k] and values float32[k] of float32[n]: value i lies at the sum of the gaps up to i.

    Zero is what has no bit set: a negative zero is kept.
    """
    places = np.flatnonzero(flat.view(np.uint32))
    gaps = np.diff(places, prepend=0)
    # What is left of a gap after as many of the widest as it takes.
    bridges = np.maximum(gaps - 1, 0) // _WIDEST
    ends = np.cumsum(bridges + 1) - 1
    found = np.full(len(places) + int(bridges.sum()), _WIDEST, np.uint8)
    values = np.zeros(len(found), np.float32)
    found[ends] = gaps - bridges * _WIDEST
    values[ends] = flat[places]
    return found, values


def decode(gaps: npt.NDArray[np.uint8], values: npt.NDArray[np.float32], n: int) -> npt.NDArray[np.float32]:
    """float32[n] as the graph makes it."""
    flat = np.zeros(n, np.float32)
    flat[np.cumsum(gaps, dtype=np.int64)] = values
    return flat


def _gains(initializer: TensorProto) -> bool:
    if initializer.data_type != TensorProto.FLOAT:
        return False
    values = numpy_helper.to_array(initializer).ravel()
    kept = int(np.count_nonzero(values.view(np.uint32)))
    return 5 * kept + _OVERHEAD_BYTES < 4 * len(values)


def _add(
    graph: GraphProto,
    chosen: list[TensorProto],
    gaps: npt.NDArray[np.uint8],
    values: npt.NDArray[np.float32],
    n: int,
) -> None:
    """The nodes that put the values in place, before all others, and their constants."""
    taken = {i.name for i in graph.initializer} | {name for node in graph.node for name in node.output}
    prefix = next(p for p in (_PREFIX, *(f"{_PREFIX}{i}" for i in range(1000))) if f"{p}.gaps" not in taken)

    def constant(name: str, value: npt.NDArray[np.generic]) -> str:
        graph.initializer.append(numpy_helper.from_array(value, f"{prefix}.{name}"))
        return f"{prefix}.{name}"

    def named(name: str) -> str:
        return f"{prefix}.{name}"

    parts = [named(f"part{i}") for i in range(len(chosen))]
    sizes = np.array([int(np.prod(i.dims)) for i in chosen], np.int64)
    nodes = [
        helper.make_node("Cast", [constant("gaps", gaps)], [named("steps")], to=TensorProto.INT64),
        helper.make_node("CumSum", [named("steps"), constant("axis", np.array(0, np.int64))], [named("places")]),
        helper.make_node("ConstantOfShape", [constant("n", np.array([n], np.int64))], [named("zeros")]),
        helper.make_node(
            "ScatterElements", [named("zeros"), named("places"), constant("values", values)], [named("flat")]
        ),
        helper.make_node("Split", [named("flat"), constant("sizes", sizes)], parts),
    ]
    for i, tensor in enumerate(chosen):
        shape = constant(f"shape{i}", np.array(tensor.dims, np.int64))
        nodes.append(helper.make_node("Reshape", [parts[i], shape], [tensor.name]))
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
