"""How much work an ONNX operator is, in units that a device's calibration can price: no times, only counts.

Calibration counts the work of its probes with this, and a plan that of a model's graph, so that both mean the same.
A step's predicted time is the sum of counts times prices: nothing is multiplied by a fudge factor, and what two
operators share (starting one, moving memory) has one price.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Shape = tuple[int, ...]
Work = Mapping[str, float]

UNITS: Mapping[str, str] = {
    "run": "one call of the runtime from Python",
    "node": "one operator started",
    "setup": "what an operator that is more than element by element adds to that: its shapes, its plan",
    "product": "one matrix product started, of which a convolution has one an image and group",
    "multiply_add": "one multiplication and addition in a matrix product",
    "vector_multiply_add": "the same where one of the matrices is a vector, as in a depthwise convolution",
    "operand": "one element read or written by a matrix product",
    "turned": "one element of an operand that is stored the other way round",
    "unfolded": "one element that a convolution copies for, or adds up after, its matrix product",
    "folded": "the same of a transposed convolution that is not over images",
    "arithmetic": "one element of a sum, product, maximum or the like",
    "comparison": "one element compared, chosen or converted",
    "function": "one element of an exponential, root, quotient or the like",
    "reduction": "one element taken into a sum, mean or maximum",
    "normalisation": "one element normalised",
    "pooling": "one element looked at by a pool",
    "copy": "one element moved in a row with its neighbours",
    "transposition": "one element moved by itself",
    "picked": "one element moved out of a row whose others stay",
    "scatter": "one element looked up by its index",
    "row": "one row of elements begun, by an operator that works in rows",
    "far_byte": "one byte read or written where a step's tensors do not fit a core's own cache",
    "memory_byte": "the same where they fit no cache that boards or servers usually have",
    "sgd": "one parameter updated by SGD with momentum, and looked at for NaN",
    "adamw": "one parameter updated by AdamW, and looked at for NaN",
}

# What a core has to itself on most boards and servers is from 256 KiB to 2 MiB.
CACHE_BYTES = 1 << 20
# Of the last level, what one process can hope for.
LAST_CACHE_BYTES = 8 << 20
_ELEMENT_BYTES = 4
# A vector register holds 8 float32 or more in most processors; products are padded to a few of them.
_LANES = 16


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator with known shapes. attributes: those that matter here, and constant inputs by their ONNX names."""

    kind: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    attributes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def number(self, name: str, default: int) -> int:
        return self.attributes[name][0] if name in self.attributes else default


def work(operation: Operation, around: int = 0) -> Work:
    """The units of one operator's work. An operator of no known class is counted as a copy of what it writes.

    around: bytes that are gone through between what was computed and its next reader, which is a step's tensors: what
    is read comes from the cache that holds them.
    """
    if operation.kind in FREE:
        # A view is still looked up and entered.
        return {"node": 1}
    count = _COUNTS.get(operation.kind, _copy)
    found = {"node": 1.0, **count(operation)}
    if operation.kind not in _ELEMENTWISE:
        found["setup"] = 1.0
    moved = _ELEMENT_BYTES * sum(math.prod(s) for s in (*operation.inputs, *operation.outputs))
    if max(moved, around) > CACHE_BYTES:
        found["far_byte" if max(moved, around) <= LAST_CACHE_BYTES else "memory_byte"] = moved
    return found


def multiply_adds(operation: Operation) -> int:
    """Multiplications and additions of one matrix product or convolution, unpadded; 0 for everything else."""
    a, b = (*operation.inputs, (), ())[:2]
    match operation.kind:
        case "Conv":
            return math.prod(operation.outputs[0]) * math.prod(b[1:])
        case "ConvTranspose":
            return math.prod(a) * math.prod(b[1:])
        case "MatMul":
            return math.prod(operation.outputs[0]) * a[-1]
        case "Gemm":
            return math.prod(operation.outputs[0]) * a[0 if operation.number("transA", 0) else 1]
        case _:
            return 0


def known(kind: str) -> bool:
    return kind in FREE or kind in _COUNTS


def _conv(operation: Operation) -> Work:
    x, w, *_ = operation.inputs
    (out,) = operation.outputs
    group = operation.number("group", 1)
    kernel, area = math.prod(w[2:]), math.prod(out[2:])
    inner = w[1] * kernel
    # A 1x1 convolution of stride 1 is the product itself.
    unfolded = 0 if kernel == 1 and area == math.prod(x[2:]) else inner * area
    found = _products(x[0] * group, w[0] // group, inner, area)
    strided = set(operation.attributes.get("strides", ())) - {1}
    return {**found, "picked" if strided else "unfolded": x[0] * group * unfolded}


def _conv_transpose(operation: Operation) -> Work:
    x, w, *_ = operation.inputs
    group = operation.number("group", 1)
    rows, area = w[1] * math.prod(w[2:]), math.prod(x[2:])
    found = _products(x[0] * group, rows, w[0] // group, area)
    # Runtimes have a quick way of adding up for two dimensions alone.
    return {**found, "turned": x[0] * w[0] * rows, "unfolded" if len(x) == 4 else "folded": x[0] * group * rows * area}


def _matmul(operation: Operation) -> Work:
    a, b = operation.inputs[:2]
    a, b = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    batch = math.prod(operation.outputs[0]) // max(1, a[-2] * b[-1])
    found = _products(batch, a[-2], a[-1], b[-1])
    turned = (a[-2] * operation.number("transA", 0) + b[-1] * operation.number("transB", 0)) * a[-1]
    return {**found, "turned": batch * turned}


def _gemm(operation: Operation) -> Work:
    a, b = operation.inputs[:2]
    left, right = operation.number("transA", 0), operation.number("transB", 0)
    m, k = a[::-1] if left else a
    n = b[0] if right else b[1]
    found = _products(1, m, k, n)
    return {**found, "turned": left * m * k + right * k * n}


def _products(count: int, m: int, k: int, n: int) -> dict[str, float]:
    """count products of m x k with k x n."""
    thin = min(m, n) == 1
    padded = n if thin else -(-n // _LANES) * _LANES
    return {
        "product": count,
        "vector_multiply_add" if thin else "multiply_add": count * m * k * padded,
        "operand": count * (m * k + k * n + m * n),
    }


def _each(unit: str) -> Callable[[Operation], Work]:
    """An operator on each element, its operands brought to one shape."""

    def count(operation: Operation) -> Work:
        out = operation.outputs[0]
        return {unit: math.prod(out), "row": _broadcast_rows(operation.inputs, out)}

    return count


def _broadcast_rows(inputs: tuple[Shape, ...], out: Shape) -> int:
    """Rows over which every operand either runs along or stands still. One row is no row at all."""
    row, moving = 1, None
    for axis in range(1, len(out) + 1):
        if out[-axis] == 1:
            continue
        now = tuple(len(s) >= axis and s[-axis] != 1 for s in inputs)
        if moving not in (None, now):
            return math.prod(out) // row
        row, moving = row * out[-axis], now
    return 0


def _reduction(operation: Operation) -> Work:
    taken = operation.inputs[0]
    axes = {a % len(taken) for a in operation.attributes.get("axes", tuple(range(len(taken))))} if taken else set()
    row = 1
    for axis in reversed(range(len(taken))):
        if (axis in axes) != (len(taken) - 1 in axes):
            break
        row *= taken[axis]
    elements = math.prod(taken)
    if all(taken[axis] == 1 for axis in axes):
        # Nothing is summed, which runtimes have no quick way for.
        return {"picked": elements}
    return {"reduction": elements, "row": elements // max(1, row) if row < elements else 0}


def _normalisation(operation: Operation) -> Work:
    x = operation.inputs[0]
    return {"normalisation": math.prod(x), "row": math.prod(x[:2])}


def _softmax(operation: Operation) -> Work:
    x = operation.inputs[0]
    return {"function": math.prod(x), "reduction": 2 * math.prod(x), "row": math.prod(x[:-1])}


def _copy(operation: Operation) -> Work:
    """Slices, pads, joins and parts: rows as long as the last axis that changes."""
    elements = sum(math.prod(s) for s in operation.outputs)
    if operation.kind == "Slice" and set(operation.attributes.get("steps", ())) - {1}:
        return {"picked": elements}
    whole = max((*operation.inputs, *operation.outputs), key=len, default=())
    row = math.prod(whole)
    for part in (*operation.inputs, *operation.outputs):
        if len(part) == len(whole) and part != whole:
            axis = max(i for i, (a, b) in enumerate(zip(part, whole, strict=True)) if a != b)
            row = min(row, math.prod(part[axis:]), math.prod(whole[axis:]))
    return {"copy": elements, "row": elements // max(1, row) if row < elements else 0}


def _transpose(operation: Operation) -> Work:
    (x,) = operation.inputs
    order = operation.attributes.get("perm", tuple(reversed(range(len(x)))))
    moved = [axis for axis in order if x[axis] != 1]
    still, row = sorted(moved), 1
    while moved and moved[-1] == still[-1]:
        row *= x[moved.pop()]
        still.pop()
    elements = math.prod(x)
    if not moved:
        return {"copy": elements}
    return {"transposition": elements} if row == 1 else {"copy": elements, "row": elements // row}


def _pool(operation: Operation) -> Work:
    x, out = operation.inputs[0], operation.outputs[0]
    window = math.prod(operation.attributes.get("kernel_shape", x[2:]))
    return {"pooling": math.prod(out) * window, "row": math.prod(out) // max(1, out[-1])}


def _lookup(operation: Operation) -> Work:
    data, out = operation.inputs[0], operation.outputs[0]
    if operation.kind != "Gather":
        # One a result, or one a value to be put in its place.
        return {"copy": math.prod(out), "scatter": math.prod((operation.inputs[-1] if data == out else out) or (1,))}
    row = math.prod(data[operation.number("axis", 0) + 1 :])
    return {"copy": math.prod(out), "scatter": math.prod(out) // max(1, row)}


# Views, and what the runtime takes out of the graph or knows without looking at data.
FREE = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Constant", "Dropout"})
_CLASSES: Mapping[str, tuple[Callable[[Operation], Work], tuple[str, ...]]] = {
    "convolution": (_conv, ("Conv",)),
    "transposed convolution": (_conv_transpose, ("ConvTranspose",)),
    "matrix product": (_matmul, ("MatMul",)),
    "linear": (_gemm, ("Gemm",)),
    "arithmetic": (
        _each("arithmetic"),
        ("Add", "Sub", "Mul", "Max", "Min", "Relu", "Neg", "Abs", "Clip", "LeakyRelu", "HardSigmoid", "Sum", "Mean"),
    ),
    "comparison": (
        _each("comparison"),
        (
            *("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or", "Xor", "Where", "Cast"),
            *("IsNaN", "IsInf", "Sign", "Floor", "Ceil", "Round", "OneHot"),
        ),
    ),
    "function": (
        _each("function"),
        (
            *("Exp", "Log", "Sqrt", "Reciprocal", "Div", "Pow", "Erf", "Tanh", "Sigmoid", "Softplus", "Sin", "Cos"),
            *("Elu", "Selu", "Celu", "Gelu", "HardSwish", "Mish", "Softsign", "Mod"),
        ),
    ),
    "softmax": (_softmax, ("Softmax", "LogSoftmax")),
    "reduction": (
        _reduction,
        (
            *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceL1"),
            *("ReduceSumSquare", "ReduceLogSumExp", "ArgMax", "ArgMin", "CumSum"),
        ),
    ),
    "normalisation": (
        _normalisation,
        ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"),
    ),
    "pool": (_pool, ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool", "LpPool")),
    "copy": (_copy, ("Slice", "Concat", "Split", "Pad", "Tile", "Range", "ConstantOfShape", "Trilu")),
    "expansion": (_each("copy"), ("Expand",)),
    "transpose": (_transpose, ("Transpose",)),
    "lookup": (_lookup, ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND")),
}
_ELEMENTWISE = frozenset(k for name in ("arithmetic", "comparison", "function") for k in _CLASSES[name][1])
_COUNTS = {kind: count for count, kinds in _CLASSES.values() for kind in kinds}
