"""One training step of a spec: by torch, and by the graph of standard operators that is written for it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from edge_agent.runtimes.dropout import masks
from export.capture import WithLoss, classes_of, program, try_out
from export.dropout import Masks
from export.graphs import arguments_of, training_graph
from export.layout import ports_of, tensors_of
from export.spec import TrainingSpec
from export.torch_steps import detached
from protocol.manifest import GRADIENT, NEXT, Dropout

Found = Mapping[str, Any]
SEED = 1


@dataclass(frozen=True, slots=True)
class Written:
    """The training graph of a spec, loaded."""

    spec: TrainingSpec
    model: onnx.ModelProto
    dropouts: tuple[Dropout, ...]
    session: Any
    feed: tuple[str, ...]


def written(spec: TrainingSpec) -> Written:
    """Captures and loads the training graph, by the steps of export.graphs.capture that it needs."""
    spec.module.train()
    buffers = {name: value.clone() for name, value in spec.module.named_buffers()}
    tensors, arguments = tensors_of(spec), arguments_of(spec)
    outputs = try_out(spec).outputs
    with torch.no_grad():
        for name, value in spec.module.named_buffers():
            value.copy_(buffers[name])
    captured = program(WithLoss(spec), arguments)
    taken = {name for name, _ in (*spec.module.named_parameters(), *spec.module.named_buffers())} | {"loss"}
    ports = ports_of(spec, outputs, classes_of(captured, len(arguments)), taken)
    model, dropouts = training_graph(spec, captured, tensors, ports)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = (*(p.name for p in (*ports.inputs, *ports.targets)), *(d.name for d in dropouts))
    return Written(spec, model, dropouts, session, feed)


def some(spec: TrainingSpec, count: int) -> TrainingSpec:
    """The spec with its first examples alone."""
    return replace(
        spec,
        inputs=tuple(t[:count] for t in spec.input_tensors),
        targets=tuple(t[:count] for t in spec.target_tensors),
    )


def by_graph(graph: Written, count: int) -> Found:
    """Loss, gradients and buffers by name, over the first examples."""
    values = [t[:count].numpy() for t in arguments_of(graph.spec)] + list(masks(graph.dropouts, count, SEED))
    named = {**dict(graph.spec.module.named_parameters()), **dict(graph.spec.module.named_buffers())}
    feed = dict(zip(graph.feed, values, strict=True))
    feed |= {name: value.detach().numpy() for name, value in named.items()}
    read = {i.name for i in graph.session.get_inputs()}
    given = [o.name for o in graph.session.get_outputs()]
    found = graph.session.run(None, {n: v for n, v in feed.items() if n in read})
    # A buffer that the graph does not move stays.
    still = {name + NEXT: b.numpy() for name, b in graph.spec.module.named_buffers() if b.is_floating_point()}
    return {**still, **dict(zip(given, found, strict=True))}


def by_torch(graph: Written, count: int) -> Found | None:
    """What torch finds, its dropouts with the graph's masks. None where it cannot train on so few examples."""
    wrapped = detached(graph.spec)
    arguments = [t[:count] for t in arguments_of(graph.spec)]
    try:
        with Masks(graph.dropouts, masks(graph.dropouts, count, SEED)):
            loss = wrapped(*arguments)[0]
    except ValueError as error:
        if "more than 1" not in str(error):
            raise
        return None
    loss.backward()
    found: dict[str, Any] = {"loss": loss.detach().numpy()}
    for name, parameter in wrapped.module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            found[name + GRADIENT] = parameter.grad.numpy()
    for name, buffer in wrapped.module.named_buffers():
        if buffer.is_floating_point():
            found[name + NEXT] = buffer.numpy()
    return found


def difference(found: Any, wanted: Any) -> float:
    """The largest difference, against the largest value of what is wanted; infinite where one is no number."""
    if found.shape != wanted.shape or not np.array_equal(np.isnan(found), np.isnan(wanted)):
        return np.inf
    largest = max(float(np.nanmax(np.abs(wanted), initial=0.0)), 1e-6)
    return float(np.nanmax(np.abs(found - wanted), initial=0.0)) / largest
