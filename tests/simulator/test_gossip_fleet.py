"""A whole fleet without a hub in one process: real envelopes over a broker in memory, the coordinator's council, and
devices with their stores, of which one joins late, one is restarted and one is lost for good."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator import gossip as council_table
from coordinator.gossip import Council, Rules, Told
from edge_agent.gossip import node as table
from edge_agent.gossip.node import Completed, Shape, Train
from edge_agent.gossip.store import NodeStore
from edge_agent.gossip.talk import Talk
from edge_agent.gossip.wire import Wire
from edge_agent.link import Link
from protocol.envelope import Envelope, decode, encode
from protocol.gossip import Algorithm, Effort, Membership, Standing
from protocol.topics import Topics
from protocol.transport import Incoming, MemoryBroker
from sparse.gossip.consensus import distance

TOPICS, D, LAYOUT = Topics("hall"), 40, bytes(8)
SETTINGS = Rules(
    "ring", codec="topk:0.2/float32/rice", gamma=council_table.fixed(0.4), first=3, minimum=3, dead_after_s=30.0
)


class Device:
    """Steps are towards a place of its own; the fleet's mean is that of all places."""

    def __init__(self, broker: MemoryBroker, folder: Path, name: str, boot: int = 1) -> None:
        self.name, self.boot, self.due, self.done = name, boot, list[Train](), list[Completed]()
        # Local steps of each training.
        self.steps = list[int]()
        # What gets lost on its way here.
        self.loses: Callable[[Incoming], bool] = lambda _: False
        self.pull = np.random.default_rng(sum(name.encode())).standard_normal(D, dtype=np.float32)
        filters = (TOPICS.device(name, "down"), *TOPICS.of_gossip(name))
        self.transport = broker.connect(name, filters)
        self.wire = Wire(Link(self.transport, TOPICS, name, boot), TOPICS, name)
        self.database = sqlite3.connect(folder / f"{name}.sqlite")
        # No power is cut here.
        self.database.execute("PRAGMA synchronous = OFF")
        kept, start = NodeStore(self.database, D), np.zeros(D, np.float32)
        shape = Shape(name, LAYOUT, [(D,)], start)
        self.talk = Talk(shape, kept.load() or table.idle(start), kept, self.wire, self.due.append, self.done.append)
        self.talk.start(0.0)

    def turn(self, now: float) -> bool:
        """Whether anything happened."""
        event = self.transport.poll(0)
        if isinstance(event, Incoming):
            if not self.loses(event):
                self.hear(event, now)
        elif self.due:
            train = self.due.pop(0)
            self.steps += [train.steps] if train.steps else []
            rate = np.float32(0.1 if train.steps else 0.0)
            self.talk.trained(train.epoch, train.number, train.x - rate * (train.x - self.pull), now)
        return event is not None or bool(self.due)

    def hear(self, message: Incoming, now: float) -> None:
        said = self.wire.read(message)
        if said is not None:
            assert isinstance(said, tuple), said
            self.talk.heard(*said, now)
        elif message.topic == TOPICS.device(self.name, "down"):
            told = decode(message.payload)
            assert isinstance(told, Envelope)
            assert isinstance(told.body, Membership | Effort)
            self.talk.told(told.body, now)

    def close(self) -> None:
        self.transport.close()
        self.database.close()


class Fleet:
    def __init__(self, folder: Path, settings: Rules = SETTINGS) -> None:
        self.folder, self.settings, self.now = folder, settings, 0.0
        self.broker, self.devices, self.council = MemoryBroker(), dict[str, Device](), Council("run")
        self.transport = self.broker.connect("coordinator", TOPICS.of_coordinator())
        self.told: list[Told] = []

    def start(self, name: str, boot: int = 1) -> None:
        self.devices[name] = Device(self.broker, self.folder, name, boot)
        model = self.devices[name].talk.node.membership is not None
        self.council = council_table.here(self.council, name, self.now, model=model)

    def end(self, name: str) -> None:
        self.devices.pop(name).close()

    def run(self, epoch: int, number: int) -> None:
        """Until every device has completed this number of the epoch."""
        for _ in range(30_000):
            if all(any((c.epoch, c.number) == (epoch, number) for c in d.done) for d in self.devices.values()):
                return
            self.coordinate()
            happened = [device.turn(self.now) for device in self.devices.values()]
            if not any(happened):
                self.now += 1.0
                for device in self.devices.values():
                    device.talk.advance(self.now)
        raise AssertionError({n: (d.talk.node.phase, d.talk.node.number) for n, d in self.devices.items()})

    def coordinate(self) -> None:
        while isinstance(event := self.transport.poll(0), Incoming) or event is not None:
            said = decode(event.payload) if isinstance(event, Incoming) else None
            topic = TOPICS.parse(event.topic) if isinstance(event, Incoming) else None
            if isinstance(said, Envelope) and isinstance(said.body, Standing) and topic is not None:
                self.council = council_table.stands(self.council, topic.device, said.body, self.now)
        self.council, told = council_table.due(self.council, self.settings, self.now)
        for device, membership in told.memberships.items():
            self.say(device, membership)
        for device in self.council.members if told.effort else ():
            assert told.effort is not None
            self.say(device, told.effort)
        if told != Told():
            self.told.append(told)

    def say(self, device: str, body: Membership | Effort) -> None:
        self.transport.publish(TOPICS.device(device, "down"), encode(Envelope(1, len(self.told), 0, body)))

    def models(self, epoch: int, number: int) -> list[np.ndarray]:
        ended = [(name, c) for name, d in self.devices.items() for c in d.done]
        found = {name: c.after for name, c in ended if (c.epoch, c.number) == (epoch, number)}
        return [found[name] for name in sorted(found)]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    for name in ("aa", "bb", "cc", "dd"):
        made.start(name)
    yield made
    for name in list(made.devices):
        made.end(name)


def test_devices_learn_the_mean_of_what_each_of_them_would_learn_alone(fleet: Fleet) -> None:
    fleet.run(1, 80)
    mean = np.mean([device.pull for device in fleet.devices.values()], axis=0)
    found = np.mean(fleet.models(1, 80), axis=0)
    np.testing.assert_allclose(found, mean, atol=5e-3)
    alone = distance([device.pull for device in fleet.devices.values()])
    assert distance(fleet.models(1, 80)) < 0.5 * alone


def test_a_device_that_is_restarted_goes_on_where_it_was(fleet: Fleet, tmp_path: Path) -> None:
    undisturbed = Fleet(tmp_path / "b")
    (tmp_path / "b").mkdir()
    for name in fleet.devices:
        undisturbed.start(name)
    undisturbed.run(1, 20)
    fleet.run(1, 10)
    done = fleet.devices["bb"].done
    fleet.end("bb")
    fleet.start("bb", boot=2)
    fleet.devices["bb"].done += done
    fleet.run(1, 20)
    np.testing.assert_array_equal(fleet.models(1, 20), undisturbed.models(1, 20))
    for name in list(undisturbed.devices):
        undisturbed.end(name)


def test_a_device_that_joins_begins_at_its_neighbours_mean_and_the_fleet_goes_on(fleet: Fleet) -> None:
    fleet.run(1, 20)
    fleet.start("ee")
    fleet.run(2, 60)
    assert fleet.council.members == ("aa", "bb", "cc", "dd", "ee")
    mean = np.mean([device.pull for device in fleet.devices.values()], axis=0)
    np.testing.assert_allclose(np.mean(fleet.models(2, 60), axis=0), mean, atol=1e-2)


def test_a_device_that_is_lost_for_good_is_left_out_and_the_others_go_on(fleet: Fleet) -> None:
    fleet.run(1, 20)
    fleet.end("cc")
    fleet.run(2, 60)
    assert fleet.council.members == ("aa", "bb", "dd")
    mean = np.mean([device.pull for device in fleet.devices.values()], axis=0)
    np.testing.assert_allclose(np.mean(fleet.models(2, 60), axis=0), mean, atol=1e-2)


@pytest.fixture
def controlled(tmp_path: Path) -> Iterator[Callable[[Rules], Fleet]]:
    made: list[Fleet] = []

    def begin(settings: Rules) -> Fleet:
        fleet = Fleet(tmp_path, replace(settings, gossip_rounds=1, local_steps=8))
        made.append(fleet)
        for i in range(settings.first):
            fleet.start(f"d{i}")
        return fleet

    yield begin
    for fleet in made:
        for name in list(fleet.devices):
            fleet.end(name)


@pytest.mark.parametrize(("algorithm", "codec"), [("choco", "all/float16"), ("relay", "all/float32")])
def test_consensus_control_brings_devices_closer_and_keeps_them_there(
    controlled: Callable[[Rules], Fleet], algorithm: Algorithm, codec: str
) -> None:
    half = Rules("ring", codec=codec, gamma=council_table.fixed(0.9), first=6, target=0.5, first_phase=999)
    fleet = controlled(replace(half, algorithm=algorithm))
    fleet.run(1, 80)
    asked = [told.effort for told in fleet.told if told.effort is not None]
    # Estimates of exchanges on the way from one training to the next would have it swing with every one of them.
    assert 1 <= len(asked) <= 5
    last = asked[-1].gossip_rounds
    assert last > 1
    for device in fleet.devices.values():
        before_trainings = [done.estimate for done in device.done[40:] if done.number % last == 0]
        assert np.mean(before_trainings) < half.target * max(done.estimate for done in device.done)


def test_consensus_control_lowers_local_steps_once_gossip_is_at_its_most_and_ends_with_the_first_phase(
    controlled: Callable[[Rules], Fleet],
) -> None:
    slow = Rules("ring", codec="all/float16", gamma=council_table.fixed(0.02), first=5, target=0.05, first_phase=60)
    fleet = controlled(slow)
    fleet.run(1, 100)
    asked = [told.effort for told in fleet.told if told.effort is not None]
    assert asked[:4] == [Effort(8, 2), Effort(8, 4), Effort(8, 8), Effort(4, 8)]
    assert asked[-1] == Effort(8, 1), "as if there were no control"
    for device in fleet.devices.values():
        assert device.steps[0] == 8 == device.steps[-1]
        assert min(device.steps) < 8


def test_what_is_said_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    broker = MemoryBroker()
    wire = Wire(Link(broker.connect("aa", ()), TOPICS, "aa", 1), TOPICS, "aa")
    misplaced = encode(Envelope(1, 1, 0, Standing(1, 1, 0.0)))
    found = wire.read(Incoming(TOPICS.gossip("bb"), misplaced))
    assert getattr(found, "reason", None) == "misplaced"
    assert wire.read(Incoming(TOPICS.gossip("aa"), misplaced)) is None
    assert wire.read(Incoming(TOPICS.device("bb", "up"), misplaced)) is None
    with closing(sqlite3.connect(tmp_path / "x")) as database:
        assert NodeStore(database, 3).load() is None
