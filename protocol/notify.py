"""What a daemon tells its service manager by sd_notify(3): that it is ready, what it does, and that it gets on.

A datagram to the socket in NOTIFY_SOCKET, as the manual page describes it; nothing where there is none.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping


class Notifier:
    """Speaks to the service manager named in the environment, and leaves it to no child.

    clock: in seconds. `alive` is to be called for each turn that got on, and `wait_s` says how long none may be due.
    """

    def __init__(self, environment: MutableMapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")
        self._clock, self._status = clock, ""
        # Half of what the manager waits, as its manual asks for.
        self._every_s = _watchdog_s(environment) / 2
        self._said_at = float("-inf")

    @property
    def wait_s(self) -> float:
        """How long a turn may last, so that the next word is in time."""
        return self._every_s

    def ready(self) -> None:
        """The daemon does its work from here on."""
        self._say("READY=1")
        self.alive()

    def status(self, text: str) -> None:
        """What `systemctl status` shows; said when it changes."""
        if text != self._status:
            self._status = text
            self._say(f"STATUS={text}")

    def alive(self) -> None:
        """The daemon got on: a watchdog that is not told so for its time ends it and starts another."""
        now = self._clock()
        # Often: what is left of the manager's time is a turn's.
        if now - self._said_at >= self._every_s / 4:
            self._said_at = now
            self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon was asked to end, and does."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        # An @ stands for the zero byte of an abstract name.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(text.encode(), socket.MSG_DONTWAIT, address)
        except OSError:
            # A manager that does not listen is no reason to stop working.
            return


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """Seconds that the manager waits, if it does and means this process."""
    said = environment.get("WATCHDOG_USEC", "")
    meant = environment.get("WATCHDOG_PID", str(os.getpid()))
    return int(said) / 1e6 if said.isdecimal() and int(said) > 0 and meant == str(os.getpid()) else float("inf")
