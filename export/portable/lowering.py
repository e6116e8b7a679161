"""From a joint graph of torch's core operators to one ONNX graph: a literal table of rules, one for each operator."""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from onnx import helper
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from export.capture import MODULE
from export.portable import arithmetic, convolution, ctc, normalisation, pooling, reductions, shapes, unrolled
from export.portable.graph import BATCH, IR, ONNX_TYPES, OPSET, Graph, UnwritableError, Value
from export.portable.joint import Joint
from protocol.errors import BundleError
from protocol.manifest import GRADIENT, METRIC, NEXT

LOSS = "loss"

Rule = Callable[..., Any]
RULES: Mapping[Any, Rule] = {
    **arithmetic.RULES,
    **shapes.RULES,
    **reductions.RULES,
    **convolution.RULES,
    **pooling.RULES,
    **normalisation.RULES,
    **unrolled.RULES,
    **ctc.RULES,
}
# Nothing of them is left in a graph: checks, and sizes, which torch notes on the values that have them.
_SILENT = frozenset({torch.ops.aten._assert_tensor_metadata.default, torch.ops.aten._assert_scalar.default})


def write(
    joint: Joint, ports: list[str], metrics: tuple[str, ...], tensors: Mapping[str, torch.Tensor]
) -> onnx.ModelProto:
    """The training graph: tensors by their module's names, then ports, then masks; loss, metrics, gradients, buffers.

    ports: names of the module's inputs and targets. tensors: what the graph takes as inputs; every other parameter or
    buffer is a constant in it. Raises BundleError naming the layer and the operator that cannot be written.
    """
    signature = joint.program.graph_signature
    held = {**joint.program.state_dict, **joint.program.constants}
    given = [*ports, *(d.name for d in joint.dropouts)]
    g = Graph(batch_from=given[0])
    values: dict[Node, Any] = {}
    inputs = []
    placeholders = {n.name: n for n in joint.program.graph.nodes if n.op == "placeholder"}
    names = iter(given)
    for spec in signature.input_specs:
        node = placeholders[spec.arg.name]
        value = node.meta.get("val")
        if spec.kind is InputKind.USER_INPUT:
            name = next(names)
            values[node] = Value(name, tuple(value.shape), value.dtype)
            inputs.append(values[node])
            continue
        name = joint.names.get(spec.target or "", spec.target or "").removeprefix(MODULE)
        if name in tensors:
            values[node] = Value(name, tuple(value.shape), value.dtype)
        elif isinstance(value, torch.Tensor):
            array = held[spec.target].detach().cpu().numpy()
            values[node] = Value(g.constant(array, value.dtype), tuple(value.shape), value.dtype)
    for node in joint.program.graph.nodes:
        if node.op == "call_function":
            values[node] = _written(g, joint, node, values)
    outputs = _outputs(g, joint, values, metrics, tensors)
    return _model(g, inputs, outputs, tensors)


def _written(g: Graph, joint: Joint, node: Node, values: Mapping[Node, Any]) -> Any:
    if node.target is operator.getitem:
        source = values[node.args[0]]  # type: ignore[index]
        return source[node.args[1]]
    if node.target in _SILENT or not _is_aten(node):
        return node.meta.get("val")
    rule = RULES.get(node.target)
    try:
        if rule is None:
            raise UnwritableError(f"operator {str(node.target).removesuffix('.default')}, which has no rule")
        arguments, options = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        result = rule(g, node.meta["val"], *arguments, **options)
    except UnwritableError as error:
        raise BundleError(
            f"{joint.layer_of(node)}: needs {error}; standard ONNX operators do not train that, so use layers of "
            "docs/operators.md in its place"
        ) from None
    out = node.meta["val"]
    if isinstance(out, torch.Tensor):
        return Value(result, tuple(out.shape), out.dtype)
    return tuple(
        None if name is None or o is None else Value(name, tuple(o.shape), o.dtype)
        for name, o in zip(result, out, strict=False)
    )


def _is_aten(node: Node) -> bool:
    """Whether the node computes a tensor; arithmetic on sizes does not."""
    out = node.meta.get("val")
    return isinstance(out, torch.Tensor | tuple | list)


def _outputs(
    g: Graph, joint: Joint, values: Mapping[Node, Any], metrics: tuple[str, ...], tensors: Mapping[str, torch.Tensor]
) -> list[tuple[str, Value]]:
    """Names and values in the order of the graph's outputs; every name its own node's."""
    by_name = {n.name: n for n in values}
    loss: list[tuple[str, Value]] = []
    measured: list[tuple[str, Value]] = []
    gradients: dict[str, Value] = {}
    moved: dict[str, Value] = {}
    left = iter(metrics)
    for spec in joint.program.graph_signature.output_specs:
        value = values[by_name[spec.arg.name]]
        name = joint.names.get(spec.target or "", "").removeprefix(MODULE)
        if spec.kind is OutputKind.LOSS_OUTPUT:
            loss.append((LOSS, value))
        elif spec.kind is OutputKind.USER_OUTPUT:
            measured.append((METRIC + next(left), value))
        elif spec.kind is OutputKind.GRADIENT_TO_PARAMETER and name in tensors:
            gradients[name + GRADIENT] = value
        elif spec.kind is OutputKind.BUFFER_MUTATION and name in tensors:
            moved[name + NEXT] = value
    ordered = [(n + GRADIENT, gradients[n + GRADIENT]) for n in tensors if n + GRADIENT in gradients]
    ordered += [(n + NEXT, moved[n + NEXT]) for n in tensors if n + NEXT in moved]
    return loss + measured + ordered


def _model(
    g: Graph, inputs: list[Value], outputs: list[tuple[str, Value]], tensors: Mapping[str, torch.Tensor]
) -> onnx.ModelProto:
    for name, value in outputs:
        g.nodes.append(helper.make_node("Identity", [value.name], [name]))
    nodes, needed = _needed(g.nodes, {name for name, _ in outputs})
    wanted = [helper.make_tensor_value_info(n, ONNX_TYPES[t.dtype], t.shape) for n, t in tensors.items() if n in needed]
    wanted += [helper.make_tensor_value_info(v.name, ONNX_TYPES[v.dtype], _dims(v)) for v in inputs]
    given = [helper.make_tensor_value_info(n, ONNX_TYPES[v.dtype], _dims(v)) for n, v in outputs]
    constants = [c for n, c in g.initializers.items() if n in needed]
    graph = helper.make_graph(nodes, "train", wanted, given, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="sparsefleet")
    model.ir_version = IR
    return model


def _needed(nodes: list[onnx.NodeProto], wanted: set[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that the wanted values are computed by, and all names they read."""
    needed, kept = set(wanted), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1], needed


def _dims(value: Value) -> list[int | str]:
    return [s if isinstance(s, int) else BATCH for s in value.shape]
