"""The server step: how the mean delta of a round becomes the next model.

`add` is FedAvg; `momentum` is FedAvgM (Hsu et al. 2019, section 4); `adam` is FedAdam (Reddi et al. 2021, algorithm 2)
without the paper's floor on the second moment, which starts at zero here. Only parameters are stepped, and of them
those that somebody trained: the others stay, with their moments. Buffers take their mean delta as it is, and frozen
tensors stay.
"""

import struct
from dataclasses import dataclass, field

import numpy as np

from coordinator.fold import Delta, Folded
from coordinator.settings import ServerSettings
from coordinator.standing import Standing, pack_standing, unpack_standing
from edge_agent.runtimes.engine import Vector

_HEADER = struct.Struct("<QQQ")


@dataclass(frozen=True, slots=True)
class ServerState:
    """What is remembered between rounds: by the step, first and second, float32[n_parameters], or float32[0] where
    unused; by the fold, the standing of devices."""

    steps: int
    first: Vector
    second: Vector
    standing: Standing = field(default_factory=dict)


def initial_state() -> ServerState:
    return ServerState(0, np.zeros(0, np.float32), np.zeros(0, np.float32))


def server_step(
    settings: ServerSettings, state: ServerState, model: Vector, folded: Folded
) -> tuple[ServerState, Vector]:
    """The next state and model, float32[total]; `model` is float32[total], not changed.

    Moments of another length than the rule needs (after a change of the setting) start again from zero.
    """
    n = len(folded.parameters)
    end = n + len(folded.buffers)
    assert len(model) >= end
    first, second = _moment(state.first, n), _moment(state.second, n)
    after = model.copy()
    stepped = _step(settings, first, second, folded)
    # A server learning rate that makes the model overflow is seen in its evaluation, not in a warning here.
    with np.errstate(over="ignore"):
        moved = (model[:n].astype(np.float64) + settings.learning_rate * stepped).astype(np.float32)
        np.copyto(after[:n], moved, where=folded.trained)
        after[n:end] = (model[n:end].astype(np.float64) + folded.buffers).astype(np.float32)
    kept = {"add": (False, False), "momentum": (True, False), "adam": (True, True)}[settings.step]
    return ServerState(state.steps + 1, _kept(first, kept[0]), _kept(second, kept[1])), after


def _step(settings: ServerSettings, first: Delta, second: Delta, folded: Folded) -> Delta:
    """The step of the parameters, float64[n], of which only what somebody trained is meant; moments of that move."""
    delta, trained = folded.parameters, folded.trained
    if settings.step == "momentum":
        np.copyto(first, settings.momentum * first + delta, where=trained)
        return first
    if settings.step == "adam":
        np.copyto(first, settings.beta1 * first + (1 - settings.beta1) * delta, where=trained)
        np.copyto(second, settings.beta2 * second + (1 - settings.beta2) * delta * delta, where=trained)
        stepped: Delta = first / (np.sqrt(second) + settings.epsilon)
        return stepped
    return delta


def pack_state(state: ServerState) -> bytes:
    """The bytes of a state, as kept beside the model version."""
    moments = state.first.astype("<f4").tobytes() + state.second.astype("<f4").tobytes()
    return _HEADER.pack(state.steps, len(state.first), len(state.second)) + moments + pack_standing(state.standing)


def unpack_state(data: bytes) -> ServerState:
    """The state from its bytes, which are our own, checked by digest."""
    steps, n_first, n_second = _HEADER.unpack_from(data)
    end = _HEADER.size + 4 * (n_first + n_second)
    moments = np.frombuffer(data[:end], "<f4", offset=_HEADER.size).astype(np.float32)
    assert len(moments) == n_first + n_second
    return ServerState(steps, moments[:n_first], moments[n_first:], unpack_standing(data[end:]))


def _moment(values: Vector, n: int) -> Delta:
    return values.astype(np.float64) if len(values) == n else np.zeros(n)


def _kept(values: Delta, keep: bool) -> Vector:
    return values.astype(np.float32) if keep else np.zeros(0, np.float32)
