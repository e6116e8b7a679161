"""A broker's front that loses and doubles messages by chance, for tests: each acknowledged all the same, as by a broker
that keeps nothing."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

PUBLISH = 3


@dataclass
class LossyFront:
    """Stands before a port of this machine; both directions alike. lost, doubled: shares of messages.

    of: the topics that are not safe.
    """

    to: int
    lost: float = 0.01
    doubled: float = 0.01
    seed: int = 1
    of: Callable[[str], bool] = lambda _: True
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("passed", "lost", "doubled"), 0))

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._number, self._lock = self.seed, threading.Lock()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        # Closing alone would leave the thread waiting for a connection that cannot come.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                return
            # Both threads of a connection write to both ends, a packet at a time.
            lock = threading.Lock()
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, sink, lock), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, lock: threading.Lock) -> None:
        reader = source.makefile("rb")
        # An end that is gone, or was closed by the other thread, is the end of the connection.
        with suppress(OSError, ValueError):
            while (packet := _packet(reader.read)) is not None:
                answer, times = self._fate(packet)
                with lock:
                    for _ in range(times):
                        sink.sendall(packet)
                    if answer:
                        source.sendall(answer)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _fate(self, packet: bytes) -> tuple[bytes, int]:
        """What is said to its sender in the receiver's name, and how often the packet goes on."""
        if packet[0] >> 4 != PUBLISH:
            return b"", 1
        topic, message = _topic(packet)
        with self._lock:
            # Spread evenly (by the golden ratio), so that a hundred messages see one in a hundred.
            self._number += self.of(topic)
            drawn = self._number * 0.6180339887498949 % 1.0 if self.of(topic) else 1.0
            fate = "lost" if drawn < self.lost else "doubled" if drawn < self.lost + self.doubled else "passed"
            self.counts[fate] += 1
        if fate == "lost":
            return b"" if message is None else struct.pack(">BBH", 0x40, 2, message), 0
        return b"", 2 if fate == "doubled" else 1


def _packet(read: Callable[[int], bytes]) -> bytes | None:
    """One packet of MQTT, whole; None at the end."""
    head = read(1)
    if not head:
        return None
    length, shift = 0, 0
    while True:
        digit = read(1)
        if not digit:
            return None
        head += digit
        length |= (digit[0] & 0x7F) << shift
        shift += 7
        if not digit[0] & 0x80:
            break
    body = read(length)
    return head + body if len(body) == length else None


def _topic(packet: bytes) -> tuple[str, int | None]:
    """The topic of a PUBLISH, and the number that it is acknowledged by, None where it is not."""
    at = 1
    while packet[at] & 0x80:
        at += 1
    (size,) = struct.unpack_from(">H", packet, at + 1)
    topic = packet[at + 3 : at + 3 + size].decode()
    qos = packet[0] >> 1 & 3
    return topic, struct.unpack_from(">H", packet, at + 3 + size)[0] if qos else None
