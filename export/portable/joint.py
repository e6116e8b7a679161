"""From a training program to one graph of forward and backward: torch's own derivatives, nothing drawn at random."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.export import ExportedProgram
from torch.export.exported_program import _decompose_exported_program
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node

from export.capture import BATCH, EAGER_FAILURES, METRICS, layer_of_fx, quiet
from export.decompositions import attention_weights, heads
from export.portable.forms import FORMS, padded
from export.portable.recurrent import LAYERS
from export.portable.whereabouts import marked, place_of
from protocol.errors import BundleError
from protocol.manifest import Dropout

_ATEN = torch.ops.aten
_NAME = "dropout_mask"
# SELU's value far below zero, negated; Klambauer et al., "Self-Normalizing Neural Networks" (NeurIPS 2017).
_ALPHA = 1.7580993408473766

# Kept whole, because a graph of standard operators says them better than their decompositions do.
_KEPT = frozenset(
    {
        _ATEN.threshold_backward.default,
        _ATEN.native_batch_norm_backward.default,
        _ATEN._native_batch_norm_legit_functional.default,
        _ATEN.hardtanh_backward.default,
        _ATEN.hardsigmoid.default,
        _ATEN.hardsigmoid_backward.default,
        _ATEN.hardswish.default,
        _ATEN.hardswish_backward.default,
        _ATEN.leaky_relu_backward.default,
    }
)


@dataclass(frozen=True, slots=True)
class Joint:
    """Forward and backward of a training step, its parameters and buffers by the names that the module has for them.

    program: takes parameters, buffers, the module's arguments, then the masks; gives loss, metrics, gradients and
    buffers, as its signature says. names: the module's name of each of the program's parameters and buffers. layer_of:
    tells the layer that one of the program's nodes came from, by capturing everything again.
    """

    program: ExportedProgram
    names: Mapping[str, str]
    dropouts: tuple[Dropout, ...]
    layer_of: Callable[[Node], str]


def joint(captured: ExportedProgram, arguments: tuple[Tensor, ...], inputs: int, metrics: Sequence[str]) -> Joint:
    """Captures the backward of a captured program whose first output is the loss and second the first output.

    arguments: examples as the program takes them, of which the first `inputs` are no targets.
    """
    stepping = _Step(captured, inputs, metrics)
    program = _captured(stepping, arguments)
    _check_batch(program)

    def layer_of(node: Node) -> str:
        stepping.marking = True
        try:
            place = place_of(node, _captured(stepping, arguments).graph.nodes)
        except BundleError:
            place = None
        return "module" if place is None else layer_of_fx(stepping.inner_nodes[place])

    return Joint(program, stepping.names, stepping.dropouts, layer_of)


def _captured(stepping: "_Step", arguments: tuple[Tensor, ...]) -> ExportedProgram:
    masks = tuple(torch.ones(len(arguments[0]), *d.shape) for d in stepping.dropouts)
    # Torch's memory of what it computed on shapes costs more here than it saves.
    with quiet(), torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        try:
            program = torch.export.export(
                stepping,
                (*arguments, *masks),
                dynamic_shapes={"values": tuple({0: BATCH} for _ in (*arguments, *masks))},
            )
            decomposed: ExportedProgram = _decompose_exported_program(
                program,
                cia_to_decomp={},
                python_decomp_table=_decompositions(),
                joint_loss_index=0,
                decompose_custom_triton_ops=False,
            )
            return decomposed
        except EAGER_FAILURES as error:
            raise BundleError(f"module: its backward cannot be captured. torch says: {str(error)[:400]}") from error


def _check_batch(program: ExportedProgram) -> None:
    """Refuses a backward in which torch fixed the number of examples, as it may where its own code counts them."""
    given = {s.arg.name for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT}
    for node in program.graph.nodes:
        if node.name in given and not _is_batch(node.meta["val"].shape[0]):
            raise BundleError(
                "module: the backward of one of its operators fixes the number of examples, which devices choose; use "
                "the layers of docs/operators.md"
            )


def _decompositions() -> dict[Any, Callable[..., Any]]:
    table = {op: rule for op, rule in dict(core_aten_decompositions()).items() if op not in _KEPT}
    return {**table, _ATEN.constant_pad_nd.default: padded}


class _Step(nn.Module):
    """A captured program, with its draws replaced by masks that come after its arguments, and with metrics.

    Parameters that the module ties are one here.
    """

    def __init__(self, captured: ExportedProgram, inputs: int, metrics: Sequence[str]) -> None:
        super().__init__()
        self._inputs, self._metrics = inputs, [METRICS[name] for name in metrics]
        # In a tuple, so that its parameters are not this module's a second time.
        self._inner = (captured.module(check_guards=False),)
        self.inner_nodes = list(self._inner[0].graph.nodes)
        self.marking = False
        self.names: dict[str, str] = {}
        self._held: dict[str, str] = {}
        registered: dict[int, str] = {}
        values = {**captured.state_dict, **captured.constants}
        for name, value in values.items():
            if not isinstance(value, Tensor):
                continue
            own = registered.setdefault(id(value), f"value_{len(registered)}")
            self._held[name] = own
            self.names.setdefault(own, name)
            if isinstance(value, nn.Parameter):
                self.register_parameter(own, value)
            else:
                self.register_buffer(own, value)
        dropouts: list[Dropout] = []
        self._places: dict[Node, tuple[int, int]] = {}
        for node in self._inner[0].graph.nodes:
            if _rate(node) is not None:
                found = _dropouts(node, len(dropouts))
                self._places[node] = (len(dropouts), len(dropouts) + len(found))
                dropouts += found
        self.dropouts = tuple(dropouts)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        count = len(values) - len(self.dropouts)
        running = _Running(self, values[count:])
        results = running.run(*values[:count], enable_io_processing=False)
        loss, output = results[0], results[1].detach()
        target = values[self._inputs]
        return (loss, *(metric(output, target) for metric in self._metrics))


class _Running(Interpreter):
    def __init__(self, step: _Step, masks: Sequence[Tensor]) -> None:
        super().__init__(step._inner[0])
        self._step, self._masks = step, masks

    def get_attr(self, target: str, args: Any, kwargs: Any) -> Any:  # type: ignore[override]
        held = self._step._held.get(target)
        return super().get_attr(target, args, kwargs) if held is None else getattr(self._step, held)

    def run_node(self, n: Node) -> Any:
        result = self._run(n)
        if not self._step.marking or n.op != "call_function":
            return result
        return marked(result, self._step.inner_nodes.index(n))

    def _run(self, n: Node) -> Any:
        first, last = self._step._places.get(n, (0, 0))
        masks = self._masks[first:last]
        rewritten, recurrent = FORMS.get(n.target), LAYERS.get(n.target)
        drawing = bool(masks) or n.target is _ATEN.scaled_dot_product_attention.default
        if rewritten is None and recurrent is None and not drawing:
            return super().run_node(n)
        with self._set_current_node(n):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            result = NotImplemented
            if rewritten is not None:
                result = rewritten(*args, **kwargs)
            elif recurrent is not None:
                result = recurrent(masks, *args, **kwargs)
            else:
                rate = self._step.dropouts[first].rate if masks else 0.0
                result = _masked(n, rate, masks[0] if masks else None, args, kwargs)
        return super().run_node(n) if result is NotImplemented else result


def _masked(node: Node, rate: float, mask: Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a drawing operator gives with its mask, which is 0 or 1 / (1 - rate)."""
    operator = str(node.target).split(".")[1].rstrip("_")
    if operator == "scaled_dot_product_attention":
        given = dict(zip(("attn_mask", "dropout_p", "is_causal"), args[3:], strict=False)) | kwargs
        options = {"attn_mask": None, "is_causal": False, "scale": None, "enable_gqa": False} | given
        options.pop("dropout_p", None)
        weights = attention_weights(args[0], args[1], **options)
        weights = weights if mask is None else weights * _shaped(mask, weights.shape)
        return weights @ heads(args[2], args[0], options["enable_gqa"])
    assert mask is not None
    x = args[0]
    if operator == "native_dropout":
        return x * _shaped(mask, x.shape), _shaped(mask, x.shape) > 0
    if operator == "bernoulli":
        return _shaped(mask, x.shape) * (1 - rate)
    noise = _shaped(mask, [*x.shape[:2], *[1] * (x.ndim - 2)] if operator.startswith("feature") else x.shape)
    if "alpha" not in operator:
        return x * noise
    noise = noise * (1 - rate)
    a = 1 / math.sqrt((_ALPHA**2 * rate + 1) * (1 - rate)) if rate < 1 else 0.0
    return x * noise * a + (noise - 1) * (_ALPHA * a) + _ALPHA * a * rate


def _shaped(mask: Tensor, shape: Sequence[Any]) -> Tensor:
    # By way of one axis: torch would compare the batch with the other sizes, and fix it.
    return mask if mask.ndim == len(shape) else mask.flatten().reshape(shape)


def _is_batch(size: Any) -> bool:
    return isinstance(size, torch.SymInt) and size.node.expr.is_Symbol


def _rate(node: Node) -> float | None:
    """The rate at which an operator drops in training, None where it draws nothing."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return None
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    values = {a.name: a.default_value for a in schema if a.has_default_value()}
    values |= dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
    if values.get("train") is False:
        return None
    rate = next((values[name] for name in ("dropout_p", "dropout", "p") if name in values), None)
    if rate is None or (node.target in LAYERS and values["num_layers"] == 1):
        return None
    rate = 1 - rate if "bernoulli" in str(node.target) else rate
    return float(rate) if rate > 0 else None


def _dropouts(node: Node, place: int) -> list[Dropout]:
    """The masks that an operator draws; a recurrent layer one after each of its layers but the last."""
    operator, rate = str(node.target), _rate(node)
    assert rate is not None
    names = (a.name for a in node.target._schema.arguments)  # type: ignore[union-attr]
    given: dict[str, Any] = dict(zip(names, node.args, strict=False))
    if node.target in LAYERS:
        steps, width = _recurrent_sizes(node, given)
        return [Dropout(f"{_NAME}_{place + i}", (steps * width,), rate) for i in range(given["num_layers"] - 1)]
    value = node.args[0].meta["val"]  # type: ignore[union-attr]
    sizes = list(value.shape)
    if "scaled_dot_product" in operator:
        sizes[-1] = node.args[1].meta["val"].shape[-2]  # type: ignore[union-attr]
    if "feature" in operator:
        sizes = [*sizes[:2], *[1] * (len(sizes) - 2)]
    if _is_batch(sizes[0]) and all(isinstance(s, int) for s in sizes[1:]):
        return [Dropout(f"{_NAME}_{place}", tuple(sizes[1:]), rate)]
    symbolic = [s for s in sizes if not isinstance(s, int)]
    factor = symbolic[0].node.expr.as_coeff_Mul() if len(symbolic) == 1 else (0, None)
    if factor[1] is None or not factor[1].is_Symbol:
        raise BundleError(
            f"{layer_of_fx(node)}: dropout on a tensor of {sizes}, whose size is no multiple of the number of "
            "examples; apply it to values of each example, or set p=0"
        )
    return [Dropout(f"{_NAME}_{place}", (int(factor[0]) * math.prod(s for s in sizes if isinstance(s, int)),), rate)]


def _recurrent_sizes(node: Node, given: dict[str, Any]) -> tuple[int, int]:
    """How many steps a recurrent layer takes, and how wide its results are."""
    x, states = given["input"].meta["val"], given["hx"]
    steps = x.shape[1 if given["batch_first"] else 0]
    if not isinstance(steps, int):
        raise BundleError(f"{layer_of_fx(node)}: its steps depend on the number of examples; set batch_first=True")
    state = (states if isinstance(states, Node) else states[0]).meta["val"]
    return steps, int(state.shape[-1]) * (2 if given["bidirectional"] else 1)
