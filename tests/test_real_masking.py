"""A mask voted on by real processes over a real broker, through kills."""

import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from coordinator.structure import unpack_structure
from tests.conftest import require_broker
from tests.real_fleet import RealFleet
from tests.tiny import CLASSES, write_bundle, write_shard

pytestmark = pytest.mark.real

FEATURES, ROUNDS = 12, 6
D = CLASSES * FEATURES
WEIGHTS = np.random.default_rng(4).normal(size=D + CLASSES).astype(np.float32)
TRAINING = """local_steps = 8
[training.optimizer]
name = "adamw"
[server]
learning_rate = 0.5
[masking]
keep = 0.9"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RealFleet]:
    require_broker("mosquitto")
    make = partial(write_bundle, values=WEIGHTS)
    made = RealFleet(
        tmp_path, "mosquitto", ROUNDS, training=TRAINING, features=FEATURES, make_bundle=make, make_shard=write_shard
    )
    made.start()
    yield made
    made.stop()


def test_masks_are_voted_on_and_the_weights_stay_through_kills_of_an_agent_and_the_coordinator(
    fleet: RealFleet,
) -> None:
    fleet.until(lambda: len(fleet.committed()) >= 2)
    fleet.kill(fleet.agents["device-01"])
    fleet.start_agent("device-01")
    fleet.until(lambda: len(fleet.committed()) >= 3)
    assert fleet.coordinator is not None
    fleet.kill(fleet.coordinator)
    fleet.start_coordinator()
    fleet.finish()
    assert fleet.ask("replay")["same"] == ROUNDS
    fleet.settle()
    store = sqlite3.connect(fleet.folder / "coordinator" / "coordinator.sqlite")
    models = store.execute("SELECT digest, structure FROM models ORDER BY version").fetchall()
    payloads = store.execute("SELECT digest FROM updates").fetchall()
    store.close()
    assert len(models) == ROUNDS + 1
    assert len({digest for digest, _ in models}) == 1, "no version has other weights"
    kept = fleet.folder / "coordinator" / "models"
    assert (kept / models[0][0].hex()).read_bytes() == WEIGHTS.astype("<f4").tobytes()
    masks = [unpack_structure((kept / structure.hex()).read_bytes()).mask for _, structure in models]
    assert masks[0] is not None
    assert masks[0].all()
    assert masks[-1] is not None
    assert not masks[-1].all()
    sizes = {(fleet.folder / "coordinator" / "updates" / digest.hex()).stat().st_size for (digest,) in payloads}
    assert sizes == {20 + -(-D // 8)}
    assert len(payloads) == 3 * ROUNDS
