"""Sees to it that a device's certificate is followed by the next one in time, without stopping the daemon's loop."""

import logging
import os
import subprocess
import time
from pathlib import Path

import numpy as np

from edge_agent.identity import Identity, load_identity
from edge_agent.own_code import own_command, own_environment
from protocol.errors import SparsefleetError

log = logging.getLogger("edge-agent")

# Between attempts, so that a fleet that was enrolled in one hour does not come back in one second.
RETRY_S = (600.0, 3600.0)
AFTER_SUCCESS_S = 10.0


class Renewal:
    """Runs `edge-agent renew` as a child when it is time to: it needs libraries that the daemon does without, and the
    endpoint may be slow to answer. The next connection to the broker uses what it got."""

    def __init__(self, identity: Identity, state: Path, rng: np.random.Generator, command: tuple[str, ...]) -> None:
        self.identity = identity
        self._state, self._rng, self._command = state, rng, command
        self._not_before = 0.0
        self._child: subprocess.Popen[str] | None = None

    def check(self, wall_s: float, now: float) -> None:
        """Starts what is due, and hears how it went; never waits. wall_s: Unix seconds; now: of a monotonic clock."""
        if self._child is not None:
            if self._child.poll() is not None:
                self._hear(self._child, wall_s, now)
            return
        if wall_s < self.identity.renew_at_s or now < self._not_before:
            return
        try:
            self._child = subprocess.Popen(
                self._command,
                env=own_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            self._put_off(f"{self._command[0]}: {error}", wall_s, now)

    @property
    def wait_s(self) -> float:
        """How long the loop may sleep."""
        return 60.0 if self._child is None else 1.0

    def close(self) -> None:
        """Ends an attempt under way; the next start makes another."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _hear(self, child: subprocess.Popen[str], wall_s: float, now: float) -> None:
        said = child.communicate()[1].strip()
        self._child = None
        try:
            self.identity = load_identity(self._state)
        except SparsefleetError as error:
            said = f"{said}; {error}"
        if child.returncode == 0:
            # Whatever the clocks of both sides say: not again at once.
            self._not_before = now + AFTER_SUCCESS_S
            log.info("certificate renewed until=%s", _day(self.identity.ends_s))
        else:
            self._put_off(said, wall_s, now)

    def _put_off(self, why: str, wall_s: float, now: float) -> None:
        # A tenth of what is left, at most: the last attempts come closer to each other.
        longest = max(1.0, (self.identity.ends_s - wall_s) / 10)
        self._not_before = now + min(longest, float(self._rng.uniform(*RETRY_S)))
        log.warning("certificate not renewed, it ends at %s: %s", _day(self.identity.ends_s), why[-500:])


def renew_command(config: Path) -> tuple[str, ...]:
    return own_command("edge_agent", "renew", "--config", str(config))


def _day(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s))
