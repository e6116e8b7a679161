"""The links of a fleet's devices: a proxy for each port that a device reaches, by its board's profile, at our clock."""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from devices.links import Profile
from devices.proxy import Proxy
from protocol.mqtt import BrokerAddress


@dataclass(slots=True)
class Cable:
    """All of one device's way out. A cut is a stall: what TCP has sent waits in it and is sent again, as on a real one;
    ends that lose patience meanwhile find nobody at the other."""

    proxies: tuple[Proxy, ...] = ()
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    cut: bool = False

    @property
    def bytes_up(self) -> int:
        return sum(proxy.counts.bytes_up for proxy in self.proxies)

    @property
    def bytes_down(self) -> int:
        return sum(proxy.counts.bytes_down for proxy in self.proxies)

    @property
    def tried(self) -> bool:
        """Whether its agent has come to the broker's end: it is up."""
        return bool(self.proxies) and self.proxies[0].counts.opened > 0

    def hold(self, *, cut: bool) -> None:
        self.cut = cut
        for proxy in self.proxies:
            proxy.hold("stalled" if cut else None)

    def drop(self) -> None:
        """The device lost its power: whom it talked to hears nothing more of it, but TCP's reset when it is back."""
        for proxy in self.proxies:
            proxy.do("reset")

    def lay(self, ends: Sequence[tuple[socket.socket, BrokerAddress]], profile: Profile, seed: int) -> None:
        """Begins to carry what comes to each socket to its address; in the running loop, until `take_up`."""
        loop = asyncio.get_running_loop()
        self.proxies = tuple(Proxy(to, profile, seed + number) for number, (_, to) in enumerate(ends))
        for proxy, (listener, _) in zip(self.proxies, ends, strict=True):
            self.tasks.append(loop.create_task(proxy.serve(listener)))

    async def take_up(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
