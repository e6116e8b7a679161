"""Fold, server step, plan and byte counts: pure functions, held against formulas and against themselves."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.fleet import MAX_KNOWN
from coordinator.fold import Decoded, Folded, Weighted, fold
from coordinator.planner import learning_rate, order_devices, task_seed
from coordinator.server_step import initial_state, pack_state, server_step, unpack_state
from coordinator.settings import ServerSettings, TrainingSettings
from coordinator.traffic import MAX_CLAIM_BYTES, Traffic
from edge_agent.runtimes.engine import Vector
from protocol.layout import Layout, take

N, B = 7, 2
ALL = Layout((slice(0, N),), (slice(N, N + B),), bytes(8))


def deltas(seed: int, devices: int) -> dict[str, Decoded]:
    rng = np.random.default_rng(seed)

    def draw(n: int) -> Vector:
        values: Vector = (rng.normal(size=n) * 10.0 ** float(rng.integers(-6, 6))).astype(np.float32)
        return values

    return {f"d{i}": (draw(N), draw(B)) for i in range(devices)}


def of(found: dict[str, Decoded]) -> Callable[[Weighted], Decoded]:
    return lambda update: found[update.device]


@given(st.integers(0, 2**32), st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.randoms())
def test_the_fold_gives_the_same_bits_in_whatever_order_updates_came(
    seed: int, weights: list[int], chance: object
) -> None:
    found = deltas(seed, len(weights))
    updates = [Weighted(device, weight, ALL) for device, weight in zip(found, weights, strict=True)]
    mean = fold(updates, of(found), N, B)
    chance.shuffle(updates)  # type: ignore[attr-defined]
    again = fold(updates, of(found), N, B)
    assert mean.parameters.tobytes() == again.parameters.tobytes()
    assert mean.buffers.tobytes() == again.buffers.tobytes()


def test_the_fold_is_the_example_weighted_mean() -> None:
    found = deltas(1, 3)
    weights = [1, 10, 100]
    folded = fold([Weighted(d, w, ALL) for d, w in zip(found, weights, strict=True)], of(found), N, B)
    parameters, buffers = folded.parameters, folded.buffers
    expected = np.average([p for p, _ in found.values()], axis=0, weights=weights)
    np.testing.assert_allclose(parameters, expected, rtol=1e-12)
    np.testing.assert_allclose(buffers, np.average([b for _, b in found.values()], axis=0, weights=weights), rtol=1e-12)


def test_the_fold_decodes_each_payload_once() -> None:
    found, asked = deltas(2, 3), []

    def decode(update: Weighted) -> Decoded:
        asked.append(update.device)
        return found[update.device]

    fold([Weighted(d, 1, ALL) for d in reversed(found)], decode, N, B)
    assert asked == sorted(found)


def sliced(device: str, kept: int, found: dict[str, Decoded]) -> Weighted:
    """An update of a tier with the first so many parameters and the first running statistic."""
    parameters, buffers = found[device]
    found[device] = (parameters[:kept], buffers[:1])
    layout = Layout((slice(0, kept),), (slice(kept, kept + 1),), bytes(8))
    return Weighted(device, 1, layout, np.append(np.arange(kept), N))


def test_running_statistics_are_those_of_the_widest_models_alone() -> None:
    found = deltas(3, 3)
    updates = [Weighted("d0", 1, ALL), sliced("d1", 4, found), sliced("d2", 2, found)]
    folded = fold(updates, of(found), N, B)
    np.testing.assert_array_equal(folded.buffers, found["d0"][1].astype(np.float64))
    np.testing.assert_allclose(folded.parameters[:2], np.mean([p[:2] for p, _ in found.values()], axis=0))
    np.testing.assert_array_equal(folded.parameters[4:], found["d0"][0][4:].astype(np.float64))
    narrow = fold(updates[1:], of(found), N, B)
    np.testing.assert_array_equal(narrow.buffers, [np.float64(found["d1"][1][0]), 0.0])


def plain_mean(found: dict[str, Decoded], weights: list[int]) -> Decoded:
    """The fold of before there were variants, word for word: what every device trained whole must still come to."""
    parameters, buffers = np.zeros(N), np.zeros(B)
    for weight, (delta, buffer_delta) in zip(weights, found.values(), strict=True):
        parameters += float(weight) * delta.astype(np.float64)
        buffers += float(weight) * buffer_delta.astype(np.float64)
    total = float(sum(weights))
    return parameters / total, buffers / total  # type: ignore[return-value]


@given(st.integers(0, 2**32), st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
def test_where_all_trained_everything_the_fold_has_the_bits_of_the_plain_mean(seed: int, weights: list[int]) -> None:
    found = deltas(seed, len(weights))
    folded = fold([Weighted(d, w, ALL) for d, w in zip(found, weights, strict=True)], of(found), N, B)
    parameters, buffers = plain_mean(found, weights)
    assert (folded.parameters.tobytes(), folded.buffers.tobytes()) == (parameters.tobytes(), buffers.tobytes())
    assert folded.trained.all()


# Which elements of [parameters | buffers] a device trained, its weight, and the seed of its deltas.
trainers = st.lists(
    st.tuples(st.lists(st.booleans(), min_size=N + B, max_size=N + B), st.integers(1, 10**6), st.integers(0, 2**32)),
    min_size=1,
    max_size=6,
)


def parts_of(mask: list[bool], first: int) -> tuple[slice, ...]:
    """One part for each element, so that every way to cut a vector comes up; neighbours may be joined or not."""
    return tuple(slice(first + i, first + i + 1) for i, trained in enumerate(mask) if trained)


@given(trainers, st.randoms())
def test_each_tensor_is_the_mean_over_those_who_trained_it_and_zero_where_nobody_did(
    devices: list[tuple[list[bool], int, int]], chance: object
) -> None:
    dense, weighted, payloads = np.zeros(N + B), [], {}
    totals = np.zeros(N + B)
    for i, (mask, weight, seed) in enumerate(devices):
        values = np.random.default_rng(seed).normal(size=N + B).astype(np.float32)
        layout = Layout(parts_of(mask[:N], 0), parts_of(mask[N:], N), bytes(8))
        weighted.append(Weighted(f"d{i}", weight, layout))
        payloads[f"d{i}"] = (take(values, layout.parameters), take(values, layout.buffers))
        trained = np.array(mask)
        dense += np.where(trained, float(weight) * values.astype(np.float64), 0.0)
        totals += np.where(trained, weight, 0)
    chance.shuffle(weighted)  # type: ignore[attr-defined]
    folded = fold(weighted, of(payloads), N, B)
    expected = np.divide(dense, totals, out=np.zeros(N + B), where=totals > 0)
    assert np.concatenate([folded.parameters, folded.buffers]).tobytes() == expected.tobytes()
    np.testing.assert_array_equal(folded.trained, totals[:N] > 0)


@given(trainers)
def test_a_round_of_partial_updates_moves_no_parameter_that_nobody_trained_whatever_the_server_step(
    devices: list[tuple[list[bool], int, int]],
) -> None:
    trained = tuple(sorted({part.start for mask, _, _ in devices for part in parts_of(mask[:N], 0)}))
    moved = np.isin(np.arange(N), trained)
    folded = Folded(np.where(moved, DELTA + 2, 0), np.zeros(B), moved)
    for step in ("add", "momentum", "adam"):
        settings = ServerSettings(step=step)
        # The round before moved everything, so that there is momentum that could carry on.
        state, model = server_step(settings, initial_state(), MODEL, FOLDED)
        after = server_step(settings, state, model, folded)[1]
        np.testing.assert_array_equal(np.flatnonzero(after[:N] != model[:N]), trained)


MODEL = np.arange(N + B + 2, dtype=np.float32)
DELTA = np.linspace(-1, 1, N)
FOLDED = Folded(DELTA, np.full(B, 0.5), np.ones(N, bool))


def test_add_is_the_model_plus_the_mean() -> None:
    state, after = server_step(ServerSettings(learning_rate=0.5), initial_state(), MODEL, FOLDED)
    np.testing.assert_array_equal(after[:N], (MODEL[:N] + 0.5 * DELTA).astype(np.float32))
    assert (state.steps, len(state.first), len(state.second)) == (1, 0, 0)


def test_momentum_follows_its_formula_over_two_rounds() -> None:
    settings = ServerSettings(step="momentum", momentum=0.9)
    state, first = server_step(settings, initial_state(), MODEL, FOLDED)
    _, second = server_step(settings, state, first, FOLDED)
    np.testing.assert_allclose(second[:N] - first[:N], 1.9 * DELTA, rtol=1e-5, atol=1e-6)


def test_adam_follows_its_formula() -> None:
    settings = ServerSettings(step="adam", learning_rate=0.1, beta1=0.9, beta2=0.99, epsilon=1e-3)
    state, after = server_step(settings, initial_state(), MODEL, FOLDED)
    step = 0.1 * (0.1 * DELTA) / (np.sqrt(0.01 * DELTA**2) + 1e-3)
    np.testing.assert_allclose(after[:N], MODEL[:N] + step, rtol=1e-6)
    assert (len(state.first), len(state.second)) == (N, N)


@pytest.mark.parametrize("step", ["add", "momentum", "adam"])
def test_no_server_step_touches_frozen_tensors_or_its_input_and_buffers_are_added_plainly(step: str) -> None:
    settings = ServerSettings(step=step, learning_rate=0.3)  # type: ignore[arg-type]
    before = MODEL.copy()
    _, after = server_step(settings, initial_state(), MODEL, FOLDED)
    np.testing.assert_array_equal(MODEL, before)
    np.testing.assert_array_equal(after[N : N + B], MODEL[N : N + B] + 0.5)
    np.testing.assert_array_equal(after[N + B :], MODEL[N + B :])


@pytest.mark.parametrize("step", ["add", "momentum", "adam"])
def test_a_server_state_read_from_its_bytes_steps_to_the_same_bits(step: str) -> None:
    settings = ServerSettings(step=step)  # type: ignore[arg-type]
    state, model = server_step(settings, initial_state(), MODEL, FOLDED)
    again = unpack_state(pack_state(state))
    one, two = (server_step(settings, s, model, FOLDED)[1] for s in (state, again))
    assert one.tobytes() == two.tobytes()


def test_devices_with_the_fewest_rounds_are_asked_first() -> None:
    order = order_devices({"a": 3, "b": 0, "c": 1, "d": 0}, seed=1, round_number=5)
    assert set(order[:2]) == {"b", "d"}
    assert order[2:] == ("c", "a")


def test_ties_fall_by_seed_and_round_not_by_name_or_arrival() -> None:
    names = [f"d{i}" for i in range(20)]
    one = order_devices(dict.fromkeys(names, 0), 1, 1)
    assert one == order_devices(dict.fromkeys(reversed(names), 0), 1, 1)
    assert len({one, order_devices(dict.fromkeys(names, 0), 1, 2), order_devices(dict.fromkeys(names, 0), 2, 1)}) == 3


def test_over_many_rounds_every_device_is_asked_equally_often() -> None:
    asked = dict.fromkeys("abcdefg", 0)
    for number in range(1, 71):
        for device in order_devices(asked, 0, number)[:3]:
            asked[device] += 1
    assert set(asked.values()) == {30}


def test_the_schedules_follow_their_formulas() -> None:
    def rates(schedule: str, **more: object) -> list[float]:
        training = TrainingSettings(8, 0.4, local_steps=1, schedule=schedule, **more)  # type: ignore[arg-type]
        return [learning_rate(training, r, 4) for r in (1, 2, 3, 4)]

    assert rates("constant") == [0.4] * 4
    assert rates("step", decay_every=2, decay_factor=0.1) == pytest.approx([0.4, 0.4, 0.04, 0.04])
    assert rates("cosine") == pytest.approx([0.4, 0.2 * (1 + 0.5**0.5), 0.2, 0.2 * (1 - 0.5**0.5)])


@given(st.sampled_from(["constant", "cosine", "step"]), st.integers(1, 10**6), st.integers(1, 1000))
def test_no_schedule_ever_reaches_zero(schedule: str, number: int, count: int) -> None:
    training = TrainingSettings(8, 0.4, local_steps=1, schedule=schedule, decay_every=1)  # type: ignore[arg-type]
    assert 0 < learning_rate(training, number, count) <= 0.4


def test_seeds_differ_by_run_round_and_device_and_fit_the_wire() -> None:
    seeds = {task_seed(s, r, d) for s in range(3) for r in range(1, 4) for d in ("a", "b")}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert task_seed(1, 2, "a") == task_seed(1, 2, "a")


@given(st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=4), max_size=4), st.data())
def test_bytes_are_the_sum_of_each_boots_last_count_whatever_comes_twice_or_late(
    boots: list[list[int]], data: st.DataObject
) -> None:
    counts = [(boot, sum(sent[: i + 1])) for boot, sent in enumerate(boots, 1) for i in range(len(sent))]
    traffic = Traffic()
    for at, (boot, claim) in enumerate(counts):
        traffic = traffic.counted(boot, claim)
        repeated = data.draw(st.sampled_from(counts[: at + 1]))
        assert traffic.counted(*repeated) == traffic
    assert traffic.total_bytes == sum(sum(sent) for sent in boots)


def test_a_device_that_claims_the_most_in_boot_after_boot_still_fits_the_database_with_all_others() -> None:
    traffic = Traffic()
    for boot in range(1, 100):
        traffic = traffic.counted(boot, MAX_CLAIM_BYTES)
    assert traffic.total_bytes == MAX_CLAIM_BYTES
    assert 2 * MAX_KNOWN * MAX_CLAIM_BYTES < 1 << 63
