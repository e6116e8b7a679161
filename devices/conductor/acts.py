"""What is done to the devices of a fleet that runs, by its timeline, by an operator, or by an agent's service.

Engines block; their calls go through a few threads that live as long as we do, one at a time for each device.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from devices.conductor.members import Member
from devices.conductor.service import RESTART_S, in_words, starts_again
from devices.conductor.telling import Telling
from devices.engines.engine import EngineError
from devices.fleet.clock import Clock
from devices.images.clock import set_clock

T = TypeVar("T")

# Two cores have nothing of more, and a fleet of hundreds must not all start at once.
HANDS = 4
# Emulated seconds that a device takes to go down in order.
_GRACE_S = 5.0
_BALLAST = ".disk-full"


@dataclass(slots=True)
class Acts:
    fleet: str
    telling: Telling
    clock: Clock = field(default_factory=lambda: Clock(1.0))
    parallel: int = HANDS
    hands: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(HANDS, "engine"))
    offsets: dict[str, float] = field(default_factory=dict)

    async def by_hand(self, member: Member, do: Callable[..., T], *words: object) -> T:
        """A call of the device's engine, in a thread, when no other is under way for it."""
        async with member.lock:
            return await self.in_thread(do, *words)

    async def in_thread(self, do: Callable[..., T], *words: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.hands, partial(do, *words))

    async def power_on(self, member: Member, why: str = "on") -> None:
        """Its power is back, or it is there again: its agent starts with it."""
        if member.wanted:
            return
        await self.by_hand(member, member.engine.again, self.fleet, member.name)
        member.wanted, member.resolved, member.in_memory_trouble = True, False, False
        self.telling.happened(member.name, why)

    async def power_off(self, member: Member, why: str = "off", *, abrupt: bool = False) -> None:
        if not member.wanted:
            return
        member.wanted, member.again_at = False, None
        detail = ""
        if abrupt:
            cut = await self.by_hand(member, member.engine.cut_power, self.fleet, member.name)
            detail = "" if cut else "its disk keeps what was not synced"
        else:
            await self.by_hand(member, member.engine.stop, self.fleet, member.name, self.clock.real(_GRACE_S))
        member.cable.drop()
        self.telling.happened(member.name, why, detail)

    async def kill(self, member: Member) -> None:
        """SIGKILL to the agent; its service starts it again."""
        self.telling.happened(member.name, "kill")
        if member.wanted:
            await self.by_hand(member, member.engine.kill, self.fleet, member.name)

    def hold(self, member: Member, *, cut: bool) -> None:
        if member.cable.cut != cut:
            member.cable.hold(cut=cut)
            self.telling.happened(member.name, "cut" if cut else "cut ends")

    async def throttle(self, member: Member, factor: float) -> None:
        """Leaves it so much of its processor; 1 is all that it had."""
        cores = member.start.limits.cores
        if cores is None:
            raise EngineError(f"{member.name} has no limit of its processor to be throttled from; give it an engine's")
        await self.by_hand(member, member.engine.throttle, self.fleet, member.name, cores * factor)
        self.telling.happened(member.name, "throttle" if factor < 1 else "throttle ends", f"{factor:.0%} of its share")

    def jump(self, member: Member, by_s: float) -> None:
        """Its clock is off by so much more from now on."""
        if member.start.clock is None:
            raise EngineError(f"{member.name} has this machine's clock, which is not changed; its engine has no other")
        offset = self.offsets.get(member.name, member.device.board.clock_offset_s) + by_s
        self.offsets[member.name] = offset
        set_clock(member.start.clock, offset)
        self.telling.happened(member.name, "clock-jump", f"{by_s:+g} s")

    async def fill(self, member: Member) -> None:
        """Takes all that is left of its disk, if it is a disk of its own."""
        await self.by_hand(member, _fill, member.start.state)
        self.telling.happened(member.name, "disk-full")

    async def give_way(self, member: Member) -> None:
        with contextlib.suppress(FileNotFoundError):
            (member.start.state / _BALLAST).unlink()
        self.telling.happened(member.name, "disk-full ends")

    async def look(self, member: Member, *, last: bool = False) -> None:
        """One sample; an end that nobody meant is written down, and its next start set, but after the last look."""
        condition = await self.by_hand(member, member.engine.condition, self.fleet, member.name)
        member.saw(condition, self.telling.clock())
        if condition.out_of_memory and not member.in_memory_trouble:
            member.out_of_memory += 1
            self.telling.happened(member.name, "out-of-memory", "a process of it was killed for want of memory")
        member.in_memory_trouble = condition.out_of_memory
        if member.wanted and condition.state == "ended" and not member.resolved and not last:
            self._ended(member, condition.exit_code)

    def _ended(self, member: Member, exit_code: int | None) -> None:
        member.resolved = True
        member.cable.drop()
        if starts_again(exit_code):
            member.again_at = asyncio.get_running_loop().time() + self.clock.real(RESTART_S)
            self.telling.happened(member.name, "exit", in_words(exit_code))
        else:
            member.given_up = True
            self.telling.happened(member.name, "exit", f"{in_words(exit_code)}; its service starts it no more")

    async def serve(self, member: Member) -> None:
        """Starts an agent again whose service would by now."""
        if member.again_at is None or asyncio.get_running_loop().time() < member.again_at or not member.wanted:
            return
        member.again_at = None
        await self.by_hand(member, member.engine.again, self.fleet, member.name)
        # It may end as its last start did before anybody looks.
        member.resolved = member.in_memory_trouble = False
        member.restarts += 1
        self.telling.happened(member.name, "start", f"restart {member.restarts}")


def _fill(state: Path) -> None:
    if state.stat().st_dev == state.parent.stat().st_dev:
        raise EngineError(
            f"{state}: it has no disk of its own, and this machine's is not filled; use a container engine"
        )
    descriptor = os.open(state / _BALLAST, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while (free := os.fstatvfs(descriptor)).f_bavail:
            end = os.fstat(descriptor).st_size
            os.posix_fallocate(descriptor, end, max(free.f_bsize, free.f_bavail * free.f_bsize // 2))
    except OSError:
        # Full, but for the last blocks of metadata: that is what was wanted.
        return
    finally:
        os.close(descriptor)
