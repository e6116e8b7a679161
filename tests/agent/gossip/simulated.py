"""A network of nodes in one process: messages that are lost, doubled and overtaken, crashes, and time that only passes
where nothing else can happen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from edge_agent.gossip import node as table
from edge_agent.gossip.node import Completed, Decision, Event, Node, Publish, Shape, Train
from edge_agent.gossip.tables import table_of
from edge_agent.gossip.talk import _worth
from protocol.gossip import Algorithm, Effort, Membership, Neighbour
from sparse.gossip import Graph, metropolis_hastings
from sparse.gossip.graph import subtrees
from tests.sparse.gossip.network import LAYOUT, Problems

Vector = npt.NDArray[np.float32]
RATE = np.float32(0.05)


@dataclass
class Network:
    """loss, twice: the share of messages that never come, or come twice. ordered: none overtakes another one of its
    sender. crash: of decisions after which a process ends, before it did anything of what it decided. patience: how
    often all must be at a loss until it is over for whoever waits; 0 for never. given: y of a device in an exchange, in
    place of that of its training."""

    graph: Graph
    d: int = 60
    codec: str = "topk:0.1/float32/rice"
    gamma: float = 0.2
    loss: float = 0.0
    twice: float = 0.0
    crash: float = 0.0
    ordered: bool = False
    algorithm: Algorithm = "choco"
    patience: int = 0
    rate: np.float32 = RATE
    given: Callable[[str, int], Vector] | None = None
    effort: Effort = field(default_factory=Effort)
    seed: int = 1
    nodes: dict[str, Node] = field(default_factory=dict)
    kept: dict[str, Node] = field(default_factory=dict)
    last: dict[str, Completed] = field(default_factory=dict)
    completed: dict[tuple[str, int, int], Completed] = field(default_factory=dict)
    lost: int = 0
    crashes: int = 0
    until: int = 0
    stalls: int = 0
    said: dict[tuple[str, int, int], Vector] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.problems = Problems.drawn(len(self.graph) + 1, self.d)
        self.start = np.zeros(self.d, np.float32)
        self.flight: list[tuple[str, Event]] = []
        self.members = [name(i) for i in range(len(self.graph))]
        for device in self.members:
            self.nodes[device] = table.idle(self.start)

    def memberships(self, epoch: int, graph: Graph, after: int = 0, new: tuple[str, ...] = ()) -> dict[str, Membership]:
        weights, everyone = metropolis_hastings(graph), self.members
        behind = subtrees(graph) if self.algorithm == "relay" else {}
        return {
            device: Membership(
                "run",
                epoch,
                tuple(
                    Neighbour(
                        everyone[j], float(weights[i, j]), epoch == 1 or everyone[j] in new, subtree=behind.get((i, j))
                    )
                    for j in graph.neighbours[i]
                ),
                self.codec,
                self.gamma,
                after,
                epoch == 1 or device in new,
                self.effort,
                algorithm=self.algorithm,
            )
            for i, device in enumerate(everyone)
        }

    def join(self, memberships: Mapping[str, Membership]) -> None:
        for device, membership in memberships.items():
            self.give(device, table.Joined(membership))

    def run(self, until: int, epoch: int = 1) -> None:
        """Until every member has completed this number of the epoch; whoever is there first goes no further."""
        self.until = until
        for device in self.nodes:
            if self.nodes[device].phase == "training":
                self.give(device, table.Restarted())
        for _ in range(20_000):
            if all((device, epoch, until) in self.completed for device in self.members):
                return
            if self.flight:
                to, event = self.flight.pop(self.drawn())
                self.give(to, event)
            else:
                self.stalls += 1
                over = self.patience > 0 and self.stalls % self.patience == 0
                for device in self.nodes:
                    self.give(device, table.Asked(over))
        raise AssertionError({d: (n.phase, n.number, self.waits_for(d)) for d, n in self.nodes.items()})

    def drawn(self) -> int:
        """Which of those under way comes next."""
        at = int(self.rng.integers(len(self.flight)))
        if not self.ordered:
            return at
        link = [(to, getattr(event, "sender", "")) for to, event in self.flight]
        return link.index(link[at])

    def waits_for(self, device: str) -> tuple[str, ...]:
        node = self.nodes[device]
        return table_of(node.membership).waits_for(node)

    def give(self, device: str, event: Event) -> None:
        if device not in self.nodes:
            return
        before = self.nodes[device]
        begins = event.membership if isinstance(event, table.Joined) else before.membership
        self.nodes[device], decisions = table_of(begins).step(before, event, self.shape(device))
        if _worth(before) != _worth(self.nodes[device]):
            self.kept[device] = replace(self.nodes[device], heard={})
        if self.rng.random() < self.crash:
            # Whatever is not kept is gone, and so is what was decided.
            self.crashes += 1
            self.nodes[device] = self.kept[device]
            decisions = [d for d in decisions if isinstance(d, Completed)]
            self.flight.append((device, table.Restarted()))
        for decision in decisions:
            self.carry_out(device, decision)

    def carry_out(self, device: str, decision: Decision) -> None:
        match decision:
            case Train(epoch, number, x, steps):
                if number <= self.until or self.nodes[device].next is not None:
                    y = self.given(device, number) if self.given else self.trained(device, x, steps)
                    self.said[device, epoch, number] = y
                    self.flight.append((device, table.Trained(epoch, number, y)))
            case Publish(epoch, number, payload, _, to):
                for other in self.heard_by(device) if to is None else [to]:
                    self.send(other, table.Heard(device, epoch, number, payload))
            case table.Ask(neighbour, epoch, number):
                self.send(neighbour, table.Wanted(device, epoch, number))
            case Completed():
                self.completed[device, decision.epoch, decision.number] = decision
            case table.Refused():
                raise AssertionError(decision)

    def trained(self, device: str, x: Vector, steps: int) -> Vector:
        for _ in range(steps):
            x = x - self.rate * self.problems.gradient(int(device.partition("-")[2]), x)
        return x

    def heard_by(self, device: str) -> list[str]:
        return [d for d, n in self.nodes.items() if n.membership is not None and device in n.membership.weights]

    def send(self, to: str, event: Event) -> None:
        drawn = self.rng.random()
        if drawn < self.loss:
            self.lost += 1
            return
        self.flight += [(to, event)] * (2 if drawn > 1 - self.twice else 1)

    def shape(self, device: str) -> Shape:
        return Shape(device, LAYOUT, [(self.d,)], self.start)

    def models(self, epoch: int, number: int) -> npt.NDArray[np.float32]:
        return np.stack([self.completed[device, epoch, number].after for device in self.members])


def name(i: int) -> str:
    return f"device-{i:02d}"
