"""Pruning a torch module before it is exported: fewer weights by a mask, at once or gradually, and fewer channels.

In a training loop of your own:

    pruning = Gradual(module, 0.9, end=2000)
    for batch in batches:
        ...
        optimizer.step()
        pruning.step()
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from export.spec import TrainingSpec
from protocol.errors import ConfigurationError
from sparse import scores
from sparse.channels import remove_channels
from sparse.distributions import Distribution
from sparse.masks import Mask, Vector
from sparse.outputs import every_output_kept
from sparse.pruning import check_sparsity, prune, select
from sparse.schedules import Schedule, sparsity_at
from sparse.tensors import FlatTensor, choose

Score = Literal["magnitude", "gradient", "random"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model holds, and the multiplications with additions of one example's forward pass."""

    parameters: int
    multiply_adds: int


def cost_of(spec: TrainingSpec) -> Cost:
    """The cost of a spec's module."""
    module = copy.deepcopy(spec.module).eval()
    counts = {torch.ops.aten.mkldnn_rnn_layer: _recurrent_operations}
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        module(*spec.input_tensors)
    examples = len(spec.input_tensors[0])
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() // (2 * examples))


def _recurrent_operations(
    given: Sequence[int], into: Sequence[int], onward: Sequence[int], *_: object, **__: object
) -> int:
    """Of torch's fused recurrent layer, which its counter does not know: shapes of inputs and of the two weights."""
    return 2 * given[0] * given[1] * (math.prod(into) + math.prod(onward))


def shrunk(spec: TrainingSpec, keep: float, leave: Sequence[str] = ()) -> TrainingSpec:
    """The spec with that share of its module's channels, see sparse.channels. Raises ConfigurationError."""
    try:
        return replace(spec, module=remove_channels(spec.module, spec.input_tensors, keep, leave=leave))
    except ValueError as error:
        raise ConfigurationError(
            _as_option(str(error), {"keep": "--keep-channels", "leave": "--leave-whole"})
        ) from None


def sparsified(spec: TrainingSpec, sparsity: float, distribution: Distribution) -> tuple[TrainingSpec, Mask]:
    """The spec with zeros in place of its smallest weights, and the mask of them. Raises ConfigurationError."""
    module = copy.deepcopy(spec.module)
    try:
        return replace(spec, module=module), prune_weights(module, sparsity, distribution, prunable=spec.prunable)
    except ValueError as error:
        names = {"sparsity": "--sparsity", "distribution": "--sparsity-distribution"}
        other = "; --sparsity-distribution erk spreads it" if "(global) leaves nothing" in str(error) else ""
        raise ConfigurationError(_as_option(str(error), names) + other) from None


def prune_weights(
    module: nn.Module,
    sparsity: float,
    distribution: Distribution = "global",
    score: Score = "magnitude",
    prunable: Sequence[str] | None = None,
    seed: int = 0,
) -> Mask:
    """Sets all but the weights of the highest scores to zero, and returns which are kept: bool[n].

    Every output of a layer keeps one weight at least, as far as there are enough (see sparse/outputs.py).

    n is all that requires a gradient, in the order of named_parameters, which is that of a bundle. prunable: patterns
    over names; without them every weight of two axes or more. distribution: one threshold over all ("global"), the same
    share of every tensor ("uniform"), or by their shapes ("erk"). score "gradient" is weight times gradient, of the
    gradients at hand. Raises ValueError naming a tensor of which nothing would be left, and the nearest that works.
    """
    tensors = _tensors(module, prunable)
    worth = _scores(module, score, seed)
    mask = every_output_kept(tensors, worth, prune(tensors, worth, sparsity, distribution))
    apply_mask(module, mask)
    return mask


def apply_mask(module: nn.Module, mask: Mask) -> None:
    """Zeroes what the mask leaves out, in place."""
    trained, at = _trained(module), 0
    count = sum(parameter.numel() for parameter in trained.values())
    if len(mask) != count:
        raise ValueError(f"mask: {len(mask)} values for {count} parameters; take the mask of this module")
    with torch.no_grad():
        for parameter in trained.values():
            kept = torch.from_numpy(mask[at : at + parameter.numel()]).view_as(parameter)
            parameter.masked_fill_(~kept.to(parameter.device), 0.0)
            at += parameter.numel()


class Gradual:
    """Gradual magnitude pruning in a user's own loop: call `step` after each step of the optimiser.

    Sparsity rises from 0 at step `begin` to `sparsity` at step `end` along the cubic of Zhu & Gupta 2018, and the mask
    is chosen anew every `every` steps; what it left out stays zero in between. `mask` is the present one, bool[n] as
    `prune_weights` returns it.
    """

    def __init__(
        self,
        module: nn.Module,
        sparsity: float,
        end: int,
        begin: int = 0,
        every: int = 16,
        distribution: Distribution = "global",
        prunable: Sequence[str] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: {every} must be at least 1; 16 is usual")
        self._module, self._tensors, self._distribution = module, _tensors(module, prunable), distribution
        check_sparsity(self._tensors, sparsity, distribution)
        self._schedule, self._every, self._done = Schedule(0.0, sparsity, begin, end), every, 0
        self.mask: Mask = np.ones(sum(t.size for t in self._tensors), dtype=np.bool_)

    def step(self) -> None:
        """After a step of the optimiser: chooses a mask if one is due, and applies the present one."""
        self._done += 1
        end = self._schedule.end
        if self._schedule.begin <= self._done <= end and (self._done % self._every == 0 or self._done == end):
            due = sparsity_at(self._schedule, self._done)
            self.mask = select(self._tensors, _scores(self._module, "magnitude", 0), due, self._distribution)
        apply_mask(self._module, self.mask)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _tensors(module: nn.Module, prunable: Sequence[str] | None) -> tuple[FlatTensor, ...]:
    found, offset = [], 0
    for name, parameter in _trained(module).items():
        found.append(FlatTensor(name, offset, tuple(parameter.shape), parameter.ndim >= 2))
        offset += parameter.numel()
    return tuple(found) if prunable is None else choose(found, prunable)


def _scores(module: nn.Module, score: Score, seed: int) -> Vector:
    if score not in get_args(Score):
        raise ValueError(f"score: {score!r} is unknown; use {', '.join(get_args(Score))}")
    trained = _trained(module)
    weights = _flat(list(trained.values()))
    if score == "random":
        return scores.random(len(weights), np.random.default_rng(seed))
    if score == "magnitude":
        return scores.magnitude(weights)
    gradients = []
    for name, parameter in trained.items():
        if parameter.grad is None:
            raise ValueError(f"score: {name} has no gradient; call backward on a batch's loss before, or use magnitude")
        gradients.append(parameter.grad)
    return scores.saliency(weights, _flat(gradients))


def _flat(tensors: Sequence[Tensor]) -> Vector:
    return np.concatenate([t.detach().cpu().numpy().astype(np.float32).ravel() for t in tensors])


def _as_option(text: str, options: dict[str, str]) -> str:
    """A refusal with the command's word for what is at fault."""
    word, separator, rest = text.partition(": ")
    return f"{options.get(word, word)}{separator}{rest}".replace("(leave=", "(--leave-whole ")
