"""What folds remember of devices: who is a little off in every round is found out, and an accident is forgotten."""

import numpy as np
import pytest

from coordinator.fold import Weighted
from coordinator.robust import robust_fold
from coordinator.server_step import initial_state, pack_state, server_step, unpack_state
from coordinator.settings import ServerSettings
from coordinator.standing import NEW, Standing, pack_standing, remember, unpack_standing
from coordinator.trust_settings import FoldSettings
from protocol.layout import Vector
from tests.coordinator.test_robust import ALL, HERE, B, N, honest

DEVICES = [f"d{i}" for i in range(7)]
RULE = FoldSettings("multi-krum", byzantine=1, memory=0.9)


def round_of(number: int, off: float) -> dict[str, tuple[Vector, Vector]]:
    """Updates with much noise of their own, and a liar's, d0, that is a little off in the same way each time."""
    rng = np.random.default_rng(number)
    found = {d: (rng.normal(0, 1, N).astype(np.float32), np.zeros(B, np.float32)) for d in DEVICES}
    found["d0"][0][:] += np.float32(off)
    return found


def left_out(settings: FoldSettings, rounds: int) -> list[str]:
    """By the devices' last running statistic, who was not averaged in each round."""
    standing: Standing = NEW
    absent = []
    for number in range(rounds):
        found = round_of(number, 0.7)
        for i, device in enumerate(DEVICES):
            found[device][1][0] = 2.0**i
        updates = [Weighted(d, 1, ALL) for d in DEVICES]
        folded = robust_fold(settings, updates, lambda u, f=found: f[u.device], N, B, HERE, b"", standing)  # type: ignore[misc]
        standing = folded.standing
        total = round(folded.buffers[0] * (len(DEVICES) - 1))
        absent.append(DEVICES[int(np.log2(2 ** len(DEVICES) - 1 - total))])
    return absent


def test_who_is_off_in_every_round_is_found_out_where_one_round_does_not_tell() -> None:
    forgetful = left_out(FoldSettings("multi-krum", byzantine=1), 60)
    remembering = left_out(RULE, 60)
    assert forgetful[20:].count("d0") < 30
    assert remembering[20:].count("d0") > 36


def test_a_score_is_the_faded_mean_of_the_devices_own() -> None:
    _, first = remember(NEW, 0.5, ["a", "b", "c"], np.array([1.0, 2.0, 8.0]))
    scores, second = remember(first, 0.5, ["a", "b", "c"], np.array([2.0, 2.0, 2.0]))
    np.testing.assert_allclose(scores, [(0.25 + 1.0) / 1.5, 1.0, (2.0 + 1.0) / 1.5])
    assert second["c"] == (3.0, 1.5)
    assert first["c"] == (4.0, 1.0), "what is handed in is not changed"


def test_a_newcomer_is_judged_by_its_first_fold_and_an_absent_device_is_not_forgotten() -> None:
    _, known = remember(NEW, 0.9, ["a", "b"], np.array([1.0, 3.0]))
    scores, after = remember(known, 0.9, ["b", "c"], np.array([1.0, 1.0]))
    assert scores[1] == 1.0
    assert after["a"] == known["a"]


def test_an_accident_counts_no_more_than_ten_times_and_fades() -> None:
    _, standing = remember(NEW, 0.9, ["a", "b", "c"], np.array([1.0, 1.0, 1e30]))
    assert standing["c"] == (10.0, 1.0)
    for _ in range(60):
        scores, standing = remember(standing, 0.9, ["a", "b", "c"], np.array([1.0, 1.0, 0.9]))
    assert scores[2] < 1.0


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [np.inf] * 3, [0.0, 0.0, 1.0], [1.0, np.inf, np.inf], [0.0]])
def test_scores_that_cannot_be_compared_are_finite_all_the_same(scores: list[float]) -> None:
    found, standing = remember(NEW, 0.9, DEVICES[: len(scores)], np.array(scores))
    assert np.isfinite(found).all()
    assert remember(standing, 0.9, DEVICES[: len(scores)], np.array(scores))[0].tolist() == found.tolist()


def test_a_device_with_two_updates_in_a_fold_is_judged_by_both() -> None:
    scores, _ = remember(NEW, 0.9, ["a", "a", "b"], np.array([1.0, 3.0, 1.0]))
    assert scores.tolist() == [2.0, 2.0, 1.0]


def test_a_standing_is_kept_beside_the_server_state_to_the_bit_and_old_states_have_none() -> None:
    _, standing = remember(NEW, 0.9, DEVICES, np.random.default_rng(1).random(7))
    assert unpack_standing(pack_standing(standing)) == standing
    folded = robust_fold(RULE, [Weighted(d, 1, ALL) for d in honest(5)], lambda u: honest(5)[u.device], N, B, HERE)
    for step in ("add", "momentum", "adam"):
        state, _ = server_step(ServerSettings(step), initial_state(), np.zeros(N + B, np.float32), folded)
        assert unpack_state(pack_state(state)).standing == {}
        kept = type(state)(state.steps, state.first, state.second, standing)
        again = unpack_state(pack_state(kept))
        assert again.standing == standing
        np.testing.assert_array_equal(again.first, kept.first)
        assert pack_state(again) == pack_state(kept)


def test_rules_without_memory_remember_nobody() -> None:
    found = honest(7)
    for settings in (FoldSettings("median"), FoldSettings("multi-krum"), FoldSettings("geometric-median")):
        folded = robust_fold(settings, [Weighted(d, 1, ALL) for d in found], lambda u: found[u.device], N, B, HERE)
        assert folded.standing == {}
