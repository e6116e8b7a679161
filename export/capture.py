"""Torch's exporter: a module and its loss, in training or evaluation mode, to an ONNX graph with a free batch axis."""

import ast
import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils.hooks import RemovableHandle

from export.portable.ctc import CTC, Followed
from export.spec import Loss, TrainingSpec
from protocol.errors import BundleError

# What onnxruntime-training 1.19.2 reads: opset up to 21, IR up to 10. 18 is what torch's exporter writes natively.
OPSET = 18
MODULE = "module."
# torch specialises a batch of 0 or 1; the graph runs at 1 as well.
BATCH = Dim("batch", min=2)

_ADVICE = "write it with shapes and operators that do not depend on the values or the number of the examples"
# What user code and torch raise when a model is called with what it cannot take.
EAGER_FAILURES: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    NotImplementedError,
    AssertionError,
)

# Operators that drop units at a rate, which devices repeat; see export/dropout.py.
_DROPOUTS = (
    "dropout",
    "dropout_",
    "feature_dropout",
    "feature_dropout_",
    "alpha_dropout",
    "alpha_dropout_",
    "feature_alpha_dropout",
    "feature_alpha_dropout_",
    "bernoulli",
    "bernoulli_",
    "scaled_dot_product_attention",
)
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
# What their arguments call the rate.
_RATES = ("dropout_p", "dropout", "p")

# What to use where torch's exporter knows no ONNX form.
_INSTEAD = {
    "adaptive_max_pool1d": "nn.MaxPool1d, or a size that divides the input's,",
    "adaptive_max_pool2d": "nn.MaxPool2d, or a size that divides the map's,",
}
_CONVERSION_FAILURES = EAGER_FAILURES + (torch.onnx.errors.OnnxExporterError,)


# As edge_agent/runtimes/metrics.py has them, of the first output and the first target: float64, so that shares of
# a batch add up to the share of all.
METRICS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "accuracy": lambda output, target: (output.argmax(1) == target).to(torch.float64).mean(),
    "binary_accuracy": lambda output, target: ((output > 0) == (target > 0.5)).to(torch.float64).mean(),
    "mae": lambda output, target: (output - target).abs().to(torch.float64).mean(),
    "mse": lambda output, target: (output - target).square().to(torch.float64).mean(),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one eager pass gave: the loss and the outputs as a tuple."""

    loss: Tensor
    outputs: tuple[Tensor, ...]


class WithLoss(nn.Module):
    """The module with its loss: inputs and targets in; the loss, then the module's outputs, out."""

    def __init__(self, spec: TrainingSpec) -> None:
        super().__init__()
        self.module: nn.Module = spec.module
        self.inputs = len(spec.input_tensors)
        self.loss: Loss = spec.loss_function

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        result = self.module(*arguments[: self.inputs])
        loss = self.loss(result, *arguments[self.inputs :])
        return (loss, *result) if isinstance(result, tuple | list) else (loss, result)


class Measured(WithLoss):
    """The module with its loss and metrics: the loss, every metric, then the module's outputs."""

    def __init__(self, spec: TrainingSpec) -> None:
        super().__init__(spec)
        self._metrics = [METRICS[name] for name in spec.metrics]

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        loss, *outputs = super().forward(*arguments)
        return (loss, *(metric(outputs[0], arguments[self.inputs]) for metric in self._metrics), *outputs)


def try_out(spec: TrainingSpec) -> Outcome:
    """One eager pass, checked: outputs are batched float32, the loss is one number, every parameter counts."""
    wrapped = WithLoss(spec)
    own = [n for n, _ in wrapped.named_parameters() if not n.startswith(MODULE)]
    if own:
        raise BundleError(
            f"{own[0]}: a parameter of the loss; move it into the module and give it out with the outputs"
        )
    examples = len(spec.input_tensors[0])
    try:
        loss, *outputs = wrapped(*spec.input_tensors, *spec.target_tensors)
    except EAGER_FAILURES as error:
        raise BundleError(f"module: a pass over the examples fails in torch already: {_short(error)}") from error
    for i, output in enumerate(outputs):
        if not isinstance(output, Tensor) or output.dtype != torch.float32:
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise BundleError(f"output {i}: {kind}; forward must give a float32 tensor or a tuple of them")
        if output.ndim == 0 or len(output) != examples:
            raise BundleError(
                f"output {i}: shape {tuple(output.shape)} for {examples} examples; keep the examples on the first axis"
            )
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.ndim != 0:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise BundleError(f"loss: gives {shape} where one number is needed; take its mean, as in loss(...).mean()")
    if not torch.isfinite(loss):
        raise BundleError(f"loss: {loss.item()} on the examples; give examples with a finite loss")
    _check_gradients(spec, loss)
    return Outcome(loss.detach(), tuple(o.detach() for o in outputs))


def program(module: nn.Module, arguments: tuple[Tensor, ...]) -> ExportedProgram:
    """The module captured with a free batch axis. Raises BundleError naming what torch could not follow."""
    with quiet(), Followed():
        try:
            captured = torch.export.export(
                module, arguments, dynamic_shapes={"arguments": tuple({0: BATCH} for _ in arguments)}
            )
        except EAGER_FAILURES as error:
            raise BundleError(_capture_message(error, _entered(module, arguments))) from error
    _check_operators(captured)
    return captured


def _entered(module: nn.Module, arguments: tuple[Tensor, ...]) -> str:
    """The layer that a capture does not come out of, by a second capture that watches them."""
    inside: list[tuple[str, str]] = []

    def enter(name: str, layer: nn.Module) -> None:
        inside.append((name, type(layer).__name__))

    def leave(*_: object) -> None:
        inside.pop()

    handles: list[RemovableHandle] = []
    for name, layer in module.named_modules():
        handles.append(layer.register_forward_pre_hook(lambda layer, _, name=name: enter(name, layer)))
        handles.append(layer.register_forward_hook(leave))
    try:
        torch.export.export(module, arguments, dynamic_shapes={"arguments": tuple({0: BATCH} for _ in arguments)})
    except EAGER_FAILURES:
        return _layer(inside)
    finally:
        for handle in handles:
            handle.remove()
    return "module"


def classes_of(captured: ExportedProgram, arguments: int) -> dict[int, int]:
    """How many classes a cross-entropy in the program tells apart, by the place of its labels among the arguments."""
    given = [n for n in captured.graph.nodes if n.op == "placeholder"][-arguments:]
    found = {}
    for node in captured.graph.nodes:
        if _aten(node) in ("aten.cross_entropy_loss", "aten.nll_loss_nd") and node.args[1] in given:
            scores = node.args[0].meta["val"]
            found[given.index(node.args[1])] = int(scores.shape[1 if scores.ndim > 1 else 0])
    return found


def to_onnx(captured: ExportedProgram, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """The ONNX graph of a captured program, unoptimised: BatchNorm stays and weights keep their layout."""
    with quiet():
        try:
            exported = torch.onnx.export(
                captured,
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                verbose=False,
                input_names=inputs,
                output_names=outputs,
            )
        except _CONVERSION_FAILURES as error:
            raise BundleError(_conversion_message(captured, error)) from error
    assert exported is not None
    model: onnx.ModelProto = exported.model_proto
    return model


def layer_of(node: onnx.NodeProto) -> str:
    """The torch layer that a node came from, as `features.3 (Hardswish)`."""
    data = {p.key: p.value for p in node.metadata_props}
    try:
        scopes = ast.literal_eval(data["pkg.torch.onnx.name_scopes"])
        classes = ast.literal_eval(data["pkg.torch.onnx.class_hierarchy"])
    except (KeyError, ValueError, SyntaxError):
        return "the module"
    return _layer(list(zip(scopes, classes, strict=False))[:-1])


def layer_of_fx(node: torch.fx.Node) -> str:
    """The torch layer that a captured operator came from."""
    stack = node.meta.get("nn_module_stack", {})
    return _layer([(path, str(kind)) for path, kind in stack.values()])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Torch's exporter warns of its own deprecations and of packages that it does not need."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # Some of what torch says of a failure it prints rather than logs.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def refuse_randomness(captured: ExportedProgram) -> None:
    """Raises BundleError if an evaluation draws random numbers."""
    for node in captured.graph.nodes:
        if _draws(node):
            raise BundleError(
                f"{layer_of_fx(node)}: {_aten(node)} draws random numbers in evaluation mode too; as a layer "
                "(nn.Dropout) or with F.dropout(x, p, self.training) it does so in training alone"
            )


def _check_operators(captured: ExportedProgram) -> None:
    """Raises BundleError for what a device could not repeat or compute."""
    for node in captured.graph.nodes:
        if _draws(node) and _operator(node) not in (*_DROPOUTS, *_RECURRENT):
            raise BundleError(
                f"{layer_of_fx(node)}: {_aten(node)} draws random numbers, so that steps could not be checked against "
                "torch; use nn.Dropout, or x.bernoulli_(p) with a fixed p, which devices draw from their task's seed, "
                "or give the noise in as an input"
            )
        if _operator(node) == "embedding_bag" and not _aten(node.args[2]).startswith("aten.arange"):
            raise BundleError(
                f"{layer_of_fx(node)}: bags of offsets of one's own; give a matrix of words, a bag of one length for "
                "every example, and fill short ones with padding_idx"
            )


def artifacts_limit(captured: ExportedProgram) -> str | None:
    """What onnxruntime-training would get wrong without a word, with its layer and the remedy."""
    normalised: set[object] = set()
    for node in captured.graph.nodes:
        if _draws(node) and _operator(node) in _RECURRENT:
            return (
                f"{layer_of_fx(node)}: dropout between its layers has no masks there; use one layer each with "
                "nn.Dropout between them"
            )
        if node.target is CTC:
            return f"{layer_of_fx(node)}: a CTC loss has no gradient in onnxruntime-training; use the portable backend"
        if _operator(node) == "embedding_bag":
            return (
                f"{layer_of_fx(node)}: EmbeddingBag has no gradient in onnxruntime-training; use nn.Embedding and then "
                ".mean(1), .sum(1) or .amax(1)"
            )
        if _aten(node) == "aten.batch_norm" and node.args[3] is not None:
            if node.args[3] in normalised:
                return f"{layer_of_fx(node)}: used twice in one pass; give each use a BatchNorm of its own"
            normalised.add(node.args[3])
    return None


def _check_gradients(spec: TrainingSpec, loss: Tensor) -> None:
    trained = {n: p for n, p in spec.module.named_parameters() if p.requires_grad}
    if not loss.requires_grad:
        raise BundleError("loss: does not depend on any trained parameter; compute it from forward's outputs")
    try:
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    except RuntimeError as error:
        raise BundleError(f"module: a backward pass fails in torch already: {_short(error)}") from error
    for name, gradient in zip(trained, gradients, strict=True):
        if gradient is None:
            raise BundleError(f"{name}: takes no part in the loss; remove it or set requires_grad=False on it")


def _layer(scopes: list[tuple[str, str]]) -> str:
    inside = [(path.removeprefix(MODULE), kind) for path, kind in scopes if path.startswith(MODULE)]
    if not inside:
        return "the loss" if not any(path == MODULE[:-1] for path, _ in scopes) else "forward of the module"
    path, kind = inside[-1]
    return f"{path} ({kind.rsplit('.', 1)[-1]})"


def _draws(node: torch.fx.Node) -> bool:
    """Whether the operator draws random numbers; with rate 0, or told that this is no training, it does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    given = {a.name: a for a in node.target._schema.arguments}  # type: ignore[union-attr]
    values = {name: a.default_value for name, a in given.items() if a.has_default_value()}
    values |= dict(zip(given, node.args, strict=False)) | node.kwargs
    rates = [values[name] for name in _RATES if name in values]
    return values.get("train") is not False and not (rates and rates[0] == 0)


def _operator(node: torch.fx.Node) -> str:
    """The operator's name without its library and overload."""
    return (str(node.target).split(".") + [""])[1]


def _aten(node: object) -> str:
    return str(getattr(node, "target", "")).removesuffix(".default")


def _capture_message(error: Exception, where: str) -> str:
    text = str(error)
    if type(error).__name__ == "ConstraintViolationError" or "specialized" in text or "Constraints violated" in text:
        return (
            "module: its forward or loss fixes the number of examples, which devices choose; write x.flatten(1), or "
            "x.shape[0] in place of a number"
        )
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return (
            f"{where}: shapes or branches depend on values; {_ADVICE}, as torch.where in place of a choice by a mask. "
            f"torch says: {_short(error)}"
        )
    return f"{where}: torch.export cannot follow it; {_ADVICE}. torch says: {_short(error)}"


def _conversion_message(captured: ExportedProgram, error: BaseException) -> str:
    said = []
    cause: BaseException | None = error
    while cause is not None:
        said.append(str(cause))
        cause = cause.__cause__
    text = "\n".join(said)
    for name in re.findall(r"aten[.:]+(\w+)", text):
        for node in captured.graph.nodes:
            if node.op == "call_function" and str(node.target).startswith(f"aten.{name}."):
                instead = _INSTEAD.get(name, "another layer")
                return f"{layer_of_fx(node)}: operator aten.{name} has no ONNX form; use {instead} in its place"
    return f"module: cannot be written as ONNX; {_ADVICE}. torch says: {_short(error)}"


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] or type(error).__name__
