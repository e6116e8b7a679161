"""What an agent says of itself when it greets, and what it makes of a warning in the answer."""

import logging
from importlib.metadata import PackageNotFoundError, version

from edge_agent.settings import AgentSettings
from protocol.messages import TWO_AGENTS

log = logging.getLogger("edge-agent")


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
