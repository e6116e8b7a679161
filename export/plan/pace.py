"""How long a training step takes: the work of its graph and of the agent around it, at a device's prices."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from edge_agent.runtimes.work import Operation, Work, known, work
from export.plan.graph import Graph, Step
from protocol.errors import ConfigurationError
from protocol.profile import Profile


@dataclass(frozen=True, slots=True)
class Group:
    """Operators of one kind on tensors of the same shapes: how many run in a step, and the seconds of all of them."""

    kind: str
    shapes: str
    operators: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Pace:
    """The seconds of a step, by what takes them. groups: of the graph's operators, the most expensive first.

    unknown: operators that could not be counted for want of a shape; guessed: kinds that calibration does not know,
    counted as copies of their results.
    """

    graph_s: float
    update_s: float
    call_s: float
    groups: tuple[Group, ...]
    unknown: int
    guessed: tuple[str, ...]

    @property
    def step_s(self) -> float:
        return self.graph_s + self.update_s + self.call_s


def predict_pace(graph: Graph, profile: Profile, optimizer: str, trained: int, around: int) -> Pace:
    """trained: how many parameters the optimiser updates. around: bytes that a step goes through. Raises
    ConfigurationError if the profile lacks a price."""
    seconds: dict[tuple[str, str], float] = {}
    operators: Counter[tuple[str, str]] = Counter()
    for step in graph.steps:
        done = {"node": 1.0} if step.operation is None else work(step.operation, around)
        key = (step.kind, _shapes(step))
        seconds[key] = seconds.get(key, 0.0) + step.times * priced(done, profile)
        operators[key] += step.times
    ranked = sorted(seconds, key=lambda key: -seconds[key])
    groups = tuple(Group(*key, operators[key], seconds[key]) for key in ranked)
    return Pace(
        graph_s=sum(seconds.values()),
        update_s=priced({optimizer: trained}, profile),
        call_s=priced({"run": 1}, profile),
        groups=groups,
        unknown=graph.unknown,
        guessed=tuple(sorted({step.kind for step in graph.steps if not known(step.kind)})),
    )


def priced(done: Work, profile: Profile) -> float:
    """Seconds. Raises ConfigurationError if the profile lacks a price."""
    prices: Mapping[str, float] = profile.seconds
    missing = [unit for unit, amount in done.items() if amount and unit not in prices]
    if missing:
        raise ConfigurationError(
            f"{profile.name}: the profile has no price for {', '.join(missing)}; run edge-agent calibrate again"
        )
    return sum(amount * prices[unit] for unit, amount in done.items() if amount)


def _shapes(step: Step) -> str:
    operation: Operation | None = step.operation
    if operation is None:
        return "of unknown shape"
    return " by ".join("x".join(map(str, shape)) or "1" for shape in operation.inputs[:2])
