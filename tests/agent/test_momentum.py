"""Quasi-global momentum and local SGD as identities (the thesis' algorithms), on exact quadratics."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from edge_agent.momentum import Memory, carried, memory_of, pack_memory, unpack_memory
from edge_agent.runtimes import optimizers
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from protocol.messages import OptimizerSpec, Task
from tests.agent.test_job import task

N, RATE, ROUNDS = 24, 0.05, 30

Matrix = npt.NDArray[np.float32]


def quadratic(seed: int) -> tuple[Matrix, Vector]:
    """A strongly convex loss' matrix and centre: its gradient at x is A (x - c)."""
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((N, N)).astype(np.float32) / np.float32(np.sqrt(N))
    # Not by @: the BLAS of a matrix and its transpose gives NaN on the emulated board.
    return np.einsum("ij,kj->ik", half, half) + np.eye(N, dtype=np.float32), rng.standard_normal(N).astype(np.float32)


def said(number: int, version: int | None = None, spec: OptimizerSpec | None = None) -> Task:
    version = number - 1 if version is None else version
    return replace(task(number), version=version, learning_rate=RATE, optimizer=spec or OptimizerSpec("qg"))


class Device:
    """One that trains by formula and remembers as an agent does."""

    def __init__(self, seed: int, settings: OptimizerSettings) -> None:
        self.loss, self.settings, self.memory = quadratic(seed), settings, None

    memory: Memory | None

    def round(self, number: int, model: Vector, steps: int, *, accepted: bool = True) -> Vector:
        matrix, centre = self.loss
        given = said(number)
        start = carried(self.memory, given, self.settings, model, None, 50) if self.settings.carries else None
        state, x = optimizers.init(self.settings, N, start), model
        for _ in range(steps):
            state, x = optimizers.step(self.settings, state, x, matrix @ (x - centre), RATE)
        if accepted and self.settings.carries:
            self.memory = memory_of(given, self.settings, steps, state.first_moment, model, None)
        return x


def alone(settings: OptimizerSettings, steps: int = 1) -> Vector:
    device, x = Device(1, settings), np.zeros(N, np.float32)
    for number in range(1, ROUNDS + 1):
        x = device.round(number, x, steps)
    return x


def by_hand(beta: float, steps: int, *, nesterov: bool = False) -> Vector:
    """SGD with momentum, written out."""
    (matrix, centre), x, velocity = quadratic(1), np.zeros(N), np.zeros(N)
    for _ in range(steps):
        gradient = matrix @ (x - centre)
        velocity = beta * velocity + gradient
        x = x - RATE * (gradient + beta * velocity if nesterov else velocity)
    return x.astype(np.float32)


def qg(beta: float, mu: float, *, nesterov: bool = False) -> OptimizerSettings:
    return OptimizerSettings("qg", momentum=beta, mu=mu, nesterov=nesterov)


def test_of_one_device_quasi_global_momentum_with_mu_0_is_heavy_ball() -> None:
    np.testing.assert_allclose(alone(qg(0.9, 0.0)), by_hand(0.9, ROUNDS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mu", [0.0, 0.9])
def test_of_one_device_quasi_global_momentum_with_beta_0_is_sgd(mu: float) -> None:
    np.testing.assert_array_equal(alone(qg(0.0, mu)), alone(OptimizerSettings()))


@pytest.mark.parametrize(("beta", "mu"), [(0.9, 0.9), (0.5, 0.8), (0.9, 0.3)])
def test_of_one_device_mh_decays_by_mu_plus_1_minus_mu_times_beta(beta: float, mu: float) -> None:
    """mh' = mu mh + (1 - mu)(beta mh + g): quasi-hyperbolic momentum, 0.99 for the usual 0.9 and 0.9."""
    (matrix, centre), x, mh = quadratic(1), np.zeros(N), np.zeros(N)
    for _ in range(ROUNDS):
        gradient = matrix @ (x - centre)
        x = x - RATE * (beta * mh + gradient)
        mh = (mu + (1 - mu) * beta) * mh + (1 - mu) * gradient
    np.testing.assert_allclose(alone(qg(beta, mu)), x, rtol=1e-3, atol=1e-5)


def test_nesterov_steps_along_g_plus_beta_times_the_heavy_ball_direction() -> None:
    settings, mh, gradient = qg(0.9, 0.9, nesterov=True), np.full(N, 2.0, np.float32), np.full(N, 3.0, np.float32)
    state, x = optimizers.step(settings, optimizers.init(settings, N, mh), np.zeros(N, np.float32), gradient, 0.1)
    np.testing.assert_allclose(x, np.full(N, -0.1 * (3.0 + 0.9 * (0.9 * 2.0 + 3.0))), rtol=1e-6)
    np.testing.assert_array_equal(state.first_moment, mh)


def test_devices_that_began_together_have_one_mh_whatever_their_data() -> None:
    devices, x = [Device(seed, qg(0.9, 0.9)) for seed in range(5)], np.zeros(N, np.float32)
    for number in range(1, 6):
        x = np.mean([device.round(number, x, 3) for device in devices], axis=0).astype(np.float32)
    found = [carried(d.memory, said(6), d.settings, x, None, 50) for d in devices]
    assert all(one.tobytes() == found[0].tobytes() for one in found)
    assert np.abs(found[0]).max() > 0


def test_local_sgd_with_h_1_is_mini_batch_sgd_and_of_one_device_plain_sgd_for_every_h() -> None:
    settings, losses = OptimizerSettings(), [quadratic(seed) for seed in range(4)]
    devices, x, batch = [Device(seed, settings) for seed in range(4)], np.zeros(N, np.float32), np.zeros(N)
    for number in range(1, ROUNDS + 1):
        x = np.mean([device.round(number, x, 1) for device in devices], axis=0).astype(np.float32)
        batch = batch - RATE * np.mean([matrix @ (batch - centre) for matrix, centre in losses], axis=0)
    np.testing.assert_allclose(x, batch, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone(settings, steps=4), by_hand(0.0, 4 * ROUNDS), rtol=1e-4, atol=1e-5)


def test_of_one_device_momentum_that_is_kept_is_momentum_without_rounds_and_reset_it_is_another() -> None:
    kept = alone(OptimizerSettings(momentum=0.9, keep_momentum=True), steps=2)
    np.testing.assert_allclose(kept, by_hand(0.9, 2 * ROUNDS), rtol=1e-3, atol=1e-4)
    assert not np.allclose(alone(OptimizerSettings(momentum=0.9), steps=2), kept, rtol=1e-2)


# What is remembered, and for how long


def memory(**changes: object) -> Memory:
    vector, base = np.arange(N, dtype=np.float32), np.ones(N, np.float32)
    found = memory_of(said(10), qg(0.9, 0.5), 4, vector, base, None)
    return replace(found, **changes)  # type: ignore[arg-type]


def test_several_local_steps_are_divided_by_the_sum_of_their_rates() -> None:
    moved = np.full(N, 0.2, np.float32)
    found = carried(memory(), said(11), qg(0.9, 0.0), np.ones(N, np.float32) - moved, None, 50)
    np.testing.assert_allclose(found, moved / (4 * RATE), rtol=1e-5)


def test_rounds_that_were_missed_count_as_equal_movements() -> None:
    """Three versions on: what three updates of mh by a third of the movement each come to."""
    settings, model = qg(0.9, 0.5), np.full(N, 0.4, np.float32)
    expected = memory().vector
    for _ in range(3):
        expected = 0.5 * expected + 0.5 * (1.0 - 0.4) / 3 / (4 * RATE)
    found = carried(memory(), said(13, version=12), settings, model, None, 50)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_of_the_same_version_once_more_mh_is_what_it_was() -> None:
    found = carried(memory(), said(11, version=9), qg(0.9, 0.5), np.zeros(N, np.float32), None, 50)
    np.testing.assert_array_equal(found, memory().vector)


@pytest.mark.parametrize("changes", [{"run": "other"}, {"round": 5}, {"kind": "sgd"}, {"vector": np.ones(3)}])
def test_what_is_stale_or_of_something_else_begins_at_zero(changes: dict[str, object]) -> None:
    assert not carried(memory(**changes), said(11), qg(0.9, 0.5), np.zeros(N, np.float32), None, 3).any()


@pytest.mark.parametrize("changes", [{"rate": 1e-45}, {"vector": np.full(N, np.nan, np.float32)}])
def test_what_is_no_longer_of_finite_numbers_begins_at_zero(changes: dict[str, object]) -> None:
    assert not carried(memory(**changes), said(11), qg(0.9, 0.5), np.full(N, 0.4, np.float32), None, 50).any()


def test_under_masks_only_what_both_rounds_kept_goes_on() -> None:
    old, new = np.arange(N) % 2 == 0, np.arange(N) % 3 == 0
    found = carried(memory(mask=old), said(11), qg(0.9, 0.5), np.full(N, 0.4, np.float32), new, 50)
    assert ((found != 0) == (old & new)).all()


@pytest.mark.parametrize("mask", [None, np.arange(N) % 2 == 0])
def test_a_memory_outlives_its_bytes_and_an_altered_one_is_none(mask: object) -> None:
    kept = memory(mask=mask, rate=0.1 + 0.2)
    data = pack_memory(kept)
    found = unpack_memory(data)
    assert found is not None
    assert (found.kind, found.run, found.round, found.version, found.rate) == ("qg", "run", 10, 9, 0.1 + 0.2)
    assert found.vector.tobytes() == kept.vector.tobytes()
    assert found.base.tobytes() == kept.base.tobytes()
    assert (found.mask is None) == (mask is None)
    for place in (0, len(data) // 2, len(data) - 1):
        assert unpack_memory(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]) is None
    assert unpack_memory(b"") is None
