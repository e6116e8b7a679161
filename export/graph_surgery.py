"""Repairs on exported ONNX graphs: names, tied weights, order, and what ONNX Runtime's gradients need."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.capture import MODULE, OPSET, layer_of
from export.portable.graph import IR
from protocol.errors import BundleError
from protocol.manifest import NEXT, Tensor

STANDARD = ("", "ai.onnx")
# How many of their inputs get a gradient whether it is asked for or not.
_GRADIENT_OF_ALL = {"Concat": None, "BatchNormalization": 1}
# Of a LayerNormalization without parameters scale and bias are constants, which the runtime merges with equal ones.
_MERGED = {"LayerNormalization": (1, 2)}
_GRADIENT_READS = {"LayerNormalization": ("mean", "deviation"), "SoftmaxCrossEntropyLoss": ("log_probability",)}


def use_module_names(model: onnx.ModelProto, module: nn.Module) -> None:
    """Names initialisers as torch names them, tied weights once; whatever else had such a name gives way."""
    known = _canonical_names(module)
    wanted = {i.name: known[i.name.removeprefix(MODULE)] for i in model.graph.initializer if _is_ours(i.name, known)}
    reserved = set(wanted.values())
    rename = {n: f"{n}_value" for n in _value_names(model) if n in reserved and n not in wanted}
    rename.update(wanted)
    for node in model.graph.node:
        _replace(node.input, rename)
        _replace(node.output, rename)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.name = rename.get(value.name, value.name)
    kept: dict[str, TensorProto] = {}
    for initializer in model.graph.initializer:
        initializer.name = rename.get(initializer.name, initializer.name)
        kept.setdefault(initializer.name, _with_raw_data(initializer))
    _set(model.graph.initializer, list(kept.values()))


def order_initializers(model: onnx.ModelProto, tensors: tuple[Tensor, ...]) -> None:
    """Puts the manifest's tensors first, in manifest order: the order of the runtime's contiguous parameters."""
    held = {i.name: i for i in model.graph.initializer}
    ours = {t.name for t in tensors}
    first = [held[t.name] for t in tensors if t.name in held]
    _set(model.graph.initializer, first + [i for n, i in held.items() if n not in ours])


def tensors_to_inputs(model: onnx.ModelProto, tensors: tuple[Tensor, ...]) -> None:
    """Makes the manifest's tensors inputs of the graph, so that any model can be fed."""
    ours = {t.name for t in tensors}
    kept = []
    for initializer in model.graph.initializer:
        if initializer.name in ours:
            model.graph.input.append(
                helper.make_tensor_value_info(initializer.name, initializer.data_type, initializer.dims)
            )
        else:
            kept.append(initializer)
    _set(model.graph.initializer, kept)


def without_loss(model: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """The part of an evaluation graph that a deployed model needs: from the inputs to the outputs, no targets."""
    pruned = onnx.ModelProto()
    pruned.CopyFrom(model)
    targets = {v.name for v in model.graph.input} - set(inputs)
    for node in pruned.graph.node:
        # The exporter may read the number of examples off a target; every port has the same.
        if node.op_type == "Shape" and node.input[0] in targets:
            node.input[0] = inputs[0]
    needed, nodes = set(outputs), []
    for node in reversed(pruned.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    assert not needed & targets, "outputs are computed from the inputs"
    _set(pruned.graph.node, nodes[::-1])
    _set(pruned.graph.input, [v for v in pruned.graph.input if v.name in inputs])
    _set(pruned.graph.output, [v for v in pruned.graph.output if v.name in outputs])
    _set(pruned.graph.initializer, [i for i in pruned.graph.initializer if i.name in needed])
    del pruned.graph.value_info[:]
    return pruned


def train_batch_norms(model: onnx.ModelProto, tensors: tuple[Tensor, ...]) -> None:
    """Puts BatchNorm in training mode with torch's running statistics as further outputs, in manifest order.

    The exporter leaves them in evaluation mode. ONNX's own running variance is of the biased kind where torch's is
    not, and the runtime updates statistics in place. So the node is given momentum 0 and values to overwrite, which
    makes it give the batch's statistics, and the running ones follow in the open:
    next = (1 - m) * running + m * batch, the variance times n / (n - 1), with n values a channel.
    """
    running = {t.name for t in tensors if t.kind == "buffer"}
    constants = {i.name for i in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "BatchNormalization" or node.input[3] not in constants:
            nodes.append(node)
            continue
        assert node.input[3] in running, f"{layer_of(node)} stays in evaluation mode and was rewritten before"
        nodes += _trained_batch_norm(model, node, done)
    _set(model.graph.node, nodes)
    for tensor in tensors:
        if tensor.kind == "buffer":
            if tensor.name not in done:
                raise BundleError(f"{tensor.name}: its BatchNorm takes no part in training; remove the layer")
            model.graph.output.append(helper.make_tensor_value_info(done[tensor.name], TensorProto.FLOAT, tensor.shape))


def complete_nodes(model: onnx.ModelProto) -> None:
    """Gives nodes the optional inputs and outputs that their gradients read."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "LayerNormalization" and len(node.input) == 2:
            zero, name = _constant(model, f"{node.output[0]}.zero", 0.0), f"{node.output[0]}.no_bias"
            nodes.append(helper.make_node("Mul", [node.input[1], zero], [name]))
            node.input.append(name)
        nodes.append(node)
        needed = _GRADIENT_READS.get(node.op_type, ())
        node.output.extend([f"{node.output[0]}.{name}" for name in needed[len(node.output) - 1 :]])
    _set(model.graph.node, nodes)


def part_constants(model: onnx.ModelProto, tensors: tuple[Tensor, ...]) -> None:
    """Gives a value that nothing trained goes into a copy for every node whose gradient covers all of its inputs.

    The runtime names a gradient after its value also where none is asked for, so that two such nodes on one value, as
    dense connections to the image have, make a graph that it then refuses. A copy is the larger of the value and of a
    number far below, another for each copy, since the runtime would see through plain copies and merge equal ones.
    """
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    trained = {t.name for t in tensors if t.kind == "parameter"}
    seen: set[str] = set()
    copies = 0
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        covered, merged = _GRADIENT_OF_ALL.get(node.op_type, 0), _MERGED.get(node.op_type, ())
        for i, name in enumerate(node.input):
            untrained = name not in trained and types.get(name) == TensorProto.FLOAT
            shared = covered is None or i < covered
            if untrained and (i in merged or (shared and name in seen)):
                node.input[i] = f"{node.output[0]}.input_{i}"
                copies += 1
                least = _constant(model, f"{node.input[i]}.least", -3e38 - copies * 1e33)
                nodes.append(helper.make_node("Max", [name, least], [node.input[i]]))
            elif untrained and shared:
                seen.add(name)
        # What is only asked for its shape goes no further.
        if trained.intersection(node.input) and node.op_type != "Shape":
            trained.update(node.output)
        nodes.append(node)
    _set(model.graph.node, nodes)


def settle_casts(model: onnx.ModelProto) -> None:
    """Turns CastLike, which has no gradient, into the Cast to a known type that it is."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    types |= {i.name: i.data_type for i in inferred.initializer}
    for node in model.graph.node:
        if node.op_type == "CastLike" and types.get(node.input[1]):
            target = types[node.input[1]]
            del node.input[1:]
            node.op_type = "Cast"
            node.attribute.append(helper.make_attribute("to", target))


def average_pools_to_convolutions(model: onnx.ModelProto) -> None:
    """Writes AveragePool as a convolution of constant weights, one group a channel.

    The runtime's AveragePoolGrad divides by zero and takes the process down (onnxruntime-training-cpu 1.19.2).
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*inferred.value_info, *inferred.input)}
    for node in model.graph.node:
        if node.op_type != "AveragePool":
            continue
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        dims = shapes.get(node.input[0])
        uneven = any(settings.get("pads", ())) and not settings.get("count_include_pad")
        if dims is None or not dims[1].dim_value or uneven or settings.get("ceil_mode"):
            raise BundleError(
                f"{layer_of(node)}: AveragePool with uneven windows cannot train here; use padding=0 or "
                "count_include_pad=True, and ceil_mode=False"
            )
        _write_as_convolution(model, node, settings, dims[1].dim_value)


def strip(model: onnx.ModelProto) -> None:
    """Removes what the exporter noted for people: stack traces hold source paths and outweigh the graph."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        holder.doc_string = ""
        del holder.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = ""
        del value.metadata_props[:]
    del model.metadata_props[:]


def stamp(model: onnx.ModelProto) -> None:
    """Marks a graph of these operators with the lowest versions that have them all."""
    assert {o.version for o in model.opset_import if o.domain in STANDARD} == {OPSET}
    model.ir_version = IR


def refuse_other_domains(path: str, model: onnx.ModelProto) -> None:
    """Raises BundleError if the graph needs more than the standard's own operators."""
    for node in model.graph.node:
        if node.domain not in STANDARD:
            raise BundleError(
                f"{path}: {layer_of(node)} needs {node.domain}.{node.op_type}, which is no standard operator"
            )
    if model.functions:
        raise BundleError(f"{path}: has functions of its own, {model.functions[0].name} first; report this")


def refuse_external_data(path: str, model: onnx.ModelProto) -> None:
    """Raises BundleError if a tensor of the graph, constants in nodes included, lies outside it."""
    tensors = list(model.graph.initializer)
    tensors += [a.t for node in model.graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR]
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise BundleError(f"{path}: {tensor.name or 'a constant'} is external data; a bundle's graphs hold all")


def _trained_batch_norm(model: onnx.ModelProto, node: onnx.NodeProto, done: dict[str, str]) -> list[onnx.NodeProto]:
    kept = 1.0
    for attribute in node.attribute:
        if attribute.name == "momentum":
            kept = attribute.f
    attributes = [a for a in node.attribute if a.name not in ("momentum", "training_mode")]
    del node.attribute[:]
    node.attribute.extend(attributes)
    node.attribute.extend([helper.make_attribute("momentum", 0.0), helper.make_attribute("training_mode", 1)])
    mean, variance, stem = node.input[3], node.input[4], node.output[0]
    channels = next(i.dims[0] for i in model.graph.initializer if i.name == mean)
    one, zero, old, new, per = (
        _constant(model, f"{stem}.{n}", v)
        for n, v in (("one", 1.0), ("zero", 0.0), ("kept", kept), ("taken", 1.0 - kept), ("channels", float(channels)))
    )
    parts = {n: f"{stem}.{n}" for n in ("mean_in", "var_in", "mean", "var", "size", "values", "n", "less", "least")}
    del node.output[1:]
    node.output.extend([parts["mean"], parts["var"]])
    node.input[3], node.input[4] = parts["mean_in"], parts["var_in"]
    before = [
        helper.make_node("Mul", [mean, zero], [parts["mean_in"]]),
        helper.make_node("Mul", [variance, zero], [parts["var_in"]]),
    ]
    count = [
        helper.make_node("Size", [node.input[0]], [parts["size"]]),
        helper.make_node("Cast", [parts["size"]], [parts["values"]], to=TensorProto.FLOAT),
        helper.make_node("Div", [parts["values"], per], [parts["n"]]),
        helper.make_node("Sub", [parts["n"], one], [parts["less"]]),
        helper.make_node("Max", [parts["less"], one], [parts["least"]]),
        helper.make_node("Div", [parts["n"], parts["least"]], [f"{stem}.correction"]),
        helper.make_node("Mul", [parts["var"], f"{stem}.correction"], [f"{stem}.unbiased"]),
    ]
    done[mean], done[variance] = mean + NEXT, variance + NEXT
    after = []
    for running, batch in ((mean, parts["mean"]), (variance, f"{stem}.unbiased")):
        after += [
            helper.make_node("Mul", [running, old], [f"{running}.kept"]),
            helper.make_node("Mul", [batch, new], [f"{running}.taken"]),
            helper.make_node("Add", [f"{running}.kept", f"{running}.taken"], [running + NEXT]),
        ]
    return [*before, node, *count, *after]


def _write_as_convolution(
    model: onnx.ModelProto, node: onnx.NodeProto, settings: dict[str, object], channels: int
) -> None:
    kernel = [int(k) for k in settings["kernel_shape"]]  # type: ignore[attr-defined]
    weight = np.full((channels, 1, *kernel), 1.0 / np.prod(kernel), dtype=np.float32)
    name = f"{node.output[0]}.weight"
    model.graph.initializer.append(numpy_helper.from_array(weight, name))
    kept = [a for a in node.attribute if a.name in ("kernel_shape", "strides", "pads", "auto_pad")]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("group", channels)])
    node.op_type = "Conv"
    node.input.append(name)


def _constant(model: onnx.ModelProto, name: str, value: float) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.float32), name))
    return name


def _canonical_names(module: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer to its first name; tied ones share it."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for named in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
        for name, value in named:
            names[name] = first.setdefault(id(value), name)
    return names


def _is_ours(name: str, known: dict[str, str]) -> bool:
    return name.startswith(MODULE) and name.removeprefix(MODULE) in known


def _value_names(model: onnx.ModelProto) -> set[str]:
    names = {v.name for v in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    return names | {name for node in model.graph.node for name in (*node.input, *node.output)}


def _replace(names: Any, rename: dict[str, str]) -> None:
    for i, name in enumerate(names):
        names[i] = rename.get(name, name)


def _with_raw_data(initializer: TensorProto) -> TensorProto:
    if initializer.HasField("raw_data"):
        return initializer
    return numpy_helper.from_array(numpy_helper.to_array(initializer), initializer.name)


def _set(field: Any, messages: Sequence[Any]) -> None:
    """Puts `messages`, which may be the field's own, in place of what a repeated field holds."""
    # Copies first: clearing the field frees the messages it holds.
    copies = [copy.deepcopy(message) for message in messages]
    del field[:]
    field.extend(copies)
