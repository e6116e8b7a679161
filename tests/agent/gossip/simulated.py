"""A network of nodes in one process: messages that are lost, doubled and overtaken, crashes, and time that only passes
where nothing else can happen."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from edge_agent.gossip import node as table
from edge_agent.gossip.node import Completed, Decision, Event, Node, Publish, Shape, Train
from protocol.gossip import Effort, Membership, Neighbour
from sparse.gossip import Graph, metropolis_hastings
from tests.sparse.gossip.network import LAYOUT, Problems

Vector = npt.NDArray[np.float32]
RATE = np.float32(0.05)


@dataclass
class Network:
    """loss, twice: the share of messages that never come, or come twice. crash: of decisions after which a process
    ends, before it did anything of what it decided."""

    graph: Graph
    d: int = 60
    codec: str = "topk:0.1/float32/rice"
    gamma: float = 0.2
    loss: float = 0.0
    twice: float = 0.0
    crash: float = 0.0
    effort: Effort = field(default_factory=Effort)
    seed: int = 1
    nodes: dict[str, Node] = field(default_factory=dict)
    last: dict[str, Completed] = field(default_factory=dict)
    completed: dict[tuple[str, int, int], Completed] = field(default_factory=dict)
    lost: int = 0
    crashes: int = 0
    until: int = 0

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
        return {
            device: Membership(
                "run",
                epoch,
                tuple(
                    Neighbour(everyone[j], float(weights[i, j]), epoch == 1 or everyone[j] in new)
                    for j in graph.neighbours[i]
                ),
                self.codec,
                self.gamma,
                after,
                epoch == 1 or device in new,
                self.effort,
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
                to, event = self.flight.pop(int(self.rng.integers(len(self.flight))))
                self.give(to, event)
            else:
                for device in self.nodes:
                    self.give(device, table.Asked())
        raise AssertionError({d: (n.phase, n.number, table.waits_for(n)) for d, n in self.nodes.items()})

    def give(self, device: str, event: Event) -> None:
        if device not in self.nodes:
            return
        self.nodes[device], decisions = table.step(self.nodes[device], event, self.shape(device))
        if self.rng.random() < self.crash:
            # Whatever is not kept is gone, and so is what was decided.
            self.crashes += 1
            self.nodes[device] = replace(self.nodes[device], heard={})
            decisions = [d for d in decisions if isinstance(d, Completed)]
            self.flight.append((device, table.Restarted()))
        for decision in decisions:
            self.carry_out(device, decision)

    def carry_out(self, device: str, decision: Decision) -> None:
        match decision:
            case Train(epoch, number, x, steps):
                if number <= self.until or self.nodes[device].next is not None:
                    self.flight.append((device, table.Trained(epoch, number, self.trained(device, x, steps))))
            case Publish(epoch, number, payload):
                for other in self.heard_by(device):
                    self.send(other, table.Heard(device, epoch, number, payload))
            case table.Ask(neighbour, epoch, number):
                self.send(neighbour, table.Wanted(device, epoch, number))
            case Completed():
                self.completed[device, decision.epoch, decision.number] = decision
            case table.Refused():
                raise AssertionError(decision)

    def trained(self, device: str, x: Vector, steps: int) -> Vector:
        for _ in range(steps):
            x = x - RATE * self.problems.gradient(int(device.partition("-")[2]), x)
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
