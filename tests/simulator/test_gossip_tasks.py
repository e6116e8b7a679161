"""What becomes of a task of a fleet without a hub: it waits for neighbours, is paused, withdrawn, cut off, trained in a
process that dies; and its device's own model is measured apart from the fleet's."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.data import DataSettings, load
from edge_agent.eligibility import Conditions, EligibilitySettings
from edge_agent.gossip.node import Vector
from edge_agent.held_out import divided, measured
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.settings import TrainingSettings
from edge_agent.status import Status, StatusKeeper
from edge_agent.status_command import report
from protocol.gossip import Membership, Neighbour, Standing
from protocol.messages import INELIGIBLE, Withdraw
from sparse.gossip.choco import Choco
from tests.simulator.gossip_hall import RUN, SETTINGS, Device, Hall
from tests.tiny import TOTAL

START = (np.arange(1, TOTAL + 1) / 10).astype(np.float32)
COOL, HOT = Conditions(temperature_c=40.0), Conditions(temperature_c=90.0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    hall = Hall(tmp_path_factory.mktemp("undisturbed"))
    hall.assign(1, START, 8)
    found = bits(hall.collect(1))
    hall.end()
    return found


def bits(models: dict[str, Vector]) -> dict[str, bytes]:
    return {name: model.tobytes() for name, model in models.items()}


def exchanges(device: Device) -> int:
    gossip = device.agent.standing().gossip
    return 0 if gossip is None else gossip.position


def test_a_task_waits_for_neighbours_and_says_so(tmp_path: Path, halls: list[Hall]) -> None:
    hall = Hall(tmp_path, replace(SETTINGS, first=5))
    halls.append(hall)
    hall.assign(1, START, 3)
    hall.until(lambda: len(hall.reports) == 4)
    for _ in range(50):
        hall.turn()
    device = hall.devices["aa"]
    said = device.agent.standing()
    assert (said.phase, said.gossip and said.gossip.why) == ("training", "it was told of no neighbours yet")
    assert device.agent._trainer.done == TrainingSettings().trial_steps
    assert hall.standings["aa"][-1] == Standing(0, 0, 0.0)
    assert hall.council.epoch == 0
    hall.settings = SETTINGS
    hall.collect(1)


def test_after_the_last_exchange_nothing_is_trained_until_the_next_task(tmp_path: Path, halls: list[Hall]) -> None:
    hall = Hall(tmp_path)
    halls.append(hall)
    hall.assign(1, START, 3)
    hall.collect(1)
    for _ in range(200):
        hall.turn()
    assert {exchanges(device) for device in hall.devices.values()} == {3}
    said = hall.devices["aa"].agent.standing()
    assert (said.phase, said.gossip and said.gossip.why) == ("idle", "no task in hand")
    offer = hall.updates["aa", 1].offer
    assert (offer.steps, offer.base) == (6, hall.tasks["aa"].model.digest)
    assert 0.0 < offer.loss < 10.0
    assert offer.own is offer.held_out is None


def test_what_a_device_holds_out_measures_the_tasks_model_and_apart_from_it_its_own(
    tmp_path: Path, halls: list[Hall]
) -> None:
    hall = Hall(tmp_path, data={"hold_out": 0.3})
    halls.append(hall)
    hall.assign(1, START, 4)
    models, engine = hall.collect(1), NumpyEngine(hall.bundle)
    for name, device in hall.devices.items():
        settings = DataSettings(path="shard.npz", hold_out=0.3)
        data = load(settings, hall.bundle.manifest, device.folder)
        held = divided(data, settings, hall.bundle.manifest, device.folder)[1]
        assert held is not None
        offer = hall.updates[name, 1].offer
        for said, model in ((offer.held_out, START), (offer.own, models[name])):
            expected = measured(lambda batch: engine.evaluate(model, batch), held)  # noqa: B023
            assert said is not None
            assert expected is not None
            assert (said.examples, said.accuracy) == (expected.examples, expected.accuracy)
            assert said.loss == pytest.approx(expected.loss, rel=1e-5)
        assert offer.own != offer.held_out


def test_a_task_that_is_withdrawn_leaves_the_node_where_it_is_and_the_next_one_goes_on(
    tmp_path: Path, halls: list[Hall]
) -> None:
    hall = Hall(tmp_path)
    halls.append(hall)
    hall.assign(1, START, 50)
    hall.until(lambda: exchanges(hall.devices["aa"]) >= 3)
    hall.tasks.clear()
    for name in hall.devices:
        hall.say(name, Withdraw("run/1", "deadline"))
    for _ in range(100):
        hall.turn()
    at = {name: exchanges(device) for name, device in hall.devices.items()}
    assert max(at.values()) - min(at.values()) <= 2
    assert {device.agent.job.phase for device in hall.devices.values()} == {"idle"}
    for device in hall.devices.values():
        device.restart()
    until = max(at.values()) + 2
    hall.assign(2, START, until)
    hall.collect(2)
    assert {exchanges(device) for device in hall.devices.values()} == {until}


@dataclass
class Weather:
    now: Conditions = COOL

    def conditions(self, wall_s: float, *, training: bool) -> Conditions:
        return self.now

    def written_bytes(self) -> int | None:
        return 0


def test_a_device_that_may_not_train_holds_its_neighbours_up_and_changes_no_bit(
    tmp_path: Path, halls: list[Hall], undisturbed: dict[str, bytes]
) -> None:
    weather = Weather()
    rules = EligibilitySettings(most_temperature_c=80.0, interval_s=1.0, wait_s=60.0)
    hall = Hall(tmp_path, eligibility=rules, source=weather)
    halls.append(hall)
    hall.assign(1, START, 8)
    hall.until(lambda: exchanges(hall.devices["aa"]) >= 3)
    weather.now = HOT
    hall.now += 2.0
    hall.until(lambda: {d.agent.job.phase for d in hall.devices.values()} == {"waiting"})
    assert hall.reports["aa"][-1].reason == INELIGIBLE
    before = {name: exchanges(device) for name, device in hall.devices.items()}
    for _ in range(100):
        hall.turn()
    assert all(exchanges(device) <= before[name] + 1 for name, device in hall.devices.items())
    weather.now = COOL
    assert bits(hall.collect(1)) == undisturbed


def test_a_device_without_a_connection_goes_on_when_it_has_one(
    tmp_path: Path, halls: list[Hall], undisturbed: dict[str, bytes]
) -> None:
    hall = Hall(tmp_path)
    halls.append(hall)
    hall.assign(1, START, 8)
    for name in ("aa", "cc", "aa"):
        at = exchanges(hall.devices[name])
        hall.until(lambda: exchanges(hall.devices[name]) > at)  # noqa: B023
        hall.broker.cut(name)
        for _ in range(30):
            hall.turn()
        assert max(exchanges(device) for device in hall.devices.values()) < 8
        hall.broker.restore(name)
    assert bits(hall.collect(1)) == undisturbed


@pytest.mark.native
def test_training_in_a_process_of_its_own_that_is_killed_comes_to_the_same_bits(
    tmp_path: Path, halls: list[Hall], undisturbed: dict[str, bytes]
) -> None:
    hall = Hall(tmp_path, children=True)
    halls.append(hall)
    hall.assign(1, START, 8)
    device = hall.devices["bb"]
    for at in (1, 3):
        hall.until(lambda: exchanges(device) >= at)  # noqa: B023
        assert device.child is not None
        device.child._process.kill()
    assert bits(hall.collect(1)) == undisturbed


def test_a_model_that_is_no_number_any_more_is_not_said_to_anybody(tmp_path: Path, halls: list[Hall]) -> None:
    hall = Hall(tmp_path, replace(SETTINGS, local_steps=1))
    halls.append(hall)
    hall.assign(1, START, 3)
    hall.collect(1)
    hall.assign(2, START, 8, learning_rate=1e39)
    hall.until(lambda: all(of[-1].state == "failed" for of in hall.reports.values()))
    assert {(of[-1].reason, of[-1].detail.partition(":")[0]) for of in hall.reports.values()} == {
        ("diverged", "exchange 4")
    }
    assert {exchanges(device) for device in hall.devices.values()} == {3}
    # Nothing is lost: the next task goes on from there.
    hall.assign(3, START, 5)
    assert all(np.isfinite(model).all() for model in hall.collect(3).values())


def test_an_epoch_with_a_codec_that_is_not_known_here_is_not_begun(
    tmp_path: Path, halls: list[Hall], caplog: pytest.LogCaptureFixture
) -> None:
    hall = Hall(tmp_path)
    halls.append(hall)
    hall.assign(1, START, 8)
    hall.until(lambda: exchanges(hall.devices["aa"]) >= 2)
    near = (Neighbour("bb", 0.3), Neighbour("dd", 0.3))
    hall.say("aa", Membership(RUN, 2, near, "tomorrow/float4", 0.5))
    hall.collect(1)
    assert "codec=tomorrow/float4 is not known here; upgrade this agent" in caplog.text


def test_a_difference_too_large_for_float32_ends_the_task_and_is_not_said(tmp_path: Path, halls: list[Hall]) -> None:
    hall = Hall(tmp_path, replace(SETTINGS, local_steps=1))
    halls.append(hall)
    hall.assign(1, START, 3)
    hall.collect(1)
    for device in hall.devices.values():
        talk = device.agent._gossiping._talk
        assert talk is not None
        assert talk.node.choco is not None
        # As far from the model as finite numbers get.
        far = Choco(np.full(TOTAL, -3e38), talk.node.choco.s)
        talk.node = replace(talk.node, choco=far, x=np.full(TOTAL, 3e38, np.float32))
        device.agent._gossiping._due = replace(device.agent._gossiping._due, x=talk.node.x)  # type: ignore[type-var]
    hall.assign(2, START, 8)
    hall.until(lambda: all(of[-1].state == "failed" for of in hall.reports.values()))
    assert {of[-1].reason for of in hall.reports.values()} == {"diverged"}
    assert {exchanges(device) for device in hall.devices.values()} == {3}


def test_status_says_how_far_gossip_is_and_whom_it_waits_for(tmp_path: Path, halls: list[Hall]) -> None:
    hall = Hall(tmp_path)
    halls.append(hall)
    hall.assign(1, START, 50)
    device = hall.devices["aa"]
    hall.until(lambda: exchanges(device) >= 3)
    hall.broker.cut("bb")
    for _ in range(30):
        hall.turn()
    folder = device.folder / "state"
    keeper = StatusKeeper(folder, Status(0, 1, "1", "aa", "hall", "mqtt://127.0.0.1:1883", started_s=0.0))
    keeper.note(device.agent.standing(), 100.0, 100.0)
    said = json.loads(json.dumps(report(folder, "mqtt://127.0.0.1:1883", 100).facts["gossip"]))
    assert (said["epoch"], said["waits_for"], said["why"], said["refused"]) == (1, ["bb"], "", 0)
    assert said["position"] == said["number"] >= 3
    assert said["estimate"] > 0.0
