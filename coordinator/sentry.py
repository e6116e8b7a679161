"""Carries a revocation out, while the coordinator runs: the broker learns of it, and a session that stands is ended."""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coordinator.authority import Authority
from coordinator.broker import Broker
from coordinator.trust import Admission, Trust
from protocol.mqtt import MqttSettings, MqttTransport, parse_url
from protocol.transport import Connected, Disconnected

log = logging.getLogger("coordinator")

# To a broker on this machine; longer, and it is down, and so are all its sessions.
END_SESSION_S = 2.0


class Sentry:
    """Looks at each turn of the daemon's loop whether an identity was revoked. wall: Unix seconds.

    That messages of a revoked device are not heard is the business of `Admission`, and needs nothing of this.
    """

    def __init__(self, authority: Authority, trust: Trust, broker: Broker, wall: Callable[[], float]) -> None:
        self._authority, self._trust, self._broker, self._wall = authority, trust, broker, wall
        self._admission = Admission(trust, wall)
        self._serials: tuple[tuple[int, float], ...] | None = None
        self._devices: frozenset[str] | None = None
        for left_behind in authority.folder.glob("stand-in-*"):
            shutil.rmtree(left_behind, ignore_errors=True)

    def close(self) -> None:
        self._admission.close()

    def check(self) -> None:
        if not self._admission.changed():
            return
        serials = self._trust.revoked()
        # Most of what is written there is new certificates.
        if serials == self._serials:
            return
        self._authority.write_revoked(serials, self._wall())
        revoked, before = self._admission.revoked(), self._devices
        self._serials, self._devices = serials, revoked
        if self._broker.child is None:
            return
        self._broker.reload()
        # At our start nobody is connected yet.
        for device in sorted(revoked - before) if before is not None else ():
            self._end_session(device)

    def _end_session(self, device: str) -> None:
        """Connects in the device's name: a broker has one session a name, and the list keeps the old one out."""
        folder = Path(tempfile.mkdtemp(prefix="stand-in-", dir=self._authority.folder))
        try:
            own = self._authority.stand_in(device, folder, self._wall())
            settings = MqttSettings(parse_url(self._broker.url), device, credentials=own)
            transport = MqttTransport(settings, (), rng=np.random.default_rng())
            deadline = time.monotonic() + END_SESSION_S
            event = None
            while not isinstance(event, Connected | Disconnected) and time.monotonic() < deadline:
                event = transport.poll(END_SESSION_S)
            transport.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(event, Connected):
            log.info("revoked device=%s its session was ended", device)
        else:
            log.warning("revoked device=%s its session could not be ended; nothing that it says is heard", device)
