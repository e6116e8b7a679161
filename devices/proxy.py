"""A TCP proxy that behaves like a bad link: late, slow, stalled, half-open, cut or reset, by a profile or a caller.

It stands between a client and a server and sees bytes, not packets. A piece that was read first takes its time on the
line, which all connections share in each direction, and then travels: at most what the line holds is in flight, so a
sender feels a slow link. All in one event loop; what changes a running proxy is called from that loop.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from devices.links import Break, Link, Mode, Profile
from protocol.errors import ConfigurationError
from protocol.mqtt import BrokerAddress

# Small, so that a throttled sender is held back by us and not taken in by the kernel: half a second at 1 Mbit/s.
_BUFFER_BYTES = 64 << 10
# A rate is kept in pieces of this long, so that a change of it is felt soon.
_PIECE_S = 0.02
# Pieces under way in one direction of one connection, on a link without a rate.
_MAX_IN_FLIGHT = 256

# Pieces under way, with the time each arrives; an empty one is the end.
Flight = asyncio.Queue[tuple[float, bytes]]


@dataclass(slots=True)
class Counts:
    """What a proxy has seen. Bytes are those it delivered, in each direction, and those it swallowed."""

    opened: int = 0
    open: int = 0
    refused: int = 0
    cut: int = 0
    reset: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    swallowed: int = 0


@dataclass(slots=True)
class _Lane:
    """One direction of the link, shared by its connections: when it is free again, and when it stalls next."""

    up: bool
    rng: np.random.Generator
    free_at: float = 0.0
    stall_at: float | None = None

    def send(self, size: int, link: Link, now: float) -> tuple[float, float]:
        """When a piece has left, and when it arrives."""
        rate = link.up_kbit_s if self.up else link.down_kbit_s
        begins = max(now, self.free_at)
        if link.stall_every_s and link.stall_s:
            self.stall_at = self.stall_at or begins + self.rng.exponential(link.stall_every_s)
            while self.stall_at <= begins:
                begins = max(begins, self.stall_at + link.stall_s)
                self.stall_at = begins + self.rng.exponential(link.stall_every_s)
        self.free_at = begins + (8 * size / (1000 * rate) if rate else 0.0)
        late = link.latency_ms + (self.rng.uniform(-link.jitter_ms, link.jitter_ms) if link.jitter_ms else 0.0)
        return self.free_at, self.free_at + late / 1000

    def piece_bytes(self, link: Link) -> int:
        rate = link.up_kbit_s if self.up else link.down_kbit_s
        size = max(1, int(rate * 1000 / 8 * _PIECE_S)) if rate else _BUFFER_BYTES
        return min(size, link.slice_bytes or _BUFFER_BYTES, _BUFFER_BYTES)


class Proxy:
    """One link: what connects to it is connected to `to`. `serve` runs it until cancelled, `link` is what holds now."""

    def __init__(self, to: BrokerAddress, profile: Profile | None = None, seed: int = 1) -> None:
        self._to, self._profile = to, profile or Profile()
        self.link = self._open = self._profile.link
        self._held: Mode | None = None
        self.counts = Counts()
        self.port = 0
        self._lanes = tuple(_Lane(up, np.random.default_rng((seed, up))) for up in (True, False))
        self._connections: set[_Connection] = set()
        self._changed = asyncio.Event()

    async def serve(self, listen: BrokerAddress | socket.socket, ready: Callable[[], None] = lambda: None) -> None:
        """Accepts connections until cancelled; `port` is set when `ready` is called. Raises ConfigurationError.

        listen: where, or a socket that listens already, perhaps in a network of its own; it is closed at the end.
        """
        loop = asyncio.get_running_loop()
        with _patient(listen) if isinstance(listen, socket.socket) else _listener(listen) as listener:
            self.port = listener.getsockname()[1]
            ready()
            timeline = loop.create_task(self._follow())
            tasks: set[asyncio.Task[None]] = {timeline}
            try:
                while True:
                    client, _ = await loop.sock_accept(listener)
                    if self.link.mode == "refused":
                        self.counts.refused += 1
                        _close(client, reset=True)
                        continue
                    task = loop.create_task(self._carry(client))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            finally:
                running = tuple(tasks)
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    def change(self, link: Link) -> None:
        """What holds from now on. What was swallowed stays lost, and its connections silent."""
        self._open = link
        self._settle()

    def hold(self, mode: Mode | None) -> None:
        """That mode, whatever the profile's timeline says meanwhile; None gives the link back to it."""
        self._held = mode
        self._settle()

    def _settle(self) -> None:
        self.link = self._open if self._held is None else replace(self._open, mode=self._held)
        self._changed.set()
        self._changed = asyncio.Event()

    def do(self, what: Break) -> None:
        """Breaks every connection there is; new ones may come."""
        for connection in tuple(self._connections):
            connection.end(what)

    async def while_mode(self, mode: str) -> None:
        """Returns once the link is not, or no longer, in that mode."""
        while self.link.mode == mode:
            await self._changed.wait()

    async def _follow(self) -> None:
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        while True:
            for step in self._profile.steps:
                await asyncio.sleep(began + step.at_s - loop.time())
                if step.link is not None:
                    self.change(step.link)
                if step.do is not None:
                    self.do(step.do)
            if not self._profile.repeat_s:
                return
            began += self._profile.repeat_s
            await asyncio.sleep(began - loop.time())
            self.change(self._profile.link)

    async def _carry(self, client: socket.socket) -> None:
        self.counts.opened += 1
        self.counts.open += 1
        connection = _Connection(self, client, asyncio.current_task())
        self._connections.add(connection)
        try:
            await connection.run(self._to, self._lanes)
        except* OSError:
            # The server is not there, or one side reset: so the other sees a reset too.
            connection.broken = connection.broken or "reset"
        except* asyncio.CancelledError:
            # By `end`, or because the proxy ends.
            connection.broken = connection.broken or "cut"
        finally:
            self._connections.discard(connection)
            self.counts.open -= 1
            connection.close()


@dataclass(slots=True, eq=False)
class _Connection:
    """A client's connection and the one to the server, which is made when the link lets it."""

    proxy: Proxy
    client: socket.socket
    task: "asyncio.Task[None] | None"
    server: socket.socket | None = None
    silent: bool = False
    broken: Break | None = None
    passed: int = 0

    async def run(self, to: BrokerAddress, lanes: tuple[_Lane, ...]) -> None:
        self.client.setblocking(False)
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self.proxy.while_mode("stalled")
        if self.proxy.link.mode == "half-open":
            self.silent = True
            while data := await asyncio.get_running_loop().sock_recv(self.client, _BUFFER_BYTES):
                self.proxy.counts.swallowed += len(data)
            return
        self.server = _socket(to)
        await asyncio.get_running_loop().sock_connect(self.server, (to.host, to.port))
        async with asyncio.TaskGroup() as group:
            for source, sink, lane in zip((self.client, self.server), (self.server, self.client), lanes, strict=True):
                flight: Flight = asyncio.Queue(_MAX_IN_FLIGHT)
                group.create_task(self._depart(source, flight, lane))
                group.create_task(self._arrive(flight, sink, lane))

    def end(self, what: Break) -> None:
        """Ends it from outside."""
        self.broken = what
        if self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        counts = self.proxy.counts
        counts.reset += self.broken == "reset"
        counts.cut += self.broken == "cut"
        for end in (self.client, self.server):
            if end is not None:
                _close(end, reset=self.broken == "reset")

    async def _depart(self, source: socket.socket, flight: Flight, lane: _Lane) -> None:
        """What the source says, to its end, each piece put on its way when it has left."""
        loop, data = asyncio.get_running_loop(), b"-"
        while data:
            await self.proxy.while_mode("stalled")
            try:
                data = await loop.sock_recv(source, lane.piece_bytes(self.proxy.link))
            except OSError:
                # A reset is news as well, and a silent link passes none on.
                if not self.silent and self.proxy.link.mode != "half-open":
                    raise
                data = b""
            left, arrives = lane.send(len(data), self.proxy.link, loop.time())
            await asyncio.sleep(left - loop.time())
            await flight.put((arrives, data))

    async def _arrive(self, flight: Flight, sink: socket.socket, lane: _Lane) -> None:
        """Gives the sink what arrives, and the end of it."""
        loop, arrived, data = asyncio.get_running_loop(), 0.0, b"-"
        while data:
            arrives, data = await flight.get()
            # Jitter changes when a piece arrives, never the order.
            arrived = max(arrived, arrives)
            await asyncio.sleep(arrived - loop.time())
            await self.proxy.while_mode("stalled")
            self.silent = self.silent or self.proxy.link.mode == "half-open"
            if self.silent:
                self.proxy.counts.swallowed += len(data)
            elif data:
                await self._deliver(data, sink, lane)
            else:
                sink.shutdown(socket.SHUT_WR)

    async def _deliver(self, data: bytes, sink: socket.socket, lane: _Lane) -> None:
        limit = self.proxy.link.limit_bytes
        within = data if limit is None else data[: max(0, limit - self.passed)]
        await asyncio.get_running_loop().sock_sendall(sink, within)
        self.passed += len(within)
        if lane.up:
            self.proxy.counts.bytes_up += len(within)
        else:
            self.proxy.counts.bytes_down += len(within)
        if len(within) < len(data):
            self.end("cut")


def _listener(listen: BrokerAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        listener = socket.create_server((listen.host, listen.port), family=family)
    except OSError as error:
        raise ConfigurationError(
            f"listen: {listen.host}:{listen.port} cannot be listened on ({error.strerror}); name another port"
        ) from None
    return _patient(listener)


def _patient(listener: socket.socket) -> socket.socket:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    listener.setblocking(False)
    return listener


def _socket(to: BrokerAddress) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in to.host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setblocking(False)
    return made


def _close(end: socket.socket, *, reset: bool) -> None:
    if reset:
        # On, with no time to linger: what is unsent goes, and the peer gets a RST in place of an end.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
