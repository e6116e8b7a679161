"""Dynamic sparse training on a flat vector: rules that say which weights take part, and what becomes of the others.

A training loop, whatever its engine and optimiser, does at each step

    model    = masked(weights, state.mask)                what the forward pass, and so the gradient, is taken at
    gradient = engine(model)                              of all coordinates, those left out included
    moved    = optimiser(weights, applied(rule, state, gradient))
    state, weights = advance(rule, tensors, state, moved, gradient)

and `masked(weights, state.mask)` is what it evaluates, sends and exports. `weights` are dense. The rules:

static      Han et al. 2015: the largest weights of the model at hand are kept, and nothing moves.
one-shot    the same once, at step `until` of a training that is dense before.
gradual     Zhu & Gupta 2018: the cubic schedule; what was left out stays 0.
dpf         Lin, Stich, Barba, Dmitriev, Jaggi, "Dynamic Model Pruning with Feedback" (ICLR 2020), algorithm 1: one
            threshold over all weights every 16 steps, the cubic schedule, the gradient at the masked model applied to
            the dense weights. They remember what the mask left out (error feedback), so a weight may come back.
dpf-without-feedback   the same, but the dense weights are masked whenever the mask is refreshed: the ablation.
rigl        Evci et al., "Rigging the Lottery" (ICML 2020): drops the smallest weights, grows those of largest dense
            gradient from 0, a share of them that falls along a cosine. The mask begins at random.
set         Mocanu et al. 2018: as rigl, but grows at random, and always the same share; from 0, as RigL's authors do.

Where we depart. A global threshold leaves each tensor its largest weight, where the published one could cut a network
in two. RigL's code takes no optimiser step where it moves connections; here the mask moves after the step, by the
gradient that was taken before it. SET refreshes every so many steps, not at the end of an epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from sparse import scores
from sparse.distributions import Distribution
from sparse.masks import Mask, Vector, masked
from sparse.pruning import check_sparsity, select
from sparse.regrowth import cosine, regrown
from sparse.schedules import Schedule, constant, sparsity_at
from sparse.tensors import FlatTensor

Method = Literal["static", "one-shot", "gradual", "dpf", "dpf-without-feedback", "rigl", "set"]

# Steps between two masks: p of Lin et al. 2020, section 5.
REFRESH_EVERY = 16
# Share of connections that move at once: RigL's alpha and SET's zeta.
DROP_FRACTION = 0.3

_MEMORY = ("dpf", "dpf-without-feedback")
_MOVING = ("rigl", "set")


@dataclass(frozen=True, slots=True)
class SparseRule:
    """How masks come about. Steps count optimiser steps; `until` is the last after which the mask may change.

    begin: where the rising schedules leave 0. refresh_every, drop_fraction: for the rules that use them. seed: of the
    first mask of rigl and set, and of what set grows.
    """

    method: Method
    sparsity: float
    until: int = 0
    distribution: Distribution = "global"
    refresh_every: int = REFRESH_EVERY
    begin: int = 0
    drop_fraction: float = DROP_FRACTION
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"method: {self.method!r} is unknown; use {', '.join(get_args(Method))}")
        if not 0.0 <= self.sparsity < 1.0:
            raise ValueError(f"sparsity: {self.sparsity} must be at least 0 and below 1; 0.9 is usual")
        if self.refresh_every < 1:
            raise ValueError(f"refresh_every: {self.refresh_every} must be at least 1; {REFRESH_EVERY} is usual")
        if not 0 <= self.begin <= self.until:
            raise ValueError(f"until: step {self.until} must not come before step {self.begin}, where masks begin")
        if not 0.0 <= self.drop_fraction <= 1.0:
            raise ValueError(f"drop_fraction: {self.drop_fraction} must be from 0 to 1; {DROP_FRACTION} is usual")
        if self.method in _MOVING and self.distribution == "global":
            raise ValueError(f"distribution: {self.method} fixes what each tensor keeps; use erk or uniform")

    @property
    def keeps_dense(self) -> bool:
        """Whether weights that are left out go on learning, so that dense weights and moments are worth keeping."""
        return self.method in _MEMORY

    @property
    def schedule(self) -> Schedule:
        """The sparsity due after each step."""
        if self.method in ("static", *_MOVING):
            return constant(self.sparsity)
        begin = self.until if self.method == "one-shot" else self.begin
        return Schedule(0.0, self.sparsity, begin, self.until)


@dataclass(frozen=True, slots=True)
class SparseState:
    """What a rule remembers: optimiser steps taken, and the mask of the next one, bool[n]."""

    steps: int
    mask: Mask


def init(
    rule: SparseRule, tensors: Sequence[FlatTensor], weights: Vector, mask: Mask | None = None
) -> tuple[SparseState, Vector]:
    """The state before the first step, and the dense weights to begin with: float32[n]. `weights` is not changed.

    mask: to begin with in place of the rule's own choice. Raises ValueError for a sparsity at which some tensor could
    keep nothing, by name, with what works.
    """
    check_sparsity(tensors, rule.sparsity, rule.distribution)
    if mask is None:
        worth = scores.magnitude(weights)
        if rule.method in _MOVING:
            worth = scores.random(len(weights), np.random.default_rng([rule.seed, 0]))
        mask = select(tensors, worth, sparsity_at(rule.schedule, 0), rule.distribution)
    if mask.shape != weights.shape:
        raise ValueError(f"mask: {mask.shape} values for {weights.shape} weights; take the mask of this bundle")
    return SparseState(0, mask), _left(rule, mask, weights, refreshed=True)


def applied(rule: SparseRule, state: SparseState, gradient: Vector) -> Vector:
    """What the optimiser is given of the gradient: all of it where dense weights learn, else that of kept weights."""
    return gradient if rule.keeps_dense else masked(gradient, state.mask)


def advance(
    rule: SparseRule, tensors: Sequence[FlatTensor], state: SparseState, weights: Vector, gradient: Vector
) -> tuple[SparseState, Vector]:
    """The state for the next step, and the dense weights, after an optimiser step: float32[n].

    weights: dense, as the optimiser left them. gradient: dense, as the engine gave it. Neither is changed; the weights
    returned may be the same array.
    """
    steps = state.steps + 1
    if not _due(rule, steps):
        return SparseState(steps, state.mask), _left(rule, state.mask, weights, refreshed=False)
    if rule.method in _MOVING:
        weights = masked(weights, state.mask)
        mask = _moved(rule, tensors, state.mask, weights, gradient, steps)
    else:
        sparsity = sparsity_at(rule.schedule, steps)
        mask = select(tensors, scores.magnitude(weights), sparsity, rule.distribution)
    return SparseState(steps, mask), _left(rule, mask, weights, refreshed=True)


def _due(rule: SparseRule, steps: int) -> bool:
    """Whether the mask is chosen anew after so many steps."""
    if rule.method == "static":
        return False
    if rule.method == "one-shot":
        return steps == rule.until
    last = rule.until if rule.method not in _MOVING else rule.until - 1
    return rule.begin <= steps <= last and (steps % rule.refresh_every == 0 or steps == rule.until)


def _moved(
    rule: SparseRule, tensors: Sequence[FlatTensor], mask: Mask, weights: Vector, gradient: Vector, steps: int
) -> Mask:
    if rule.method == "rigl":
        fraction = cosine(rule.drop_fraction, steps, rule.until)
        return regrown(tensors, mask, weights, scores.gradient(gradient), fraction)
    growth = scores.random(len(weights), np.random.default_rng([rule.seed, steps]))
    return regrown(tensors, mask, weights, growth, rule.drop_fraction)


def _left(rule: SparseRule, mask: Mask, weights: Vector, *, refreshed: bool) -> Vector:
    """The dense weights after a step under the mask: as they are where they remember, else without what it left out."""
    if rule.method == "dpf" or (rule.keeps_dense and not refreshed):
        return weights
    return masked(weights, mask)
