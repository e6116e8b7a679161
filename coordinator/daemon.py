"""The coordinator: what devices say is heard, checked and answered. Events and time come in, messages go out.

What that means for rounds is carried out in course.py.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from coordinator import round as rounds
from coordinator.budget import day_of
from coordinator.candidates import Candidates, skills_for
from coordinator.council_room import Allow, CouncilRoom
from coordinator.course import Course
from coordinator.distiller import Distiller
from coordinator.doubles import Doubles
from coordinator.evaluate import Examine
from coordinator.events import DeviceSeen, Emit, UpdateRejected
from coordinator.fleet import Fleet
from coordinator.gossip_rules import check_first, rules_of
from coordinator.library import Library
from coordinator.link import Link
from coordinator.quotas import Quotas
from coordinator.reception import Reception, Rejected, Taken, Uncounted
from coordinator.rivals import UNSURE_S, Rivals
from coordinator.seals import Seals
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.uploads import Uploads
from protocol.bundle import Bundle
from protocol.envelope import Envelope
from protocol.errors import Rejection
from protocol.gossip import Standing
from protocol.messages import (
    INELIGIBLE,
    Chunk,
    CoordinatorState,
    DeviceState,
    Hello,
    Need,
    Offer,
    TaskReport,
    Unavailable,
    Welcome,
    Withdraw,
)
from protocol.restraint import Restraint
from protocol.topics import Topics
from protocol.transport import Connected, Disconnected, Event, Incoming, Transport

log = logging.getLogger("coordinator")

# Presence and byte counts are written so often; losing this much of them harms nothing.
NOTE_EVERY_S = 5.0


class Coordinator:
    """One run of one fleet. `handle` takes what arrived, `advance` does what is due; both from one thread."""

    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        store: Store,
        transport: Transport,
        clock: Callable[[], float],
        emit: Emit,
        examine: Examine | None = None,
        wall: Callable[[], float] = time.time,
        admit: Callable[[str], Rejection | None] = lambda _: None,
        seals: Seals | None = None,
        distiller: Distiller | None = None,
        allow: Allow = lambda _: None,
    ) -> None:
        """admit: why a device is not heard, asked at every message; without identities everybody is, and nothing has
        seals. distiller: what follows a fold, if anything. allow: has the broker let devices hear their neighbours."""
        self._admit, self._seals = admit, seals
        self._settings, self._bundle, self._store = settings, bundle, store
        self._clock, self._emit, self._examine, self._wall = clock, emit, examine, wall
        self._topics = Topics(settings.fleet)
        self._library = Library(bundle, store.models)
        self._link = Link(transport, self._topics, store.epoch, store.traffic(), seals)
        self._link.begin_day(day_of(wall()))
        self._fleet = Fleet(store.devices())
        self._uploads = Uploads(store.updates, self._link, settings.limits.uploads)
        limits = settings.limits
        self._reception = Reception(
            *(store, self._link, self._uploads, bundle.manifest),
            # Without a hub all devices count alike in the mean.
            1 if settings.gossip.on else limits.examples,
            lambda: self._course.versions.hard_bounds,
        )
        self._quotas = Quotas(limits.device_messages_per_minute, limits.device_mib_per_minute)
        self._council = self._open_council(allow, clock())
        candidates = Candidates(
            *(settings, bundle.manifest, store, self._fleet, self._link, self._uploads, wall, self._count),
            council=self._council,
        )
        self._doubles = Doubles()
        state = CoordinatorState(store.epoch, True, store.run, store.instance, spread_s=self._fleet.spread_s)
        self._rivals = Rivals(state)
        self._restraint = Restraint()
        self._greeted: set[str] = set()
        self._noted = dict(self._link.traffic)
        self._uncounted: dict[tuple[str, str], tuple[int, str]] = {}
        self._outage_logged = False
        self._note_at = 0.0
        self._course = Course(
            *(settings, bundle, self._library.manifest, store, self._link, self._fleet, self._uploads, candidates),
            *(clock, emit, examine, distiller, self._note, self._settle, self._council),
        )
        self._counted = self._course.counted

    def _open_council(self, allow: Allow, now: float) -> CouncilRoom | None:
        """Of a fleet without a hub. Raises ConfigurationError where it can have none."""
        if not self._settings.gossip.on:
            return None
        seals, skills = self._seals, frozenset(skills_for(self._settings))
        key_of = (lambda _: None) if seals is None else seals.key_of
        rules = rules_of(self._settings)
        room = CouncilRoom(
            *(rules, skills, self._store, self._link, self._fleet, self._admit, allow, key_of),
            asked=lambda: self._settings.gossip.exchanges * (self._course.versions.number + 1),
        )
        room.recover(now)
        if not room.members:
            check_first(rules)
        return room

    def recover(self, now: float) -> None:
        """Takes everything from the store again, after a fault."""
        self._reception.clear()
        if self._council is not None:
            self._council.recover(now)
        self._course.recover(now)
        self._counted = self._course.counted

    @property
    def finished(self) -> bool:
        return self._course.finished

    # What arrives

    def handle(self, event: Event, now: float) -> None:
        """Takes one event of the transport in."""
        match event:
            case Connected():
                log.info("connected epoch=%d", self._store.epoch)
                self._course.connected, self._outage_logged = True, False
                self._rivals.connected(now)
                self._link.tell_everyone("coordinator", self._rivals.say(now), retain=True)
            case Disconnected(reason):
                # Once per outage: the transport goes on trying, and says so at every attempt.
                if not self._outage_logged:
                    log.warning("disconnected reason=%r", reason)
                self._course.connected, self._outage_logged = False, True
            case Incoming():
                self._read(event, now)

    def _read(self, message: Incoming, now: float) -> None:
        speaker = self._link.speaker(message)
        over = None if speaker is None else self._quotas.take(speaker, len(message.topic) + len(message.payload), now)
        if speaker is not None and over is not None:
            self._count(speaker, over)
            return
        if speaker is None:
            self._hear(self._link.read_coordinator(message), now)
            return
        if self._rivals.unsure(now):
            # It is said again by whoever cares.
            return
        device = speaker
        unwelcome = self._admit(device)
        if unwelcome is not None:
            self._turn_away(device, unwelcome, now)
            return
        said = self._link.read(message)
        assert said is not None
        if isinstance(said, Rejection):
            self._count(device, said)
            return
        if isinstance(said.body, Hello) and not self._fleet.knows(device):
            if self._fleet.full:
                self._count(device, Rejection("fleet-full", "no more devices are taken in"))
                return
            # Written with the next notes, or before it is invited; a storm of hellos must not be one of disk writes.
            self._fleet.hello(device, said.body, self._wall())
        if self._fleet.knows(device):
            self._link.count_up(device, message, said)
            if self._council is not None:
                self._council.heard(device, now)
            if not isinstance(said.body, DeviceState) or said.body.state == "ready":
                self._fleet.heard(device, said.boot, self._wall(), greeting=isinstance(said.body, Hello))
            else:
                self._fleet.left(device, said.boot)
        self._obey(device, said, now)

    def _turn_away(self, device: str, why: Rejection, now: float) -> None:
        """Hears nothing of a device that was revoked, or was never let in, and waits for nothing of it."""
        self._count(device, why)
        if self._council is not None:
            self._council.left(device)
        if self._fleet.has(device):
            self._fleet.turned_away(device)
        if self._reception.awaits(device):
            # What came before counts.
            self._settle(now)
        self._course.turned_away(device, why, now)

    def _hear(self, said: CoordinatorState | None, now: float) -> None:
        heard = "nothing" if said is None else self._rivals.hear(said, self._settings.fleet, now)
        if said is None or heard == "nothing":
            return
        self._link.tell_everyone("coordinator", self._rivals.say(now), retain=True)
        if heard == "rival" and self._restraint.unsaid("rival", now) is not None:
            log.error(
                "another coordinator serves this fleet through this broker: run=%s; stop one of the two, "
                "devices cannot work for both",
                said.run or "unknown",
            )

    def _obey(self, device: str, said: Envelope, now: float) -> None:
        body = said.body
        match body:
            case Offer():
                self._offered(device, body, now)
            case _ if not self._fleet.knows(device):
                if not isinstance(body, DeviceState):
                    self._count(device, Rejection("unknown-device", f"{type(body).__name__} before any hello"))
            case Hello():
                self._greet(device, body, said.sequence, now)
            case TaskReport():
                self._reported(device, body, now)
            case Need():
                for answer in self._library.answer(body):
                    self._link.send(device, answer)
            case Chunk():
                self._count_if(device, self._reception.take(device, body, self._course.view_for, now))
                self._settle_full(now)
            case Unavailable(digest, reason):
                if self._restraint.unsaid((device, "unavailable"), now) is not None:
                    log.warning("unavailable device=%s blob=%s reason=%r", device, digest.hex()[:12], reason)
                self._uploads.end(device)
            case Standing():
                if self._council is not None:
                    self._council.stands(device, body, now)
            case DeviceState():
                if self._council is not None and body.state == "gone":
                    self._council.left(device)
                if self._restraint.unsaid((device, "state"), now) is not None:
                    log.info("device=%s state=%s", device, body.state)
            case _:
                self._count(device, Rejection("misplaced", f"{type(body).__name__} is not a device's to say"))

    def _greet(self, device: str, hello: Hello, sequence: int, now: float) -> None:
        doubled = self._doubles.hear(device, hello.instance, sequence, now)
        if doubled is not None:
            self._count(device, doubled)
        self._fleet.hello(device, hello, self._wall())
        self._fleet.doubled(device, self._wall() if doubled else None)
        lacking = None if self._seals is None else self._seals.lacking(hello.ring)
        if lacking is not None:
            self._link.send(device, lacking)
        behind = None if self._seals is None else self._seals.behind(hello.ring)
        if behind is not None and self._restraint.unsaid("behind", now) is not None:
            log.error("device=%s %s", device, behind)
        warning = doubled.reason if doubled else None
        self._link.send(device, Welcome(self._store.run, self._wall(), warning, hello.instance, sequence))
        if device not in self._greeted:
            self._greeted.add(device)
            self._show(device)
        if hello.task is not None and not self._course.holds(device, hello.task):
            self._link.send(device, Withdraw(hello.task, "round-closed"))
        self._uploads.reconnected(device, now)
        if self._council is not None:
            self._council.greeted(device, hello, now)
        self._course.returned(device, hello, now)

    def _reported(self, device: str, report: TaskReport, now: float) -> None:
        if self._fleet.reported(device, report):
            self._show(device)
        waits = report.state == "accepted" and report.reason == INELIGIBLE
        if waits and self._restraint.unsaid((device, INELIGIBLE), now) is not None:
            log.info("device=%s waits with task=%s: %s", device, report.task, report.detail)
        if not self._course.holds(device, report.task):
            if report.state == "accepted":
                self._link.send(device, Withdraw(report.task, "round-closed"))
                # If it has another, it may have been told while it was at work on this one.
                self._course.decide(rounds.Returned(device), now)
            return
        if report.state == "accepted":
            self._course.accepted_task(device, now)
            return
        if report.reason == "mask-base" and self._course.tell_whole_mask(device, now):
            return
        log.warning("task %s device=%s task=%s %s: %s", report.state, device, report.task, report.reason, report.detail)
        self._course.stopped(device, f"{report.state}: {report.reason}", report.detail, now)

    # Updates

    def _offered(self, device: str, offer: Offer, now: float) -> None:
        if self._reception.awaits(device):
            self._settle(now)
        if self._course.holds(device, offer.task):
            self._course.asking.answered(device)
        seat = self._course.seat(device, offer.round)
        self._count_if(device, self._reception.offered(device, offer, seat, self._course.view_for, now))
        self._settle_full(now)

    def _count_if(self, device: str, verdict: Uncounted | None) -> None:
        if verdict is not None:
            self._count(device, verdict.why)

    def _settle_full(self, now: float) -> None:
        """The round closes with as many updates as it is to have, though more may have arrived by then."""
        if self._counted + self._reception.taken >= self._settings.rounds.goal:
            self._settle(now)

    def _settle(self, now: float) -> None:
        """Makes durable what was decided of updates, tells their devices, and then the round and the operator."""
        settled = self._reception.settle()
        for device, verdict in settled:
            match verdict:
                case Taken(offer):
                    log.info("accepted device=%s round=%d bytes=%d", device, offer.round, offer.blob.size)
                    if self._council is not None:
                        self._council.sent(device, offer.round * self._settings.gossip.exchanges)
                case Rejected(why, number):
                    self._tell_rejected(device, number, why)
        if settled:
            self._course.settled(settled, now)
        self._counted = self._course.counted

    def _count(self, device: str, why: Rejection) -> None:
        """Counts something refused that is of no round. Strangers share one line, there may be any number of them."""
        key = (device if self._fleet.knows(device) else "-", why.reason)
        self._uncounted[key] = (self._uncounted.get(key, (0, ""))[0] + 1, why.detail)
        self._tell_rejected(device, 0, why, key)

    def _tell_rejected(self, device: str, number: int, why: Rejection, kind: tuple[str, str] | None = None) -> None:
        """All are counted in the store; of a flood not each is said."""
        unsaid = self._restraint.unsaid(kind or (device, why.reason), self._clock())
        if unsaid is not None:
            more = f" (and {unsaid} more before it)" if unsaid else ""
            log.warning("rejected device=%s round=%d %s%s", device, number, why, more)
            self._emit(UpdateRejected(device, number, why.reason, why.detail))

    # What is due

    def advance(self, now: float) -> float:
        """Does what is due and says in how many seconds something will be."""
        self._settle(now)
        changed = None if self._seals is None else self._seals.look(now)
        if changed is not None:
            for device in self._fleet.present():
                self._link.send(device, changed)
        self._link.begin_day(day_of(self._wall()))
        if self._rivals.unsure(now):
            return UNSURE_S
        due = [self._note_at]
        if now >= self._note_at:
            self._note()
            self._note_at = due[0] = now + NOTE_EVERY_S
        if self._council is not None:
            due.append(self._council.advance(now))
        due.extend(self._course.advance(now))
        due.append(self._uploads.ask_again(now))
        return max(0.0, min(due) - now)

    def stop(self) -> None:
        """Says goodbye and writes the last counts."""
        self._settle(self._clock())
        self._link.tell_everyone("coordinator", replace(self._rivals.own, accepting=False), retain=True)
        self._note()

    def _note(self) -> None:
        self._say_spread()
        changed = self._fleet.take_changed()
        traffic = {key: t for key, t in self._link.traffic.items() if self._noted.get(key) != t}
        if changed or self._uncounted or traffic:
            self._store.note(changed, traffic, self._uncounted, self._course.uptime_s(self._clock()))
            self._uncounted.clear()
            self._noted |= traffic

    def _say_spread(self) -> None:
        """Says so when the fleet has grown so much that it should spread its greetings more."""
        spread_s, said = self._fleet.spread_s, self._rivals.own.spread_s or 0.0
        if self._course.connected and spread_s >= max(2.0 * said, 1.0):
            self._rivals.own = replace(self._rivals.own, spread_s=spread_s)
            self._link.tell_everyone("coordinator", self._rivals.say(self._clock()), retain=True)

    def _show(self, device: str) -> None:
        seen = self._fleet[device]
        log.info("device=%s backend=%s examples=%s", device, seen.backend, seen.examples)
        self._emit(DeviceSeen(device, seen.examples, seen.backend))
