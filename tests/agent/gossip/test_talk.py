"""Devices that talk in parts: over links that lose and double, with a node kept before anything is said."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.gossip import node as table
from edge_agent.gossip.node import Node, Shape, Train
from edge_agent.gossip.store import NodeStore
from edge_agent.gossip.talk import ASK_AFTER_S, Talk
from protocol.gossip import PART_BYTES, Membership, Part, Standing, Want, parts
from sparse.gossip.graph import ring
from tests.agent.gossip.simulated import Network, name
from tests.sparse.gossip.network import LAYOUT

# So large that a base takes two parts.
D = PART_BYTES // 4 + 100
N, ROUNDS = 4, 6


@dataclass
class Hall:
    """Devices whose parts and questions get lost and doubled; time passes where all wait. crash: of steps after which a
    device is made anew from its disk."""

    folder: Path
    loss: float = 0.0
    twice: float = 0.0
    crash: float = 0.0
    now: float = 0.0
    flight: list[tuple[str, str, Part | Want]] = field(default_factory=list)
    due: list[tuple[str, Train]] = field(default_factory=list)
    talks: dict[str, Talk] = field(default_factory=dict)
    models: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)
    standings: list[Standing] = field(default_factory=list)
    crashes: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(3)
        # Of its memberships alone.
        self.network = Network(ring(N), d=2, codec="topk:0.1/float32/rice")
        self.start = np.zeros(D, np.float32)
        self.pulls = np.random.default_rng(9).standard_normal((N, D), dtype=np.float32)
        self.disks = {d: sqlite3.connect(self.folder / f"{d}.sqlite") for d in self.network.members}
        for device, membership in self.network.memberships(1, ring(N)).items():
            self.made(device, table.idle(self.start)).told(membership, self.now)

    def made(self, device: str, node: Node) -> Talk:
        shape = Shape(device, LAYOUT, [(D,)], self.start)
        voice = Voice(self, device)
        kept = NodeStore(self.disks[device], D)
        self.talks[device] = Talk(shape, node, kept, voice, lambda t: self.due.append((device, t)), self.noted(device))
        return self.talks[device]

    def noted(self, device: str):  # type: ignore[no-untyped-def]
        def note(done: table.Completed) -> None:
            self.models.setdefault((device, done.number), done.after)

        return note

    def send(self, sender: str, to: str, said: Part | Want) -> None:
        drawn = self.rng.random()
        if drawn >= self.loss:
            self.flight += [(sender, to, said)] * (2 if drawn > 1 - self.twice else 1)

    def run(self) -> None:
        for _ in range(20_000):
            if all((device, ROUNDS) in self.models for device in self.talks):
                return
            device = self.turn()
            if device is not None and self.rng.random() < self.crash:
                self.crashes += 1
                kept = NodeStore(self.disks[device], D).load()
                self.due = [(d, t) for d, t in self.due if d != device]
                assert kept is not None
                self.made(device, kept).start(self.now)
        raise AssertionError({d: (t.node.phase, t.node.number) for d, t in self.talks.items()})

    def turn(self) -> str | None:
        if self.flight:
            sender, to, said = self.flight.pop(int(self.rng.integers(len(self.flight))))
            self.talks[to].heard(sender, said, self.now)
            return to
        if self.due:
            device, train = self.due.pop(0)
            y = train.x - np.float32(0.1) * (train.x - self.pulls[int(device[-1])])
            if train.number <= ROUNDS:
                self.talks[device].trained(train.epoch, train.number, y, self.now)
            return device
        self.now += ASK_AFTER_S
        for talk in self.talks.values():
            talk.advance(self.now)
        return None


@dataclass
class Voice:
    hall: Hall
    device: str

    def publish(self, part: Part) -> bool:
        at = int(self.device[-1])
        for other in ((at - 1) % N, (at + 1) % N):
            self.hall.send(self.device, name(other), part)
        return True

    def tell(self, neighbour: str, part: Part) -> bool:
        self.hall.send(self.device, neighbour, part)
        return True

    def ask(self, neighbour: str, want: Want) -> bool:
        self.hall.send(self.device, neighbour, want)
        return True

    def report(self, standing: Standing) -> bool:
        self.hall.standings.append(standing)
        return True


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hall]:
    hall = Hall(tmp_path_factory.mktemp("hall"))
    hall.run()
    yield hall
    for disk in hall.disks.values():
        disk.close()


@pytest.mark.parametrize(
    ("loss", "twice", "crash"),
    [(0.01, 0.01, 0.0), (0.2, 0.2, 0.0), (0.02, 0.02, 0.1)],
    ids=["1 % lost and 1 % twice", "a fifth lost and a fifth twice", "crashes"],
)
def test_lost_and_doubled_parts_and_restarts_from_disk_leave_the_very_bits_of_a_run_without(
    tmp_path: Path, undisturbed: Hall, loss: float, twice: float, crash: float
) -> None:
    hall = Hall(tmp_path, loss, twice, crash)
    hall.run()
    assert (hall.crashes > 0) == (crash > 0)
    for device in hall.talks:
        np.testing.assert_array_equal(hall.models[device, ROUNDS], undisturbed.models[device, ROUNDS])
    for disk in hall.disks.values():
        disk.close()


def test_each_completed_exchange_is_reported_with_the_estimate_of_the_distance(undisturbed: Hall) -> None:
    done = [s for s in undisturbed.standings if not s.waits_for]
    assert sorted({s.number for s in done if s.estimate > 0}) == list(range(1, ROUNDS + 1))


def test_a_node_comes_back_from_the_disk_as_it_was_but_for_what_it_heard(tmp_path: Path) -> None:
    network = Network(ring(4), d=30)
    network.join(network.memberships(1, ring(4)))
    network.run(3)
    network.join(network.memberships(2, ring(4), after=9))
    with closing(sqlite3.connect(tmp_path / "agent.sqlite")) as database:
        store, node = NodeStore(database, 30), network.nodes[name(0)]
        assert store.load() is None
        store.keep(node)
        found = store.load()
        assert found is not None
        assert (found.phase, found.number, found.payloads) == (node.phase, node.number, dict(node.payloads))
        assert (found.membership, found.next, found.effort) == (node.membership, node.next, node.effort)
        assert found.choco is not None
        assert node.choco is not None
        np.testing.assert_array_equal([found.choco.h, found.choco.s], [node.choco.h, node.choco.s])
        np.testing.assert_array_equal(found.x, node.x)
        assert found.heard == {}


def test_a_node_that_was_altered_on_the_disk_or_is_of_another_model_is_let_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(tmp_path / "agent.sqlite")) as database:
        NodeStore(database, 3).keep(table.idle(np.ones(3, np.float32)))
        assert NodeStore(database, 4).load() is None
        data = bytearray(database.execute("SELECT node FROM gossip").fetchone()[0])
        data[20] ^= 1
        with database:
            database.execute("UPDATE gossip SET node = ?", (bytes(data),))
        assert NodeStore(database, 3).load() is None
    assert "begins again as a newcomer" in caplog.text


def test_a_part_that_claims_more_than_a_payload_can_have_is_counted_and_let_go(undisturbed: Hall) -> None:
    talk = undisturbed.talks[name(0)]
    membership = talk.node.membership
    assert membership is not None
    large = next(parts(1, talk.node.number, bytes(8 * D)))
    talk.heard(name(1), large, undisturbed.now)
    assert talk.refused == {f"{name(1)} size": 1}


def test_what_is_of_no_neighbour_or_another_epoch_changes_nothing(undisturbed: Hall) -> None:
    talk = undisturbed.talks[name(0)]
    node = talk.node
    for sender, epoch in ((name(2), 1), ("stranger", 1), (name(1), 2)):
        talk.heard(sender, next(parts(epoch, node.number, b"x")), undisturbed.now)
    assert talk.node is node


def test_two_neighbours_that_miss_the_same_payload_get_it_once(undisturbed: Hall) -> None:
    talk, hall = undisturbed.talks[name(0)], undisturbed
    newest = max(talk.node.payloads)
    hall.flight.clear()
    later = hall.now + 100
    for _ in range(2):
        talk.heard(name(1), Want(*newest), later)
    assert len(hall.flight) == 2 * -(-len(talk.node.payloads[newest]) // PART_BYTES)


def test_a_membership_is_kept_before_its_base_is_said(tmp_path: Path) -> None:
    order: list[str] = []

    class Kept:
        def keep(self, node: Node) -> None:
            order.append("keep")

    class Ears:
        def publish(self, part: Part) -> bool:
            order.append("publish")
            return True

        def tell(self, neighbour: str, part: Part) -> bool:
            return True

        def ask(self, neighbour: str, want: Want) -> bool:
            return True

        def report(self, standing: Standing) -> bool:
            return True

    shape = Shape("a0", LAYOUT, [(5,)], np.zeros(5, np.float32))
    talk = Talk(shape, table.idle(shape.start), Kept(), Ears(), lambda _: order.append("train"))
    talk.told(Membership("run", 1, (), "all/float32", 1.0, newcomer=True), 0.0)
    assert order == ["keep", "publish", "train"]
    assert replace(talk.node, heard={}).phase == "training"
