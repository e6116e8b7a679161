"""The model as compressed differences: what devices hold follows the dense one, through kills, absences and rot."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.downlink import check_downlink, publish, steps_for
from coordinator.rows import ModelVersion
from coordinator.settings import DownlinkSettings, LimitSettings, Settings, SparsitySettings, TierSettings
from coordinator.store import Store
from edge_agent.runtimes.engine import Vector
from protocol.errors import ConfigurationError, SparsefleetError
from protocol.layout import layout_of
from protocol.messages import BlobRef, Difference, Need, Task
from sparse.codecs import apply_difference
from tests import tiny
from tests.coordinator.old_stores import age
from tests.coordinator.simulation import HEAD, Simulation, examine, make_settings
from tests.coordinator.test_crashes import arm, run_through
from tests.coordinator.test_fleet_mask import Fleet, RealAgent

CODEC = "topk:0.1/int8"
PARAMETERS, FEATURES = 2000, 400


def simulated(folder: Path, codec: str = CODEC, **rounds: Any) -> Simulation:
    """Agents that train by formula, and fetch whole models, with buffers."""
    made = Simulation.make(folder, parameters=PARAMETERS, **rounds)
    made.kill()
    made.settings = replace(made.settings, downlink=DownlinkSettings(codec))
    made.start()
    return made


def real(folder: Path, count: int = 6, devices: int = 2, keep_versions: int = 8, codec: str = CODEC) -> Fleet:
    """Agents as devices run them, two of them to begin with."""
    made = make_settings(folder, count=count, devices=devices)
    training = replace(made.training, local_steps=3, learning_rate=0.2)
    settings = replace(made, training=training, downlink=DownlinkSettings(codec, keep_versions))
    fleet = Fleet(folder, settings, tiny.write_bundle(folder / "bundle", features=FEATURES), examine=examine)
    fleet.start()
    for i in range(2):
        fleet.add(f"dev-{i}")
    return fleet


@pytest.fixture
def fleets() -> Iterator[list[Fleet]]:
    made: list[Fleet] = []
    yield made
    for fleet in made:
        fleet.close()


def record(agent: RealAgent) -> list[bytes]:
    """What the agent asks for from now on."""
    asked: list[bytes] = []
    send = agent.agent._link.send

    def recording(channel: Any, body: Any, **rest: Any) -> bool:
        if isinstance(body, Need):
            asked.append(body.digest)
        return send(channel, body, **rest)

    agent.agent._link.send = recording  # type: ignore[method-assign]
    return asked


def versions(fleet: Simulation) -> list[tuple[object, ...]]:
    return fleet.store._sql.execute(
        "SELECT version, digest, public, difference, structure FROM models ORDER BY version"
    ).fetchall()


def dense_of(fleet: Simulation, version: int) -> Vector:
    row = fleet.store._sql.execute("SELECT digest FROM models WHERE version = ?", (version,)).fetchone()
    return np.frombuffer(fleet.store.models.read(row[0]), "<f4").astype(np.float32)


def followed(fleet: Simulation) -> list[Vector]:
    """What devices hold of each version, made from the exported model by the stored differences."""
    current = fleet.store.current()
    assert current is not None
    layout = layout_of(fleet.bundle.manifest, "full")
    held = [dense_of(fleet, 0)]
    for step in fleet.store.differences(current.version, 64):
        payload = fleet.store.models.read(step.blob.digest)
        held.append(
            apply_difference(held[-1], payload, layout.n_parameters, layout.n_buffers, layout.digest, layout.shapes)
        )
    return held


def test_devices_follow_the_dense_model_and_what_is_left_out_comes_later(tmp_path: Path) -> None:
    fleet = simulated(tmp_path, count=5)
    fleet.finish()
    held = followed(fleet)
    current = fleet.store.current()
    assert current is not None
    assert len(held) == 6
    assert fleet.store.models.read(current.published.digest) == held[-1].tobytes()
    # An update is tried on what its device holds.
    assert fleet.coordinator._course.versions.view("full").model.tobytes() == held[-1].tobytes()
    for n in range(5):
        before, after = dense_of(fleet, n), dense_of(fleet, n + 1)
        sent = held[n + 1].astype(np.float64) - held[n]
        residual = [x.astype(np.float64) - h for x, h in ((before, held[n]), (after, held[n + 1]))]
        assert np.count_nonzero(residual[1])
        # What was sent and what is left is what was to be sent and what was left before.
        np.testing.assert_allclose(sent + residual[1], (after.astype(np.float64) - before) + residual[0], atol=1e-12)
        # Running statistics are exact.
        assert held[n + 1][PARAMETERS:].tobytes() == after[PARAMETERS:].tobytes()
    fleet.store.close()


def test_the_default_sends_every_version_whole_and_says_nothing_new(tmp_path: Path) -> None:
    plain, compressed = simulated(tmp_path / "a", "all/float32"), simulated(tmp_path / "b")
    for fleet in (plain, compressed):
        fleet.finish()
    assert all(row[2] is row[3] is None for row in versions(plain))
    for agent in plain.agents.values():
        assert all(not body.differences for body in agent.heard if isinstance(body, Task))
    # These agents' deltas do not depend on the model that they get, so the dense models are the same.
    assert plain.model() == compressed.model()
    for fleet in (plain, compressed):
        fleet.store.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    fleet = simulated(tmp_path_factory.mktemp("undisturbed"))
    fleet.finish()
    found = versions(fleet)
    fleet.store.close()
    return found


FAILPOINTS = [
    pytest.param(part, method, when, nth, id=f"{when}-{part}-{method}-{nth}")
    for part, method, calls in (
        ("store", "open_round", (1, 3)),
        ("store", "accept", (2, 4)),
        ("store", "put_model", (1, 2, 3, 4, 5, 8)),
        ("store", "commit_round", (1, 3)),
        ("store", "sweep", (1, 2)),
        ("link", "send", (4,)),
    )
    for when in ("before", "after")
    for nth in calls
]


@pytest.mark.parametrize(("part", "method", "when", "nth"), FAILPOINTS)
def test_a_kill_anywhere_leaves_the_same_bits_on_both_sides(
    part: str, method: str, when: str, nth: int, tmp_path: Path, undisturbed: list[tuple[object, ...]]
) -> None:
    fleet = simulated(tmp_path)
    targets = {"store": fleet.store, "link": fleet.coordinator._link}
    run_through(fleet, arm(targets[part], method, when, nth))
    assert versions(fleet) == undisturbed
    assert len(followed(fleet)) == 4
    assert not fleet.rejected
    fleet.store.close()


def test_real_devices_fetch_differences_and_hold_the_bits_that_the_coordinator_says(
    tmp_path: Path, fleets: list[Fleet]
) -> None:
    fleet = real(tmp_path)
    fleets.append(fleet)
    asked = {device: record(agent) for device, agent in fleet.agents.items()}
    fleet.finish()
    sent = [row[3] for row in versions(fleet)][1:-1]
    whole = [row[2] for row in versions(fleet)][1:]
    for device in fleet.agents:
        assert set(sent) <= set(asked[device])
        assert not set(whole) & set(asked[device]), "not one model was fetched whole after the first"
    assert all(len(update.task.differences) == 1 for update in fleet.store.accepted(3))
    _, *later = [committed.bytes_down for committed in fleet.committed]
    # Tasks, chunks and receipts of both devices, against two whole models.
    assert max(later) < 2 * (FEATURES + 1) * 2 * 4 / 2.5


def test_both_sides_killed_again_and_again_end_with_the_same_bits(tmp_path: Path, fleets: list[Fleet]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    calm, shaken = real(tmp_path / "a", count=4), real(tmp_path / "b", count=4)
    fleets += [calm, shaken]
    calm.finish()
    for i, turns in enumerate((3, 9, 5, 14, 8, 21)):
        for _ in range(turns):
            shaken.turn()
        if i % 2:
            shaken.kill()
            shaken.start()
        shaken.agents[f"dev-{i % 2}"].kill()
    shaken.finish()
    assert versions(calm) == versions(shaken)


def test_who_joins_late_or_was_away_too_long_gets_the_whole_model_and_who_was_away_shortly_does_not(
    tmp_path: Path, fleets: list[Fleet]
) -> None:
    fleet = real(tmp_path, count=20, keep_versions=5)
    fleets.append(fleet)

    def absent(device: str, rounds: int) -> list[bytes]:
        """What it asks for in its first round after so many without it."""
        fleet.broker.cut(device)
        away = fleet.agents.pop(device)
        wanted = len(fleet.committed) + rounds
        fleet.until(lambda: len(fleet.committed) >= wanted)
        fleet.agents[device] = away
        away.kill()
        asked = record(away)
        fleet.until(lambda: bool(away.store.outbox()) or fleet.coordinator.finished)
        return asked

    fleet.until(lambda: len(fleet.committed) == 2)
    late = fleet.add("dev-2")
    asked = record(late)
    fleet.until(lambda: bool(late.store.outbox()))
    whole = {row[2] for row in versions(fleet)}
    assert set(asked) & whole
    assert fleet.coordinator._course.asking._tasks["dev-2"].differences == (), (
        "who has nothing is told of no steps from it"
    )
    fleet.until(lambda: not late.store.outbox())
    asked = absent("dev-2", 2)
    assert asked
    assert not set(asked) & {row[2] for row in versions(fleet)}
    fleet.until(lambda: not late.store.outbox())
    asked = absent("dev-2", 8)
    assert set(asked) & {row[2] for row in versions(fleet)}
    fleet.finish()
    assert not fleet.rejected


def test_a_device_whose_model_rotted_falls_back_and_the_run_goes_on(
    tmp_path: Path, fleets: list[Fleet], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    sound, rotten = real(tmp_path / "a", count=3), real(tmp_path / "b", count=3)
    fleets += [sound, rotten]
    sound.finish()
    rotten.until(lambda: len(rotten.committed) == 1)
    for path in (tmp_path / "b" / "dev-0" / "state" / "blobs").iterdir():
        if path.stat().st_size == (FEATURES + 1) * 2 * 4:
            path.write_bytes(b"\x07" * path.stat().st_size)
    caplog.set_level(logging.WARNING)
    rotten.finish()
    assert "the whole model is fetched" in caplog.text
    assert versions(rotten) == versions(sound)


def test_the_coordinator_keeps_what_devices_may_need_and_no_more(tmp_path: Path) -> None:
    fleet = simulated(tmp_path, count=5)
    fleet.kill()
    fleet.settings = replace(fleet.settings, downlink=DownlinkSettings(CODEC, keep_versions=2))
    fleet.start()
    fleet.finish()
    table = versions(fleet)
    kept = {bytes.fromhex(path.name) for path in fleet.store.models.root.iterdir()}
    assert kept & {row[3] for row in table} == {row[3] for row in table[-2:]}
    assert kept & {row[2] for row in table} == {table[-1][2]}
    fleet.store.close()


def test_a_model_that_devices_hold_stays_however_little_room_there_is(tmp_path: Path) -> None:
    store = Store(tmp_path, LimitSettings(disk_mib=16))
    first, second = (store.put_model(bytes([i]) * (3 << 20)) for i in (1, 2))
    store.add_initial(ModelVersion(0, first, bytes(32), None, {}))
    # Nothing that the codec could say had changed: devices hold the exported model still.
    store.add_initial(ModelVersion(1, second, bytes(32), None, {}, public=first))
    with pytest.raises(SparsefleetError, match="limit"):
        store.put_model(bytes(3 << 20))
    assert store.models.has(first.digest)
    store.close()


def test_the_codec_may_change_between_two_starts(tmp_path: Path, fleets: list[Fleet]) -> None:
    fleet = real(tmp_path, count=6)
    fleets.append(fleet)
    for number, codec in ((2, "all/float32"), (4, "all/int4")):
        fleet.until(lambda n=number: len(fleet.committed) == n)  # type: ignore[misc]
        fleet.kill()
        fleet.settings = replace(fleet.settings, downlink=DownlinkSettings(codec))
        fleet.start()
    fleet.finish()
    assert [row[2] is not None for row in versions(fleet)] == [False, True, True, False, False, True, True]
    assert not fleet.rejected


def test_a_store_of_before_there_were_differences_is_brought_up_to_date(tmp_path: Path) -> None:
    fleet = simulated(tmp_path, "all/float32")
    fleet.until(lambda: len(fleet.committed) == 1)
    fleet.kill()
    age(tmp_path / "state", 4)
    fleet.settings = replace(fleet.settings, downlink=DownlinkSettings(CODEC))
    fleet.start()
    fleet.finish()
    assert [row[3] is not None for row in versions(fleet)] == [False, False, True, True]
    fleet.store.close()


def test_a_tier_gets_its_slice_of_what_devices_hold_and_no_differences(tmp_path: Path) -> None:
    tiers = TierSettings(assign={"dev-1": "tier-050"})
    fleet = Simulation.make(tmp_path, parameters=PARAMETERS, tiers=tiers)
    fleet.kill()
    fleet.settings = replace(fleet.settings, downlink=DownlinkSettings(CODEC))
    fleet.start()
    fleet.finish()
    tasks = {update.device: update.task for update in fleet.store.accepted(3)}
    assert [len(tasks[f"dev-{i}"].differences) for i in range(3)] == [1, 0, 1]
    # The channels are the head's, which come last.
    held = followed(fleet)[2]
    seen = np.frombuffer(fleet.agents["dev-1"].models[tasks["dev-1"].model.digest], "<f4")
    assert seen[: PARAMETERS - HEAD].tobytes() == held[: PARAMETERS - HEAD].tobytes()
    assert not fleet.rejected
    fleet.store.close()


def public_of(folder: Path, codec: str, change: Vector) -> tuple[bool, int]:
    """Whether a version that is so far from the one before is published whole, and how many blobs are put."""
    bundle = tiny.write_bundle(folder / "bundle", features=FEATURES)
    settings = replace(make_settings(folder), downlink=DownlinkSettings(codec))
    held = np.zeros(bundle.manifest.total, np.float32)
    put: list[bytes] = []

    def store(data: bytes) -> BlobRef:
        put.append(data)
        return BlobRef(bytes(32), len(data))

    made = publish(settings, layout_of(bundle.manifest, "full"), held, held + change, 1, store)
    return made.blob is None, len(put)


NOISE = np.random.default_rng(1).normal(size=(FEATURES + 1) * 2).astype(np.float32)


@pytest.mark.parametrize(
    ("codec", "change", "whole"),
    [
        pytest.param(CODEC, NOISE, False, id="a difference"),
        pytest.param(CODEC, NOISE * 0, False, id="nothing changed"),
        pytest.param("all/float32", NOISE, True, id="the default"),
        pytest.param("all/qsgd:1", NOISE, True, id="farther away than before"),
        pytest.param(CODEC, np.where(NOISE > 2, np.inf, NOISE), True, id="not finite"),
    ],
)
def test_a_version_is_published_whole_where_a_difference_would_not_help(
    codec: str, change: Vector, whole: bool, tmp_path: Path
) -> None:
    assert public_of(tmp_path, codec, change) == (whole, 0 if whole else 2)


def test_a_task_names_the_steps_from_what_the_device_had_and_no_more_bytes_than_the_model() -> None:
    steps = tuple(Difference(bytes([i]) * 32, BlobRef(bytes(32), 30)) for i in range(4))
    model = BlobRef(bytes(32), 100)
    assert steps_for(steps, model, 10, 9) == steps[3:]
    assert steps_for(steps, model, 10, 8) == steps[2:]
    assert steps_for(steps, model, 10, 0) == steps[1:], "the fourth would make them no smaller than the model"
    assert steps_for(steps, BlobRef(bytes(32), 30), 10, 9) == ()


def test_where_differences_would_save_nothing_the_settings_are_refused(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    with pytest.raises(ValueError, match=r"downlink.codec: under a mask the model travels whole"):
        replace(settings, sparsity=SparsitySettings(final=0.5), downlink=DownlinkSettings(CODEC))
    compressed = replace(settings, downlink=DownlinkSettings(CODEC))
    with pytest.raises(ConfigurationError, match="the model of this run is under a mask"):
        check_downlink(compressed, masked=True)
    check_downlink(compressed, masked=False)
    check_downlink(settings, masked=True)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"codec": "mask/float16"}, "needs a mask"),
        ({"codec": "topk/int9"}, "is not a codec"),
        ({"keep_versions": 0}, "from 1 to 64"),
        ({"keep_versions": 65}, "from 1 to 64"),
    ],
)
def test_a_bad_setting_is_named_with_what_works(wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DownlinkSettings(**wanted)


def test_settings_without_a_downlink_are_as_before(tmp_path: Path) -> None:
    settings: Settings = make_settings(tmp_path)
    assert not settings.downlink.compressed
