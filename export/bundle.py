"""A bundle from a TrainingSpec: three graphs, artifacts, parameters, parity, and the manifest last."""

import contextlib
import copy
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from safetensors.numpy import save
from torch.nn.parameter import is_lazy

from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.ort_training import NAME as ORT_TRAINING
from edge_agent.runtimes.ort_training import OrtTrainingEngine
from edge_agent.runtimes.reference import Record, load_record, model_digest
from export import graph_surgery as surgery
from export import ort_artifacts, parity, reference
from export.capture import WithLoss, classes_of, program, refuse_randomness, to_onnx, try_out
from export.decompositions import faithful, trainable
from export.dropout import masks_to_inputs
from export.inference import places_of
from export.layout import Ports, flat_model, ports_of, tensors_of
from export.spec import TrainingSpec
from protocol.bundle import PARAMETERS_FILE, REFERENCE_FILE, Bundle
from protocol.errors import BundleError, ConfigurationError
from protocol.manifest import (
    FORMAT,
    MANIFEST_FILE,
    Backend,
    Dropout,
    FileEntry,
    Inference,
    Manifest,
    Reference,
    Tensor,
    Variant,
    format_manifest,
)

# A graph is one protobuf message, which ends at 2 GiB; external data, the way round it, is refused everywhere.
MAX_MODEL_BYTES = 2_000_000_000
INFERENCE_FILE = "inference.onnx"
FOLDER = ORT_TRAINING
FILES = {
    "train": f"{FOLDER}/training_model.onnx",
    "eval": f"{FOLDER}/eval_model.onnx",
    "optimizer": f"{FOLDER}/optimizer_model.onnx",
    "checkpoint": f"{FOLDER}/checkpoint",
}
REQUIRES = "onnxruntime-training-cpu==1.19.2"

Report = Callable[[str], None]


def _silent(stage: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Graphs:
    """The three graphs over one tensor table. `train` still knows which layer each node came from."""

    train: onnx.ModelProto
    evaluation: onnx.ModelProto
    inference: onnx.ModelProto
    tensors: tuple[Tensor, ...]
    ports: Ports
    dropouts: tuple[Dropout, ...]


def write_bundle(
    spec: TrainingSpec, out: Path, *, line: str, force: bool = False, report: Report = _silent
) -> Manifest:
    """Writes the bundle folder `out`, whole or not at all. `report` is told of each stage.

    The module's mode is left as it was. Raises ConfigurationError if `out` is taken, BundleError if the model cannot
    be trained on devices.
    """
    _check_out(out, force)
    with _restored(spec), _temporary_beside(out) as folder:
        graphs = capture(spec, report)
        report("building ONNX Runtime training artifacts")
        manifest = _write_files(spec, graphs, line, folder)
        report("checking parity with torch")
        manifest = _with_parity(spec, graphs, manifest, folder)
        (folder / MANIFEST_FILE).write_bytes(format_manifest(manifest))
        _settle(folder, out)
    return manifest


def capture(spec: TrainingSpec, report: Report = _silent) -> Graphs:
    """The three graphs of a spec. Raises BundleError naming the layer that stands in the way."""
    _check_module(spec)
    report("capturing the training graph")
    spec.module.train()
    every = tensors_of(spec)
    with _buffers_kept(spec, {t.name for t in every if t.kind == "buffer"}):
        outputs = try_out(spec).outputs
    _check_copies(spec)
    # Clones, because torch takes one tensor given twice, as an autoencoder's input and target, for one argument.
    arguments = tuple(t.detach().clone() for t in (*spec.input_tensors, *spec.target_tensors))
    taken = {name for name, _ in (*spec.module.named_parameters(), *spec.module.named_buffers())} | {"loss"}
    captured = program(WithLoss(spec), arguments)
    ports = ports_of(spec, outputs, classes_of(captured, len(arguments)), taken)
    names = [p.name for p in (*ports.inputs, *ports.targets)]
    given = ["loss", *(p.name for p in ports.outputs)]
    train = to_onnx(trainable(captured), names, given)
    report("capturing the evaluation graph")
    spec.module.eval()
    captured = program(WithLoss(spec), arguments)
    refuse_randomness(captured)
    evaluation = to_onnx(faithful(captured), names, given)
    for model in (train, evaluation):
        surgery.use_module_names(model, spec.module)
    inference = surgery.without_loss(evaluation, names[: len(ports.inputs)], given[1:])
    tensors = _used(every, train)
    dropouts = masks_to_inputs(train)
    _finish(train, evaluation, inference, tensors)
    return Graphs(train, evaluation, inference, tensors, ports, dropouts)


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


def _finish(
    train: onnx.ModelProto, evaluation: onnx.ModelProto, inference: onnx.ModelProto, tensors: tuple[Tensor, ...]
) -> None:
    # Of the training graph only the loss is asked; its other outputs would be copied at every step.
    del train.graph.output[1:]
    surgery.settle_casts(train)
    surgery.average_pools_to_convolutions(train)
    surgery.train_batch_norms(train, tensors)
    surgery.complete_nodes(train)
    surgery.part_constants(train, tensors)
    for model in (train, evaluation, inference):
        surgery.order_initializers(model, tensors)
    surgery.tensors_to_inputs(evaluation, tensors)
    surgery.strip(evaluation)
    surgery.strip(inference)


def _used(tensors: tuple[Tensor, ...], train: onnx.ModelProto) -> tuple[Tensor, ...]:
    """Without frozen tensors that the training graph does not hold; the places close up."""
    held = {i.name for i in train.graph.initializer}
    kept, offset = [], 0
    for tensor in tensors:
        if tensor.name not in held:
            if tensor.kind != "frozen":
                raise BundleError(f"{tensor.name}: takes no part in training; remove it or set requires_grad=False")
            continue
        kept.append(replace(tensor, offset=offset))
        offset += tensor.size
    return tuple(kept)


def _write_files(spec: TrainingSpec, graphs: Graphs, line: str, folder: Path) -> Manifest:
    """Everything but the manifest, which is returned without its parity record."""
    (folder / FOLDER).mkdir()
    ort_artifacts.generate(graphs.train, graphs.tensors, folder / FOLDER)
    trained = onnx.load(folder / FILES["train"], load_external_data=False)
    surgery.strip(trained)
    inference = graphs.inference.SerializeToString()
    for path, model in (
        (FILES["train"], trained),
        (FILES["eval"], graphs.evaluation),
        (INFERENCE_FILE, graphs.inference),
    ):
        surgery.refuse_external_data(path, model)
        (folder / path).write_bytes(model.SerializeToString())
    flat = flat_model(spec.module, graphs.tensors)
    parts = {t.name: flat[t.offset : t.offset + t.size].reshape(t.shape) for t in graphs.tensors}
    (folder / PARAMETERS_FILE).write_bytes(save(parts))
    paths = sorted([PARAMETERS_FILE, INFERENCE_FILE, *FILES.values()])
    return Manifest(
        format=FORMAT,
        line=line,
        version=spec.version,
        tensors=graphs.tensors,
        inputs=graphs.ports.inputs,
        targets=graphs.ports.targets,
        outputs=graphs.ports.outputs,
        loss=spec.loss_name,
        metrics=tuple(spec.metrics),
        files=tuple(_entry(folder, path) for path in paths),
        variants=(Variant("full", {ORT_TRAINING: Backend(FILES, REQUIRES)}, graphs.dropouts),),
        inference=Inference(INFERENCE_FILE, places_of(inference, graphs.tensors)),
        parity={},
    )


def _with_parity(spec: TrainingSpec, graphs: Graphs, manifest: Manifest, folder: Path) -> Manifest:
    draft = Bundle(folder, manifest, b"")
    try:
        engine = OrtTrainingEngine(draft)
    except BundleError as error:
        raise BundleError(ort_artifacts.explain(graphs.train, str(error))) from error
    ort_artifacts.check_optimizer(folder / FILES["train"], folder / FILES["optimizer"], folder / FILES["checkpoint"])
    near = parity.beside(spec)
    manifest, brief, whole = _with_record(spec, near, manifest, folder)
    draft = Bundle(folder, manifest, b"")
    evaluator = Evaluator(draft, FILES["eval"])
    parity.evaluation(near, manifest, evaluator, whole)
    measured = {ORT_TRAINING: parity.prove(near, manifest, engine, whole)}
    # What devices will replay is the file, so it is the file that has to hold.
    parity.evaluation(near, manifest, evaluator, brief)
    parity.prove(near, manifest, engine, brief)
    return replace(manifest, parity=measured)


def _with_record(
    spec: TrainingSpec, near: TrainingSpec, manifest: Manifest, folder: Path
) -> tuple[Manifest, Record, Record]:
    """The manifest with torch's steps on a few examples written beside it, these as read back, and the steps on all
    examples, which are proven but not kept."""
    few = reference.small(spec, near)
    found = parity.whole_record(few.spec, manifest)
    (folder / REFERENCE_FILE).write_bytes(reference.format_record(found, few, manifest))
    files = sorted((*manifest.files, _entry(folder, REFERENCE_FILE)), key=lambda entry: entry.path)
    digest = model_digest(flat_model(spec.module, manifest.tensors))
    manifest = replace(manifest, files=tuple(files), reference=Reference(REFERENCE_FILE, digest))
    whole = found if reference.same_examples(few.spec, near) else parity.whole_record(near, manifest)
    return manifest, load_record(Bundle(folder, manifest, b"")), whole


def _entry(folder: Path, path: str) -> FileEntry:
    data = (folder / path).read_bytes()
    return FileEntry(path, len(data), hashlib.sha256(data).hexdigest())


def _check_out(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise ConfigurationError(f"{out}: exists already; choose another --out, or replace it with --force")
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_FILE).is_file()):
        raise ConfigurationError(f"{out}: is not a bundle, so --force will not replace it; choose another --out")


@contextlib.contextmanager
def _temporary_beside(out: Path) -> Iterator[Path]:
    """A folder on the same file system as `out`, gone at the end whatever happened."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.{os.getpid()}.", dir=out.parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settle(folder: Path, out: Path) -> None:
    """Puts the whole folder in place of `out` by renaming, everything on disk first."""
    for path in [p for p in folder.rglob("*") if p.is_file()] + [folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    if out.exists():
        # The old one leaves with the temporary folder that it is moved into.
        old = folder.with_name(folder.name + ".old")
        out.rename(old)
        folder.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(out)


@contextlib.contextmanager
def _restored(spec: TrainingSpec) -> Iterator[None]:
    """Leaves every layer in the mode it was in."""
    modes = {layer: layer.training for layer in spec.module.modules()}
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


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
