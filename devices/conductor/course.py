"""A fleet's course: its timeline is carried out, its devices are looked at, rounds are counted, until it is over."""

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from devices.conductor.acts import Acts
from devices.conductor.control import Words
from devices.conductor.members import Member
from devices.engines.engine import EngineError
from devices.facts import Event, Finished, RoundCommitted, UpdateRejected
from devices.fleet.plan import FleetPlan
from devices.fleet.timeline import Deed, DeedKind, deeds
from protocol.errors import ConfigurationError, SparsefleetError, UnreachableError

# Between two looks at all devices; light ones, which may be hundreds, are looked at in every tenth.
_LOOK_S = 1.0
_LIGHT = 10
# Looking at hundreds must not be what the fleet's time goes into: so much longer than a turn took nobody looks.
_REST = 5.0
# Nothing comes of a fleet that has been silent for so many emulated seconds, or so many of its rounds' deadlines, with
# somebody there; nor of one that nobody came to for a day.
STALL_S, _DEADLINES = 1800.0, 3
ALONE_S = 86_400.0
_AHEAD_S = 3600.0
# The timeline's word for a device that is not there, which goes in order and not by its plug.
ABSENT = "not available"


@dataclass(slots=True)
class Course:
    """began: when the emulated clock was 0, on our own. told: what the coordinator tells, if it is ours.

    abort: ends what is under way before the emulated clock begins.
    """

    plan: FleetPlan
    members: Mapping[str, Member]
    acts: Acts
    told: AsyncIterator[Event] | None = None
    outcome: str = ""
    began: float = 0.0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    abort: Callable[[], object] | None = None

    def now_s(self) -> float:
        return self.acts.clock.emulated(asyncio.get_running_loop().time() - self.began) if self.began else 0.0

    def begin(self) -> None:
        """The emulated clock begins: links, which were held until now, are open."""
        self.began = asyncio.get_running_loop().time()
        self.acts.telling.clock = self.now_s
        for member in self.members.values():
            member.cable.hold(cut=False)
            member.mark(0.0)

    async def follow(self) -> None:
        """Until the run is over, or `end` is called. Raises PartFailedError when the coordinator fails."""
        try:
            await self._all_at_once()
        except ExceptionGroup as failed:
            # What failed first ended the others.
            raise failed.exceptions[0] from None

    async def _all_at_once(self) -> None:
        async with asyncio.TaskGroup() as group:
            others = [
                group.create_task(self._carry_out()),
                group.create_task(self._look(light=False)),
                group.create_task(self._look(light=True)),
                group.create_task(self._watch_for_silence()),
            ]
            if self.told is not None:
                others.append(group.create_task(self._listen(self.told)))
            await self.over.wait()
            for task in others:
                task.cancel()

    def end(self, outcome: str) -> None:
        self.outcome = self.outcome or outcome
        self.over.set()

    def told_to_end(self, outcome: str) -> None:
        """From outside: by a signal, by `down`, or because time is up. Only the first time counts."""
        first = not self.over.is_set()
        self.end(outcome)
        if first and not self.began and self.abort is not None:
            self.abort()

    async def _listen(self, told: AsyncIterator[Event]) -> None:
        telling = self.acts.telling
        async for event in told:
            match event:
                case RoundCommitted():
                    telling.round(event)
                case UpdateRejected():
                    telling.happened(event.device, "refusal", f"{event.reason}: {event.detail}")
                case Finished():
                    self.outcome = event.reason
        self.end(self.outcome or "the coordinator ended before the rounds were done")

    async def _watch_for_silence(self) -> None:
        """Ends what cannot come to an end: no device is left, none comes, or those that are there finish no round."""
        patience_s = max(STALL_S, _DEADLINES * _deadline_s(self.plan))
        members = self.members.values()
        # When a round was done last, or nobody was there; and when somebody was there last.
        quiet_since = alone_since = 0.0
        rounds = 0
        while True:
            now_s, done = self.now_s(), len(self.acts.telling.committed)
            if any(member.wanted for member in members):
                alone_since = now_s
            if done > rounds or alone_since < now_s:
                rounds, quiet_since = done, now_s
            if all(member.given_up for member in members):
                self.end("no device is left: every agent ended for good, as its log says")
            elif self.told is not None and now_s - quiet_since > patience_s:
                self.end(f"no round came to its end in {patience_s:g} emulated seconds")
            elif self.told is not None and now_s - alone_since > ALONE_S:
                self.end(f"no device was there for {ALONE_S:g} emulated seconds")
            await asyncio.sleep(_LOOK_S)

    async def _carry_out(self) -> None:
        """The timeline, an hour at a time: nobody knows how long the rounds take."""
        begin_s = 0.0
        while True:
            for deed in deeds(self.plan, begin_s + _AHEAD_S, begin_s):
                await self._sleep_until(deed.at_s)
                try:
                    await self.do(deed)
                except SparsefleetError as error:
                    # One that its engine cannot do is said, and the others go on.
                    self.acts.telling.happened(deed.device, "refusal", f"{deed.do}: {error}")
            begin_s += _AHEAD_S
            await self._sleep_until(begin_s)

    async def _sleep_until(self, at_s: float) -> None:
        await asyncio.sleep(self.began + self.acts.clock.real(at_s) - asyncio.get_running_loop().time())

    async def do(self, deed: Deed) -> None:
        member, acts = self.members[deed.device], self.acts
        match deed.do:
            case "power-on":
                await acts.power_on(member, "on" if deed.why == ABSENT else "power-cut ends")
            case "power-off" if deed.why == ABSENT:
                await acts.power_off(member)
            case "power-off":
                await acts.power_off(member, "power-cut", abrupt=True)
            case "kill":
                await acts.kill(member)
            case "cut" | "restore":
                acts.hold(member, cut=deed.do == "cut")
            case "throttle":
                await acts.throttle(member, deed.factor)
            case "clock-jump":
                acts.jump(member, deed.by_s)
            case "disk-full":
                await acts.fill(member)
            case "disk-free":
                await acts.give_way(member)
        member.mark(self.now_s())

    async def _look(self, *, light: bool) -> None:
        members = [member for member in self.members.values() if member.device.light is light]
        loop = asyncio.get_running_loop()
        while members:
            began = loop.time()
            for member in members:
                try:
                    await self.acts.look(member)
                    await self.acts.serve(member)
                except EngineError as error:
                    # An engine that fails once for one device is no end of the fleet.
                    self.acts.telling.happened(member.name, "engine", str(error))
            await asyncio.sleep(max(_LOOK_S * (_LIGHT if light else 1), _REST * (loop.time() - began)))

    async def answer(self, words: Words) -> Words:
        """What an operator asks for, in another terminal."""
        do = str(words.get("do"))
        if do == "status":
            return self.status()
        if do == "down":
            self.told_to_end("taken down")
            return {"ok": True}
        if do not in _ASKED:
            raise ConfigurationError(f"control: {do!r} is unknown; known: {', '.join(_ASKED)}, status, down")
        names = self._named(words.get("devices"))
        factor = words.get("factor", 1.0)
        if not isinstance(factor, int | float) or not (math.isfinite(factor) and 0.0 < factor <= 1.0):
            raise ConfigurationError(f"factor: {factor!r} must be above 0 and at most 1; 1 is all that it had")
        if not self.began:
            raise UnreachableError(f"fleet {self.acts.fleet!r} is starting still; do it when ps says that it runs")
        for name in names:
            await self.do(Deed(self.now_s(), name, _ASKED[do], float(factor), why="operator"))
        return {"ok": True, "devices": names}

    def _named(self, devices: object) -> list[str]:
        """Devices that somebody asked for, all of which there are. Raises ConfigurationError."""
        names = [str(name) for name in devices] if isinstance(devices, list) else []
        known = [device.name for device in self.plan.devices]
        wrong = next((repr(name) for name in names if name not in known), None if names else "none")
        if wrong is not None:
            raise ConfigurationError(f"device: {wrong} is not of this fleet, which has {', '.join(known)}")
        return names

    def status(self) -> Words:
        committed = self.acts.telling.committed
        return {
            "fleet": self.acts.fleet,
            "pid": os.getpid(),
            "at_s": round(self.now_s(), 1),
            "round": committed[-1].round.round if committed else 0,
            "rounds": self.acts.telling.rounds,
            "accuracy": committed[-1].round.accuracy if committed else None,
            "running": self.began > 0.0,
            "devices": [_row(member) for member in self.members.values()],
        }


_ASKED: Mapping[str, DeedKind] = {"kill": "kill", "cut": "cut", "restore": "restore", "throttle": "throttle"}


def _deadline_s(plan: FleetPlan) -> float:
    """Of a round, in emulated seconds, as far as the fleet's file says."""
    said = plan.settings.get("rounds", {}).get("deadline_s")
    return float(said) if isinstance(said, int | float) else 0.0


def _row(member: Member) -> dict[str, object]:
    return {
        "device": member.name,
        "board": member.device.board.name,
        "engine": member.engine.name,
        "presence": member.presence,
        "state": member.now.state,
        "cpu_s": round(member.cpu_s, 1),
        "memory_mib": member.now.memory_mib,
        "restarts": member.restarts,
        "bytes_up": member.cable.bytes_up,
        "bytes_down": member.cable.bytes_down,
        "given_up": member.given_up,
    }
