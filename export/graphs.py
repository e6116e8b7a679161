"""The graphs of a bundle: training in standard operators, evaluation, inference, and for the training runtime."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx
import torch
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from export import graph_surgery as surgery
from export.capture import Measured, WithLoss, artifacts_limit, classes_of, program, refuse_randomness, to_onnx, try_out
from export.decompositions import faithful, trainable
from export.dropout import masks_to_inputs
from export.layout import Ports, ports_of, tensors_of
from export.portable.joint import joint
from export.portable.lowering import write
from export.spec import TrainingSpec
from export.variants import Scheme, applied, schemes
from protocol.errors import BundleError
from protocol.manifest import METRIC, Dropout, Tensor

# A graph is one protobuf message, which ends at 2 GiB; external data, the way round it, is refused everywhere.
MAX_MODEL_BYTES = 2_000_000_000

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Partial:
    """The training graph of a variant that freezes something: no node of it serves a frozen gradient alone."""

    scheme: Scheme
    train: onnx.ModelProto
    dropouts: tuple[Dropout, ...]


@dataclass(frozen=True, slots=True)
class Graphs:
    """The graphs over one tensor table. `train` is of standard operators and gives gradients; `partial` are others like
    it, of variants that train a part.

    artifacts: the forward graph that ONNX Runtime's training artifacts are made from, its nodes still knowing their
    layers; or in words why that runtime cannot train this model.
    """

    train: onnx.ModelProto
    evaluation: onnx.ModelProto
    inference: onnx.ModelProto
    artifacts: onnx.ModelProto | str
    tensors: tuple[Tensor, ...]
    ports: Ports
    dropouts: tuple[Dropout, ...]
    partial: tuple[Partial, ...] = ()


def capture(
    spec: TrainingSpec, report: Report, *, artifacts: bool, train_last: Sequence[int] = (), freeze: Sequence[str] = ()
) -> Graphs:
    """The graphs of a spec. train_last, freeze: of further variants, see export/variants.py.

    Raises BundleError naming the layer that stands in the way, ConfigurationError for a variant that cannot be.
    """
    _check_module(spec)
    wanted = schemes(spec, train_last, freeze)
    report("capturing the training graph")
    spec.module.train()
    every = tensors_of(spec)
    with _buffers_kept(spec, {t.name for t in every if t.kind == "buffer"}):
        outputs = try_out(spec).outputs
    _check_copies(spec)
    arguments = arguments_of(spec)
    captured = program(WithLoss(spec), arguments)
    taken = {name for name, _ in (*spec.module.named_parameters(), *spec.module.named_buffers())} | {"loss"}
    ports = ports_of(spec, outputs, classes_of(captured, len(arguments)), taken)
    report("writing forward and backward in standard operators")
    train, dropouts = training_graph(spec, captured, every, ports)
    tensors = _used(every, train)
    report("capturing the evaluation graph")
    evaluation, inference = _evaluation_graphs(spec, arguments, ports, tensors)
    forward: onnx.ModelProto | str = "not asked for"
    if artifacts:
        report("capturing the graph for ONNX Runtime's training artifacts")
        forward = _artifacts_graph(spec, captured, ports, tensors, dropouts)
    partial = tuple(_partial(spec, scheme, tensors, ports, report) for scheme in wanted if scheme.frozen)
    return Graphs(train, evaluation, inference, forward, tensors, ports, dropouts, partial)


def _partial(spec: TrainingSpec, scheme: Scheme, tensors: tuple[Tensor, ...], ports: Ports, report: Report) -> Partial:
    report(f"writing the variant {scheme.name}")
    with applied(spec.module, scheme.frozen, scheme.frozen_buffers):
        train, dropouts = training_graph(spec, program(WithLoss(spec), arguments_of(spec)), tensors, ports)
    return Partial(scheme, train, dropouts)


def arguments_of(spec: TrainingSpec) -> tuple[torch.Tensor, ...]:
    """Inputs and targets; clones, because torch takes one tensor given twice, as an autoencoder's, for one argument."""
    return tuple(t.detach().clone() for t in (*spec.input_tensors, *spec.target_tensors))


def training_graph(
    spec: TrainingSpec, captured: ExportedProgram, tensors: Sequence[Tensor], ports: Ports
) -> tuple[onnx.ModelProto, tuple[Dropout, ...]]:
    """Forward and backward of a program captured in training mode, in standard operators, and its dropouts.

    What does not require a gradient gets none.
    """
    step = joint(captured, arguments_of(spec), len(spec.input_tensors), spec.metrics)
    values = {**dict(spec.module.named_parameters()), **dict(spec.module.named_buffers())}
    names = [p.name for p in (*ports.inputs, *ports.targets)]
    model = write(step, names, spec.metrics, {t.name: values[t.name] for t in tensors})
    surgery.strip(model)
    return model, step.dropouts


def _evaluation_graphs(
    spec: TrainingSpec, arguments: tuple[torch.Tensor, ...], ports: Ports, tensors: tuple[Tensor, ...]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    spec.module.eval()
    captured = program(Measured(spec), arguments)
    refuse_randomness(captured)
    names = [p.name for p in (*ports.inputs, *ports.targets)]
    outputs = [p.name for p in ports.outputs]
    evaluation = to_onnx(faithful(captured), names, ["loss", *(METRIC + m for m in spec.metrics), *outputs])
    surgery.use_module_names(evaluation, spec.module)
    inference = surgery.without_loss(evaluation, names[: len(ports.inputs)], outputs)
    for model in (evaluation, inference):
        surgery.order_initializers(model, tensors)
        surgery.stamp(model)
        surgery.strip(model)
    surgery.tensors_to_inputs(evaluation, tensors)
    return evaluation, inference


def _artifacts_graph(
    spec: TrainingSpec,
    captured: ExportedProgram,
    ports: Ports,
    tensors: tuple[Tensor, ...],
    dropouts: Sequence[Dropout],
) -> onnx.ModelProto | str:
    limit = artifacts_limit(captured)
    if limit is not None:
        return limit
    names = [p.name for p in (*ports.inputs, *ports.targets)]
    try:
        model = to_onnx(trainable(captured), names, ["loss", *(p.name for p in ports.outputs)])
        surgery.use_module_names(model, spec.module)
        drawn = masks_to_inputs(model)
        # Of the training graph only the loss is asked; its other outputs would be copied at every step.
        del model.graph.output[1:]
        surgery.settle_casts(model)
        surgery.average_pools_to_convolutions(model)
        surgery.train_batch_norms(model, tensors)
        surgery.complete_nodes(model)
        surgery.part_constants(model, tensors)
        surgery.order_initializers(model, tensors)
    except BundleError as error:
        return str(error)
    if [(d.name, d.shape) for d in drawn] != [(d.name, d.shape) for d in dropouts]:
        return "module: its dropouts come in another order in that runtime's graph; its steps would not be the same"
    return model


def _check_module(spec: TrainingSpec) -> None:
    for name, value in (*spec.module.named_parameters(), *spec.module.named_buffers()):
        if is_lazy(value):
            raise BundleError(f"{name}: has no shape yet; call the module once on the examples before giving it")
    sizes = {name: 4 * p.numel() for name, p in spec.module.named_parameters()}
    if sum(sizes.values()) > MAX_MODEL_BYTES:
        name = max(sizes, key=sizes.__getitem__)
        raise BundleError(
            f"module: {sum(sizes.values())} bytes of parameters are over the limit of {MAX_MODEL_BYTES}, "
            f"{sizes[name]} of them in {name}; use a smaller model"
        )


def _check_copies(spec: TrainingSpec) -> None:
    try:
        copy.deepcopy(spec.module)
    except RuntimeError as error:
        raise BundleError(
            "module: holds a tensor that was computed from its parameters and cannot be copied, as of torch.nn.utils."
            "weight_norm; compute it in forward, or use torch.nn.utils.parametrizations"
        ) from error


def _used(tensors: tuple[Tensor, ...], train: onnx.ModelProto) -> tuple[Tensor, ...]:
    """Without frozen tensors that the training graph does not hold; the places close up."""
    held = {i.name for i in train.graph.input}
    kept, offset = [], 0
    for tensor in tensors:
        if tensor.name not in held:
            if tensor.kind != "frozen":
                raise BundleError(f"{tensor.name}: takes no part in training; remove it or set requires_grad=False")
            continue
        kept.append(replace(tensor, offset=offset))
        offset += tensor.size
    return tuple(kept)


@contextlib.contextmanager
def _buffers_kept(spec: TrainingSpec, running: set[str]) -> Iterator[None]:
    """A pass in training mode moves running statistics; the bundle holds the user's. Refuses what else it moves."""
    before = {name: buffer.clone() for name, buffer in spec.module.named_buffers()}
    moved = []
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in spec.module.named_buffers():
                if not torch.equal(buffer, before[name]):
                    moved.append(name)
                    buffer.copy_(before[name])
    for name in moved:
        if name not in running and not name.endswith("num_batches_tracked"):
            raise BundleError(
                f"{name}: a buffer that training writes; of such only BatchNorm's running statistics can travel: keep "
                "this state out of forward"
            )
