"""Dropout out of the training graph: each becomes a product with a mask that is an input of the graph."""

import math
from collections.abc import Sequence

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils._python_dispatch import TorchDispatchMode

from edge_agent.runtimes.engine import Vector
from export.capture import layer_of
from protocol.errors import BundleError
from protocol.manifest import Dropout

_NAME = "dropout_mask"


def masks_to_inputs(model: onnx.ModelProto) -> tuple[Dropout, ...]:
    """Writes every Dropout as a product with a new input. Returns what the inputs are, in their order."""
    values = (*model.graph.input, *model.graph.value_info)
    shapes: dict[str, list[int | str]] = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values
    }
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    found: list[Dropout] = []
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        rate = _rate(model, node)
        if rate is None:
            nodes.append(node)
            continue
        name, dims = f"{_NAME}_{len(found)}", shapes.get(node.input[0], [])
        found.append(Dropout(name, _shape(node, dims, batch), rate))
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *found[-1].shape])
        model.graph.input.append(value)
        nodes += _product(node, name, batch_first=dims[0] == batch)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return tuple(found)


class Masks(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes torch's own dropout take these masks, in the order of its draws, in place of random ones."""

    def __init__(self, dropouts: Sequence[Dropout], masks: Sequence[Vector]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # At rate 1 torch draws nothing.
        self._left = [(d, m) for d, m in zip(dropouts, masks, strict=True) if d.rate < 1]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function != torch.ops.aten.bernoulli_.float:
            return function(*args, **(kwargs or {}))
        # Torch leaves out what is its default.
        noise, kept = (*args, 0.5)[:2]
        dropout, mask = self._left.pop(0) if self._left else (None, np.empty(0))
        if dropout is None or mask.size != noise.numel() or not math.isclose(dropout.rate, 1 - kept, abs_tol=1e-6):
            raise _unused()
        return noise.copy_(torch.from_numpy(mask > 0).reshape(noise.shape))

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        if self._left and raised[0] is None:
            raise _unused()


def _unused() -> BundleError:
    return BundleError("module: draws a dropout whose result goes nowhere; remove it from forward")


def _rate(model: onnx.ModelProto, node: onnx.NodeProto) -> float | None:
    if node.op_type != "Dropout":
        return None
    constants = {i.name: i for i in model.graph.initializer}
    constants |= {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    return float(numpy_helper.to_array(constants[node.input[1]]))


def _shape(node: onnx.NodeProto, dims: list[int | str], batch: str) -> tuple[int, ...]:
    """The mask's shape for one example: the tensor's own where examples come first, else its length."""
    if dims[:1] == [batch] and all(isinstance(d, int) for d in dims[1:]):
        return tuple(int(d) for d in dims[1:])
    # Axes that were merged are called batch*5.
    factors = [factor for d in dims for factor in str(d).split("*")]
    rest = [factor for factor in factors if factor != batch]
    if len(rest) != len(factors) - 1 or not all(factor.isdecimal() for factor in rest):
        raise BundleError(
            f"{layer_of(node)}: dropout on a tensor of {dims}, whose size is no multiple of the number of examples; "
            "apply it to values of each example, or set p=0"
        )
    return (math.prod(int(factor) for factor in rest),)


def _product(node: onnx.NodeProto, name: str, *, batch_first: bool) -> list[onnx.NodeProto]:
    before = []
    if not batch_first:
        shape, name, mask = f"{name}.shape", f"{name}.reshaped", name
        before = [
            helper.make_node("Shape", [node.input[0]], [shape]),
            helper.make_node("Reshape", [mask, shape], [name]),
        ]
    product = helper.make_node("Mul", [node.input[0], name], [node.output[0]])
    product.metadata_props.extend(node.metadata_props)
    return [*before, product]
