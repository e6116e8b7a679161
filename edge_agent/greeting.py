"""When and how an agent greets its coordinator, and what it makes of a warning in the answer."""

import logging
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from edge_agent.repeats import Repeated
from edge_agent.settings import AgentSettings
from protocol.messages import GOSSIP, KEPT_MOMENTUM, MASKING, QUASI_GLOBAL, TWO_AGENTS

log = logging.getLogger("edge-agent")

# A fleet greets a coordinator that returns spread over this long, or longer where it says so.
SPREAD_S = 1.0
# A device at rest says so now and then, for a coordinator that lost sight of it (a late will, a lost message).
HEARTBEAT_S = 300.0
# What a task may ask of this agent that older ones cannot do.
SKILLS = (QUASI_GLOBAL, KEPT_MOMENTUM, GOSSIP, MASKING)


class Greetings:
    """When to say hello: again until it is answered, now and then, and at a moment of its own whenever a whole fleet
    does. spread_s: over how long a fleet spreads, as the coordinator said."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng, self._hello = rng, Repeated()
        self._epoch: int | None = None
        self._here = True
        self.spread_s = 0.0

    @property
    def due(self) -> float:
        return self._hello.at

    def within(self, seconds: float, now: float) -> float:
        """Greets at a moment of that time, which it returns."""
        at = now + self._rng.uniform(0, seconds)
        self._hello.begin(at)
        return at

    def said(self, now: float) -> None:
        self._hello.said(now, self._rng)

    def answered(self, now: float) -> None:
        self._hello.begin(now + HEARTBEAT_S * self._rng.uniform(0.5, 1.0))

    def is_another(self, epoch: int) -> bool:
        """Whether the coordinator that speaks is not the one that spoke before."""
        # Not only a greater one: a coordinator whose state folder is new counts from one again.
        other = self._epoch is not None and epoch != self._epoch
        self._epoch = epoch
        return other

    def sees(self, *, here: bool) -> None:
        """Whether the coordinator takes in what devices say."""
        if self._here and not here:
            log.warning("coordinator gone")
        self._here = here


def agent_version() -> str:
    try:
        return version("sparsefleet")
    except PackageNotFoundError:
        return "unpackaged"


def say_warning(warning: str, settings: AgentSettings) -> None:
    """Says what the coordinator finds wrong with this device, with the remedy if it is known here."""
    if warning != TWO_AGENTS:
        log.warning("the coordinator warns of this device: %s", warning)
        return
    log.error(
        "another agent also calls itself %r in fleet %r: the coordinator hears both by turns, and neither works in "
        "peace; give each a `device` name and a `state` folder of its own, never a copy of another's, and start both "
        "again",
        settings.device,
        settings.fleet,
    )
