"""What an agent says at its start of what an operator must mend, and goes on: a clock may be set meanwhile, a device
enrolled again and a disk mounted, and then it works by itself."""

import logging
import time
from pathlib import Path

from edge_agent.identity import Identity
from edge_agent.settings import AgentSettings

log = logging.getLogger("edge-agent")

# A clock before this was never set, for there was no release before it; one that is later was set by mistake.
EARLIEST_S = 1_735_689_600.0
LATEST_S = 4_102_444_800.0


def is_plausible(wall_s: float) -> bool:
    """Whether a clock may be right."""
    return EARLIEST_S <= wall_s <= LATEST_S


def data_root(settings: AgentSettings, base: Path) -> Path | None:
    """The folder or file that the data's path begins with, up to its first wildcard; None where a function gives it."""
    if settings.data.path is None:
        return None
    parts = (base / Path(settings.data.path).expanduser()).parts
    plain = next((n for n, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
    return Path(*parts[:plain])


def say_doubts(settings: AgentSettings, base: Path, identity: Identity | None, wall_s: float) -> None:
    """Logs them, each with its remedy."""
    if not is_plausible(wall_s):
        log.warning(
            "the clock says %s, which cannot be: no certificate is valid then; waiting for it to be set (timedatectl "
            "set-ntp true)",
            day(wall_s),
        )
    elif identity is not None and wall_s >= identity.ends_s:
        log.error(
            "the certificate of %s ended %s: no broker takes it; on the server: fleet-coordinator token --device %s, "
            "and with it here: edge-agent enroll. Or is this clock wrong?",
            identity.device,
            day(identity.ends_s),
            identity.device,
        )
    root = data_root(settings, base)
    if root is not None and not root.exists():
        log.warning("data.path: %s is not there; tasks are refused until it is: is its disk mounted?", root)


def day(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s))
