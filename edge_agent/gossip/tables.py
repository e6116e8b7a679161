"""By which table a device decides, of the algorithm that its membership names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_agent.gossip import node, relay_node
from edge_agent.gossip.node import Decision, Event, Node, Shape
from protocol.gossip import Algorithm, Membership


@dataclass(frozen=True, slots=True)
class Table:
    """step: the next node and what to do. waits_for: whom. missed: of whom nothing has come, waited for or not.
    takes: whether a payload of this sender, epoch and number would count. most_bytes: that one of this number can have.
    estimate: after the last exchange, how far it is from the others. in_step: neighbours wait for this device's next
    payload, and say the last one again until then: what they gave is found again after any restart, and kept with that
    payload.
    """

    step: Callable[[Node, Event, Shape], tuple[Node, list[Decision]]]
    waits_for: Callable[[Node], tuple[str, ...]]
    missed: Callable[[Node], tuple[str, ...]]
    takes: Callable[[Node, str, int, int], bool]
    most_bytes: Callable[[Node, int, Shape], int]
    estimate: Callable[[Node], float]
    in_step: bool = False


TABLES: Mapping[Algorithm, Table] = {
    "choco": Table(node.step, node.waits_for, node.waits_for, node.takes, node.most_bytes, node.estimate, in_step=True),
    "relay": Table(
        relay_node.step,
        relay_node.waits_for,
        relay_node.missed,
        relay_node.takes,
        relay_node.most_bytes,
        relay_node.estimate,
    ),
}


def table_of(membership: Membership | None) -> Table:
    """Who is in no epoch waits for a membership, whatever the algorithm."""
    return TABLES["choco" if membership is None else membership.algorithm]
