"""Local SGD by its identities, through the fold: what devices send is folded as any update is."""

import numpy as np

from coordinator.fold import Weighted, fold
from coordinator.intake import decode_payload
from edge_agent.runtimes import optimizers
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from protocol.layout import Layout
from sparse.codecs import encode_update, parse_codec

N, RATE, ROUNDS, CODEC = 12, 0.1, 20, "all/float32"
LAYOUT = Layout((slice(0, N),), (slice(N, N),), bytes(8), ((N,),))
# Examples of each device, all of them in every step.
EXAMPLES = {"aa": 5, "bb": 20, "cc": 11}
RNG = np.random.default_rng(4)
DATA = {name: RNG.standard_normal((count, N)).astype(np.float32) for name, count in EXAMPLES.items()}
NOTHING = np.zeros(0, np.float32)


def gradient(examples: Vector, x: Vector) -> Vector:
    """Of the mean over examples of |x - a|^4 / 4 and |x - a|^2 / 2, so that steps of different places do not add up."""
    apart = x - examples
    return np.asarray((apart + apart**3 * np.float32(0.05)).mean(axis=0), dtype=np.float32)


def steps_from(examples: Vector, x: Vector, count: int) -> Vector:
    settings = OptimizerSettings()
    state = optimizers.init(settings, N)
    for _ in range(count):
        state, x = optimizers.step(settings, state, x, gradient(examples, x), RATE)
    return x


def fleet(names: tuple[str, ...], local_steps: int) -> Vector:
    """The model after so many rounds of these devices."""
    x, spec = np.zeros(N, np.float32), parse_codec(CODEC)
    for _ in range(ROUNDS):
        payloads = {}
        for name in names:
            delta = steps_from(DATA[name], x, local_steps) - x
            payloads[name], _ = encode_update(
                delta, NOTHING, np.zeros(N, np.float32), spec, LAYOUT.digest, shapes=LAYOUT.shapes
            )
        decoded = {name: decode_payload(payload, CODEC, LAYOUT) for name, payload in payloads.items()}
        updates = [Weighted(name, EXAMPLES[name], LAYOUT) for name in names]
        x = x + fold(updates, lambda update: decoded[update.device], N, 0).parameters.astype(np.float32)  # noqa: B023
    return x


def test_local_sgd_with_h_1_equals_mini_batch_sgd_over_all_devices_examples() -> None:
    everything = np.concatenate(list(DATA.values()))
    np.testing.assert_allclose(
        fleet(tuple(DATA), 1), steps_from(everything, np.zeros(N, np.float32), ROUNDS), atol=1e-5
    )


def test_with_more_local_steps_it_is_not() -> None:
    everything = np.concatenate(list(DATA.values()))
    batch = steps_from(everything, np.zeros(N, np.float32), 4 * ROUNDS)
    assert np.abs(fleet(tuple(DATA), 4) - batch).max() > 1e-3


def test_local_sgd_of_one_device_equals_plain_sgd_for_every_h() -> None:
    for local_steps in (1, 4):
        alone = steps_from(DATA["bb"], np.zeros(N, np.float32), local_steps * ROUNDS)
        np.testing.assert_allclose(fleet(("bb",), local_steps), alone, atol=1e-5)
