"""What the optimisers keep, change and leave alone, and which settings they refuse; their steps: see against torch."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.optimizers import OptimizerSettings, OptimizerState, init, step
from protocol.records import RecordError, read_record

N = 257
STEPS = 20


def vector(seed: int, n: int = N) -> Vector:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def run(settings: OptimizerSettings, *, learning_rate: float = 0.05, steps: int = STEPS) -> Vector:
    parameters = vector(0)
    state = init(settings, N)
    for i in range(steps):
        state, parameters = step(settings, state, parameters, vector(i + 1), learning_rate, anchor=vector(0))
    return parameters


def test_sgd_without_momentum_is_parameters_minus_rate_times_gradient() -> None:
    settings = OptimizerSettings()
    _, updated = step(settings, init(settings, N), vector(1), vector(2), 0.1)
    np.testing.assert_array_equal(updated, vector(1) - np.float32(0.1) * vector(2))


def test_the_first_step_with_momentum_is_the_step_without_it() -> None:
    plain = run(OptimizerSettings(), steps=1)
    np.testing.assert_array_equal(run(OptimizerSettings(momentum=0.9), steps=1), plain)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_proximal_term_pulls_towards_the_anchor_when_there_is_no_gradient(name: Any) -> None:
    settings = OptimizerSettings(name, proximal=0.5)
    anchor, parameters, state = vector(0), vector(0) + np.float32(1), init(settings, N)
    for _ in range(400):
        state, parameters = step(settings, state, parameters, np.zeros_like(anchor), 0.05, anchor)
    assert np.abs(parameters - anchor).max() < 0.02


def test_the_proximal_term_is_nothing_at_the_anchor() -> None:
    assert run(OptimizerSettings(proximal=3.0), steps=1).tobytes() == run(OptimizerSettings(), steps=1).tobytes()


@pytest.mark.parametrize("settings", [OptimizerSettings(momentum=0.9, proximal=0.1), OptimizerSettings("adamw")])
def test_a_step_leaves_its_inputs_alone_and_stays_float32(settings: OptimizerSettings) -> None:
    parameters, gradient, anchor = vector(1), vector(2), vector(3)
    state, updated = step(settings, init(settings, N), parameters, gradient, np.float64(0.1), anchor)
    assert parameters.tobytes() == vector(1).tobytes()
    assert gradient.tobytes() == vector(2).tobytes()
    assert anchor.tobytes() == vector(3).tobytes()
    assert updated.dtype == state.first_moment.dtype == np.float32
    assert not np.shares_memory(updated, state.first_moment)
    assert state.steps == 1


def test_the_state_holds_only_what_its_rule_needs() -> None:
    def sizes(state: OptimizerState) -> tuple[int, int]:
        return len(state.first_moment), len(state.second_moment)

    assert sizes(init(OptimizerSettings(), 7)) == (0, 0)
    assert sizes(init(OptimizerSettings(momentum=0.9), 7)) == (7, 0)
    assert sizes(init(OptimizerSettings("adamw"), 7)) == (7, 7)


@pytest.mark.parametrize("settings", [OptimizerSettings(momentum=0.9), OptimizerSettings("adamw")])
def test_divergence_shows_in_the_values_and_not_as_a_warning(settings: OptimizerSettings) -> None:
    huge = np.full(N, 3e38, np.float32)
    state, parameters = step(settings, init(settings, N), huge, -huge, 1e30)
    _, parameters = step(settings, state, parameters, np.full(N, np.inf, np.float32), 1e30)
    assert not np.isfinite(parameters).any()


@pytest.mark.parametrize(
    "source",
    [
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"momentum": float("nan")},
        {"beta1": 1.0},
        {"beta2": -0.5},
        {"weight_decay": -1e-4},
        {"weight_decay": float("inf")},
        {"proximal": -1.0},
        {"epsilon": 0.0},
        {"epsilon": 1e-50},
        {"nesterov": True},
        {"momentum": 0.9, "name": "adamw"},
        {"name": "rmsprop"},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(source: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match=rf"^optimizer\.{next(iter(source))}: .*(must be|must come|is not one of)"):
        read_record(OptimizerSettings, source, where="optimizer")


def test_settings_are_read_from_a_table() -> None:
    assert read_record(OptimizerSettings, {"momentum": 0, "name": "adamw"}) == OptimizerSettings("adamw")
    assert dataclasses.replace(OptimizerSettings(), momentum=0.9).momentum == 0.9
