"""Optimisers on flat float32 vectors: SGD with momentum and AdamW by torch's rules, and quasi-global momentum.

All take a proximal term.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edge_agent.runtimes.engine import Vector

OptimizerName = Literal["sgd", "adamw", "qg"]


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """How a device turns gradients into steps. The learning rate is not here: the task's schedule gives it.

    weight_decay is L2 for sgd (added to the gradient) and decoupled for adamw, as in torch. proximal is FedProx's mu
    (Li et al. 2020, equation 2): the pull towards the model that the round started from; 0 turns it off.

    qg: quasi-global momentum (Lin, Karimireddy, Stich, Jaggi 2021, algorithm 1; edge_agent/momentum.py): a step goes
    along g + momentum * mh, with nesterov along g + momentum * (that), where mh stays what it was when the round began.
    mu: how much of mh stays when what the fleet did is taken in. keep_momentum: of sgd; whether its velocity goes on in
    the next round, as in local SGD (Lin et al. 2020), or begins anew at zero.
    """

    name: OptimizerName = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    proximal: float = 0.0
    mu: float = 0.9
    keep_momentum: bool = False

    def __post_init__(self) -> None:
        if self.name not in get_args(OptimizerName):
            raise ValueError(f"name: {self.name!r} must be one of {', '.join(get_args(OptimizerName))}")
        for key in ("momentum", "beta1", "beta2", "mu"):
            value = getattr(self, key)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{key}: {value} must be at least 0 and below 1; 0.9 is usual")
        for key in ("weight_decay", "proximal"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{key}: {value} must be a finite number of at least 0; 0 turns it off")
        # Smaller ones vanish in float32, and 0 divided by 0 follows.
        if not 1e-38 <= self.epsilon <= 1.0:
            raise ValueError(f"epsilon: {self.epsilon} must be from 1e-38 to 1; 1e-8 is usual")
        if self.name == "adamw" and (self.momentum > 0.0 or self.nesterov):
            key = "momentum" if self.momentum > 0.0 else "nesterov"
            raise ValueError(f"{key}: {getattr(self, key)} must be left out with adamw; set beta1, or use name = 'sgd'")
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov: true must come with momentum above 0; set momentum, or nesterov = false")
        if self.keep_momentum and (self.name != "sgd" or self.momentum == 0.0):
            raise ValueError(
                "keep_momentum: true is for name = 'sgd' with momentum above 0; qg keeps its own, adamw begins anew"
            )

    @property
    def carries(self) -> bool:
        """Whether a vector goes on from round to round on the device."""
        return self.keep_momentum or self.name == "qg"


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """What an optimiser remembers between steps.

    steps: how many were taken. first_moment, second_moment: float32[n], or float32[0] where the rule keeps none. The
    first moment of qg is mh, which no step changes.
    """

    steps: int
    first_moment: Vector
    second_moment: Vector


def init(settings: OptimizerSettings, n: int, carried: Vector | None = None) -> OptimizerState:
    """The state before the first step on n parameters. carried: float32[n] from rounds before, of rules that carry."""
    adamw = settings.name == "adamw"
    if carried is not None:
        assert settings.carries, f"{settings.name} carries nothing"
        assert carried.shape == (n,), f"{carried.shape} values carried for {n} parameters"
        return OptimizerState(0, carried.astype(np.float32), np.zeros(0, dtype=np.float32))
    return OptimizerState(
        steps=0,
        first_moment=np.zeros(n if adamw or settings.carries or settings.momentum > 0.0 else 0, dtype=np.float32),
        second_moment=np.zeros(n if adamw else 0, dtype=np.float32),
    )


def step(
    settings: OptimizerSettings,
    state: OptimizerState,
    parameters: Vector,
    gradient: Vector,
    learning_rate: float,
    anchor: Vector | None = None,
) -> tuple[OptimizerState, Vector]:
    """One step; returns the next state and the new parameters, float32[n].

    parameters, gradient: float32[n], not changed, and the result shares no memory with them. anchor: float32[n], the
    parameters that the round started from, needed when proximal is above 0. `state` is spent: its moments are updated
    in place and belong to the returned state. A diverging run gives infinities or NaN without a warning: look at the
    result.
    """
    assert parameters.shape == gradient.shape, f"{gradient.shape} gradient for {parameters.shape} parameters"
    with np.errstate(over="ignore", invalid="ignore"):
        if settings.proximal > 0.0:
            assert anchor is not None, "the proximal term needs the anchor it pulls towards"
            gradient = gradient + settings.proximal * (parameters - anchor)
        if settings.name == "adamw":
            updated = _adamw(settings, state, parameters, gradient, float(learning_rate))
        elif settings.name == "qg":
            updated = _quasi_global(settings, state, parameters, gradient, float(learning_rate))
        else:
            updated = _sgd(settings, state, parameters, gradient, float(learning_rate))
    return OptimizerState(state.steps + 1, state.first_moment, state.second_moment), updated


def forget(state: OptimizerState, where: npt.NDArray[np.bool_]) -> None:
    """Sets the moments to 0 where bool[n] `where` is set, in place: what is left out and comes back starts anew."""
    for moment in (state.first_moment, state.second_moment):
        if len(moment):
            moment[where] = 0.0


def _sgd(
    settings: OptimizerSettings, state: OptimizerState, parameters: Vector, gradient: Vector, learning_rate: float
) -> Vector:
    if settings.weight_decay > 0.0:
        gradient = gradient + settings.weight_decay * parameters
    direction = gradient
    if settings.momentum > 0.0:
        # torch starts the buffer as the first gradient. Without dampening that is what a zero buffer becomes.
        velocity = state.first_moment
        velocity *= settings.momentum
        velocity += gradient
        direction = gradient + settings.momentum * velocity if settings.nesterov else velocity
    updated = direction * -learning_rate
    updated += parameters
    return updated


def _quasi_global(
    settings: OptimizerSettings, state: OptimizerState, parameters: Vector, gradient: Vector, learning_rate: float
) -> Vector:
    if settings.weight_decay > 0.0:
        gradient = gradient + settings.weight_decay * parameters
    direction = settings.momentum * state.first_moment
    direction += gradient
    if settings.nesterov:
        direction *= settings.momentum
        direction += gradient
    direction *= -learning_rate
    direction += parameters
    return direction


def _adamw(
    settings: OptimizerSettings, state: OptimizerState, parameters: Vector, gradient: Vector, learning_rate: float
) -> Vector:
    mean, square, steps = state.first_moment, state.second_moment, state.steps + 1
    scratch = gradient * (1.0 - settings.beta1)
    mean *= settings.beta1
    mean += scratch
    np.multiply(gradient, gradient, out=scratch)
    scratch *= 1.0 - settings.beta2
    square *= settings.beta2
    square += scratch

    np.sqrt(square, out=scratch)
    scratch /= math.sqrt(1.0 - settings.beta2**steps)
    scratch += settings.epsilon
    np.divide(mean, scratch, out=scratch)
    scratch *= -learning_rate / (1.0 - settings.beta1**steps)
    scratch += parameters * (1.0 - learning_rate * settings.weight_decay)
    return scratch
