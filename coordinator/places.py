"""The places at a port that takes strangers: who waits too long loses its own, and whoever crowds gives way first.

The handles are duplicates of the connections' descriptors: TLS takes the connection itself away, and to shut a
duplicate down ends it all the same, in whatever read or handshake its thread is.
"""

import ipaddress
import socket
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Place:
    """One connection's. crowd: who it counts with; ended: whether it was told to go."""

    handle: socket.socket
    crowd: str
    since: float
    ended: bool = False


class Places:
    """So many connections at once, each for so many seconds in all, however slowly it speaks. Any thread may call."""

    def __init__(self, most: int, longest_s: float) -> None:
        self._most, self._longest_s = most, longest_s
        self._taken: list[Place] = []
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, connection: socket.socket, peer: str, now: float, patience_s: float = 1.0) -> Place | None:
        """A place for a newcomer. Where all are taken, the oldest of the largest crowd has to go for it. None where
        that one does not go in time."""
        with self._changed:
            if len(self._taken) >= self._most:
                self._end(self._crowding())
            if not self._changed.wait_for(lambda: len(self._taken) < self._most, patience_s):
                return None
            place = Place(connection.dup(), crowd_of(peer), now)
            self._taken.append(place)
            return place

    def leave(self, place: Place) -> None:
        with self._changed:
            self._taken.remove(place)
            place.handle.close()
            self._changed.notify_all()

    def end_late(self, now: float) -> None:
        """Ends connections that are older than they may be."""
        with self._changed:
            for place in self._taken:
                if now - place.since > self._longest_s:
                    self._end(place)

    def _crowding(self) -> Place:
        """Of those not told to go yet, so that two newcomers do not wait for the same one."""
        staying = [place for place in self._taken if not place.ended] or self._taken
        sizes = Counter(place.crowd for place in staying)
        return min(staying, key=lambda place: (-sizes[place.crowd], place.since))

    def _end(self, place: Place) -> None:
        place.ended = True
        # It may have ended by itself.
        with suppress(OSError):
            place.handle.shutdown(socket.SHUT_RDWR)


def crowd_of(peer: str) -> str:
    """An address; of IPv6 its network of 64 bits, in which one machine may have any number."""
    address = ipaddress.ip_address(peer.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        # A socket for both families shows IPv4 like this.
        mapped = address.ipv4_mapped
        return str(mapped or ipaddress.IPv6Network((int(address), 64), strict=False))
    return str(address)
