"""CHOCO by its identities, and what float32 leaves of them."""

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse.gossip import choco, metropolis_hastings
from sparse.gossip.consensus import distance
from sparse.gossip.gamma import tune
from sparse.gossip.graph import parse_topology, ring
from tests.sparse.gossip.network import Problems, Vector, choco_round, compressor, row

CODECS = ["topk:0.1/float32/rice", "topk:0.05/ternary", "all/sign", "randk:0.1/float32", "all/qsgd:4", "all/float16"]
RATE = np.float32(0.1)


def begun(n: int, d: int) -> tuple[list[choco.Choco], list[Vector]]:
    start = np.random.default_rng(5).standard_normal(d, dtype=np.float32)
    return [choco.begin(start) for _ in range(n)], [start.copy() for _ in range(n)]


@pytest.mark.parametrize("topology", ["ring", "star", "exponential"])
def test_choco_with_identity_compression_and_gamma_1_equals_w_times_x_minus_eta_g(topology: str) -> None:
    n, d = 8, 20
    weights = metropolis_hastings(parse_topology(topology, n, np.random.default_rng(0)))
    problems, q = Problems.drawn(n, d), compressor("all/float32")
    states, models = begun(n, d)
    exact = np.stack(models).astype(np.float64)
    for _ in range(50):
        ys = [x - RATE * problems.gradient(i, x) for i, x in enumerate(models)]
        exact = weights @ np.stack([x - RATE * problems.gradient(i, x.astype(np.float32)) for i, x in enumerate(exact)])
        states, models = choco_round(states, ys, weights, q, gamma=1.0)
    # Both round each step to float32, at other places.
    np.testing.assert_allclose(np.stack(models), exact, atol=2e-6)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    hnp.arrays(np.float32, (6, 40), elements=st.floats(-100, 100, width=32)),
    st.sampled_from(CODECS),
    st.floats(0.001, 1.0),
)
def test_the_mean_of_the_network_is_preserved_for_any_codec_and_gamma(ys: Vector, codec: str, gamma: float) -> None:
    weights = metropolis_hastings(ring(6))
    states = [choco.begin(np.zeros(40, np.float32)) for _ in ys]
    before, models = ys.astype(np.float64).mean(axis=0), list(ys)
    for number in range(5):
        states, models = choco_round(states, models, weights, compressor(codec), gamma, number)
    largest = max(1.0, float(np.abs(models).max()))
    np.testing.assert_allclose(np.mean(models, axis=0, dtype=np.float64), before, atol=5 * 2**-24 * largest)


@pytest.mark.parametrize("codec", CODECS)
def test_receivers_s_equals_that_rebuilt_from_the_senders_copies(codec: str) -> None:
    n, d = 9, 200
    weights = metropolis_hastings(parse_topology("erdos-renyi:0.4", n, np.random.default_rng(3)))
    problems, q = Problems.drawn(n, d), compressor(codec)
    states, models = begun(n, d)
    for number in range(40):
        ys = [x - RATE * problems.gradient(i, x) for i, x in enumerate(models)]
        states, models = choco_round(states, ys, weights, q, gamma=0.05, number=number)
    for i, state in enumerate(states):
        near = row(weights, i)
        whole = choco.rebuilt(state.h, float(weights[i, i]), {j: states[j].h for j in near}, near)
        np.testing.assert_allclose(state.s, whole, rtol=0, atol=1e-12)


def test_the_network_mean_drifts_no_more_in_1000_rounds_than_float32_rounds() -> None:
    """Each round rounds every model once, up or down: a random walk. The copies' rounding would pull one way."""
    n, d = 8, 50
    weights, q = metropolis_hastings(ring(n)), compressor("topk:0.1/float32/rice")
    states, _ = begun(n, d)
    rng = np.random.default_rng(2)
    models: list[Vector] = [rng.standard_normal(d, dtype=np.float32) for _ in range(n)]
    before = np.mean(models, axis=0, dtype=np.float64)
    for number in range(1000):
        states, models = choco_round(states, models, weights, q, 0.2, number)
    drift = np.abs(np.mean(models, axis=0, dtype=np.float64) - before).max()
    assert drift < 1000**0.5 * 2**-25 * float(np.abs(models).max())
    assert distance(models) < 1e-5


def drift(rounded: type[np.floating]) -> float:
    """Of the network's mean after 300 noisy rounds whose copies were kept in this type."""
    n, d, rng = 8, 50, np.random.default_rng(2)
    weights, q = metropolis_hastings(ring(n)), compressor("topk:0.1/float32/rice")
    states, models = begun(n, d)
    due: npt.NDArray[np.float64] = np.mean(models, axis=0, dtype=np.float64)
    for number in range(300):
        noise = rng.standard_normal((n, d), dtype=np.float32) * np.float32(0.05)
        ys = [x + noise[i] for i, x in enumerate(models)]
        due = due + np.mean(ys, axis=0, dtype=np.float64) - np.mean(models, axis=0, dtype=np.float64)
        states, models = choco_round(states, ys, weights, q, 0.2, number)
        kept = [(state.h.astype(rounded), state.s.astype(rounded)) for state in states]
        states = [choco.Choco(h.astype(np.float64), s.astype(np.float64)) for h, s in kept]
    return float(np.abs(np.mean(models, axis=0, dtype=np.float64) - due).max())


def test_copies_kept_in_float32_would_pull_the_mean_away_many_times_faster() -> None:
    assert drift(np.float32) > 5 * drift(np.float64)


def test_what_the_sender_adds_to_its_copy_is_what_receivers_decode() -> None:
    q = compressor("topk:0.1/float16/rice")
    state, y = choco.begin(np.zeros(100, np.float32)), np.random.default_rng(0).standard_normal(100, dtype=np.float32)
    payload, own = choco.say(state, y, q)
    assert own.tobytes() == q.decode(payload, 100).tobytes()
    assert own.tobytes() != y.tobytes()


def test_the_tuned_gamma_of_1_percent_topk_on_a_ring_of_9_is_near_the_authors_and_that_of_sign_is_larger() -> None:
    weights, rng = metropolis_hastings(ring(9)), np.random.default_rng(1)
    topk = tune(weights, compressor("topk:0.01/float32/rice"), 500, rng, 400, (0.005, 0.02, 0.04, 0.08, 0.3))
    sign = tune(weights, compressor("all/sign@whole"), 200, rng, 100, (0.005, 0.04, 0.45))
    assert 0.02 <= topk.gamma <= 0.08
    assert topk.trials[-1].error > 1, "a gamma far too large does not converge"
    assert sign.gamma == 0.45


def test_a_codec_that_brings_no_devices_together_is_refused_with_a_remedy() -> None:
    weights = metropolis_hastings(ring(5))
    with pytest.raises(ValueError, match="use a codec that keeps more"):
        tune(weights, compressor("topk:0.01/float32/rice"), 300, np.random.default_rng(0), 150, (0.9, 1.0))
