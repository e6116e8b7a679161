"""An ONNX graph as it is written node by node: constants once, equal nodes once, sizes that depend on the batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import sympy
import torch
from onnx import TensorProto, helper, numpy_helper

# The lowest that has all operators used here; onnxruntime 1.17 and every later one load both.
OPSET, IR = 18, 8
BATCH = "batch"

Size = int | torch.SymInt
ONNX_TYPES: dict[torch.dtype, int] = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph: its name, its shape with torch's symbols for what depends on the batch, its type."""

    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(slots=True)
class Graph:
    """What was written so far. `batch_from` names an input whose first axis is the batch."""

    batch_from: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    _known: dict[tuple[Any, ...], tuple[str, ...]] = field(default_factory=dict)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One node of one output; its name, or that of an equal node that is there already."""
        return self.ops(kind, inputs, 1, **attributes)[0]

    def ops(self, kind: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> tuple[str, ...]:
        """One node of several outputs."""
        key = (kind, tuple(inputs), outputs, repr(sorted(attributes.items())))
        if key not in self._known:
            names = tuple(f"{kind.lower()}_{len(self.nodes)}" + (f".{i}" if i else "") for i in range(outputs))
            # The runtime's fusions name what they make after the nodes, so that those need names of their own.
            node = helper.make_node(kind, inputs, names, name=names[0], **attributes)
            self.nodes.append(node)
            self._known[key] = names
        return self._known[key]

    def constant(self, value: npt.ArrayLike, dtype: torch.dtype = torch.float32) -> str:
        """An initialiser, shared by all that need the same value."""
        array = np.asarray(value, dtype=helper.tensor_dtype_to_np_dtype(ONNX_TYPES[dtype]))
        key = ("constant", str(array.dtype), array.shape, array.tobytes())
        if key not in self._known:
            name = f"constant_{len(self.initializers)}"
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
            self._known[key] = (name,)
        return self._known[key][0]

    def ints(self, *values: int) -> str:
        """int64[n], as axes and starts are given."""
        return self.constant(values, torch.int64)

    def sizes(self, shape: Sequence[Size]) -> str:
        """int64[n] of sizes of which some may depend on the batch."""
        if all(isinstance(s, int) for s in shape):
            return self.constant([int(s) for s in shape], torch.int64)
        parts, run = [], list[int]()
        for size in shape:
            expression = size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
            if expression.is_Integer:
                run.append(int(expression))
                continue
            if run:
                parts.append(self.ints(*run))
                run = []
            parts.append(self.op("Unsqueeze", self.number(expression, torch.int64), self.ints(0)))
        if run:
            parts.append(self.ints(*run))
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def number(self, value: Any, dtype: torch.dtype) -> str:
        """A scalar: a number of Python, or an expression of the batch size."""
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            value = value.node.expr
        if isinstance(value, sympy.Basic) and not value.is_number:
            return self._expression(value, dtype)
        return self.constant(float(value) if dtype.is_floating_point else int(value), dtype)

    def reshape(self, name: str, shape: Sequence[Size]) -> str:
        """A view of other sizes; one size that is not a number is left to the runtime."""
        fixed = [s if isinstance(s, int) else None for s in shape]
        if fixed.count(None) <= 1 and 0 not in fixed:
            return self.op("Reshape", name, self.ints(*(-1 if s is None else s for s in fixed)))
        return self.op("Reshape", name, self.sizes(shape))

    def transpose(self, name: str, *order: int) -> str:
        if list(order) == sorted(order):
            return name
        return self.op("Transpose", name, perm=list(order))

    def cast(self, name: str, dtype: torch.dtype) -> str:
        return self.op("Cast", name, to=ONNX_TYPES[dtype])

    def sum(self, name: str, axes: Sequence[int], *, keep: bool = False) -> str:
        return self.op("ReduceSum", name, self.ints(*axes), keepdims=int(keep))

    def _expression(self, value: sympy.Basic, dtype: torch.dtype) -> str:
        if value.is_number:
            return self.constant(float(value) if dtype.is_floating_point else int(value), dtype)
        if value.is_Symbol:
            size = self.op("Gather", self.op("Shape", self.batch_from), self.constant(0, torch.int64), axis=0)
            return size if dtype == torch.int64 else self.cast(size, dtype)
        name = type(value).__name__
        parts = [self._expression(part, dtype) for part in value.args]
        if name in ("Add", "Mul"):
            total = parts[0]
            for part in parts[1:]:
                total = self.op(name, total, part)
            return total
        if name == "Pow" and value.args[1] == -1:
            return self.op("Reciprocal", parts[0])
        if name in ("FloorDiv", "IntTrueDiv", "FloatTrueDiv"):
            quotient = self.op("Div", *parts)
            return self.op("Floor", quotient) if name == "FloorDiv" and dtype.is_floating_point else quotient
        if name in ("ToFloat", "Max", "Min"):
            return parts[0] if name == "ToFloat" else self.op(name, *parts)
        raise UnwritableError(f"a size computed as {value}")


class UnwritableError(Exception):
    """What cannot be written in standard operators, in words that follow the layer's name."""
