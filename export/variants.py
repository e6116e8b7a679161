"""Variants that train a part of the model: which parameters each freezes, and the module set up as it trains.

A layer is a module with trainable parameters of its own, whatever else it holds: a convolution, a BatchNorm, the root
of a transformer that owns a position embedding. Layers count in the order in which forward first calls them; one that
is never called, because another layer reads its weights, as attention does, follows the one registered before it.

A BatchNorm that freezes runs on its running statistics and leaves them as they are, as users freeze a pretrained
backbone: its batch's statistics would otherwise go on changing what the trained layers see. One without trained
parameters of its own (affine=False) goes with the layer before it. Dropout in the frozen part stays on.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from export.capture import EAGER_FAILURES
from export.layout import running_statistics
from export.spec import TrainingSpec
from protocol.errors import ConfigurationError
from protocol.manifest import FULL

_PARAMETRIZED = ".parametrizations."
# A refusal names the layers or parameters at hand, up to so many.
_MOST_NAMED = 20


@dataclass(frozen=True, slots=True)
class Scheme:
    """A variant by name: the parameters that it freezes, and the running statistics that it leaves."""

    name: str
    frozen: tuple[str, ...] = ()
    frozen_buffers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer in order of use. parameters: names of its own trainable ones, a tied one by its first name."""

    path: str
    parameters: frozenset[str]


def schemes(spec: TrainingSpec, train_last: Sequence[int] = (), freeze: Sequence[str] = ()) -> tuple[Scheme, ...]:
    """`full`, then `train-last-N` for each N, then `freeze`, whose patterns are of parameter names, all together.

    The module is left in the mode it was in. Raises ConfigurationError naming the option and what is at hand.
    """
    if not train_last and not freeze:
        return (Scheme(FULL),)
    names = [n for n, p in spec.module.named_parameters() if p.requires_grad]
    with _modes_kept(spec.module):
        layers = _layers(spec)
        spec.module.train()
        running = running_statistics(spec.module)
    found = [Scheme(FULL)]
    for count in dict.fromkeys(train_last):
        found.append(_scheme(f"train-last-{count}", _all_but_last(layers, names, count), layers, running))
    if freeze:
        found.append(_scheme("freeze", _matching(names, freeze), layers, running))
    return tuple(found)


@contextlib.contextmanager
def applied(module: nn.Module, frozen: Sequence[str], frozen_buffers: Sequence[str]) -> Iterator[None]:
    """Puts the module in training mode as a variant trains it; afterwards it is as it was.

    Frozen parameters require no gradient, so that autograd and exporters leave out what only they need, and the
    BatchNorm layers of frozen statistics are in evaluation mode.
    """
    required = {p: p.requires_grad for p in module.parameters()}
    with _modes_kept(module):
        try:
            module.train()
            settle(module, frozen, frozen_buffers)
            yield
        finally:
            for parameter, wanted in required.items():
                parameter.requires_grad_(wanted)


def settle(module: nn.Module, frozen: Sequence[str], frozen_buffers: Sequence[str]) -> None:
    """Freezes for good: for a module in training mode that is nobody else's, as a copy to compare with."""
    parameters = dict(module.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)
    for path in {name.rpartition(".")[0] for name in frozen_buffers}:
        module.get_submodule(path).eval()


def _scheme(name: str, frozen: Sequence[str], layers: Sequence[_Layer], running: Mapping[str, str]) -> Scheme:
    stopped, still = set(), False
    # A BatchNorm at the very front has no layer before it and goes with the first one.
    for layer in (next(layer for layer in layers if layer.parameters), *layers):
        still = layer.parameters.issubset(frozen) if layer.parameters else still
        if still:
            stopped.add(layer.path)
    return Scheme(name, tuple(frozen), tuple(buffer for buffer, path in running.items() if path in stopped))


def _all_but_last(layers: Sequence[_Layer], names: Sequence[str], count: int) -> list[str]:
    holding = [layer for layer in layers if layer.parameters]
    if not 0 < count < len(holding):
        raise ConfigurationError(
            f"--train-last: {count} must be at least 1 and leave a layer to freeze; the model has {len(holding)} with "
            f"trained parameters, in order of use: {_listed([layer.path or 'the module itself' for layer in holding])}"
        )
    trained = {name for layer in holding[-count:] for name in layer.parameters}
    if trained.issuperset(names):
        raise ConfigurationError(
            f"--train-last: {count} trains every parameter, since layers share theirs; the variant {FULL!r} does that"
        )
    return [name for name in names if name not in trained]


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    frozen: set[str] = set()
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise ConfigurationError(
                f"--freeze: {pattern!r} matches no trained parameter; the model has {_listed(names)}"
            )
        frozen.update(matched)
    if frozen.issuperset(names):
        raise ConfigurationError(
            f"--freeze: {', '.join(map(repr, patterns))} freezes every parameter; leave one of {_listed(names)}"
        )
    return [name for name in names if name in frozen]


def _layers(spec: TrainingSpec) -> list[_Layer]:
    """Layers with trained parameters and BatchNorms, in order of first use."""
    first = {id(p): name for name, p in spec.module.named_parameters() if p.requires_grad}
    own: dict[str, set[str]] = {}
    for path, layer in spec.module.named_modules():
        held = {first[id(p)] for p in layer.parameters(recurse=False) if id(p) in first}
        if held or isinstance(layer, _BatchNorm):
            # torch keeps the weights of a parametrized layer in modules below it.
            own.setdefault(f"{path}.".partition(_PARAMETRIZED)[0].removesuffix("."), set()).update(held)
    return [_Layer(path, frozenset(own[path])) for path in _in_order_of_use(spec, list(own))]


def _in_order_of_use(spec: TrainingSpec, paths: Sequence[str]) -> list[str]:
    used: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(partial(_note, used, path))
        for path, layer in spec.module.named_modules()
        if path in paths
    ]
    try:
        # With gradients and hooks on, torch takes no shortcut past the layers of a transformer.
        spec.module.eval()
        spec.module(*spec.input_tensors)
    except EAGER_FAILURES:
        # Capture says what is wrong with it, in our words.
        return list(paths)
    finally:
        for hook in hooks:
            hook.remove()
    order = list(dict.fromkeys(used))
    for place, path in enumerate(paths):
        if path not in order:
            order.insert(order.index(paths[place - 1]) + 1 if place else 0, path)
    return order


def _note(used: list[str], path: str, _: nn.Module, __: object) -> None:
    used.append(path)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


@contextlib.contextmanager
def _modes_kept(module: nn.Module) -> Iterator[None]:
    modes = {layer: layer.training for layer in module.modules()}
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
