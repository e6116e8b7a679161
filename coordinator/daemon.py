"""The coordinator: carries out what the round and transfer tables decide. Events and time come in, messages go out.

Whatever it holds in memory can be had again from the store: `recover` does so, at the start and after any fault.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from coordinator import round as rounds
from coordinator.asking import Asking
from coordinator.budget import day_of
from coordinator.candidates import Candidates, Part
from coordinator.doubles import Doubles
from coordinator.evaluate import Examine
from coordinator.events import DeviceSeen, Emit, Finished, FinishReason, RoundCommitted, RoundOpened, UpdateRejected
from coordinator.fleet import Fleet
from coordinator.intake import Seat
from coordinator.library import Library
from coordinator.link import Link
from coordinator.planner import make_task, order_devices
from coordinator.reception import Reception, Rejected, Taken, Uncounted
from coordinator.rivals import Rivals
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.uploads import Uploads
from coordinator.versions import Versions
from protocol.bundle import Bundle
from protocol.errors import Rejection
from protocol.manifest import FULL
from protocol.messages import (
    Announcement,
    Chunk,
    CoordinatorState,
    DeviceState,
    Envelope,
    Hello,
    Need,
    Offer,
    Task,
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
    ) -> None:
        self._settings, self._bundle, self._store = settings, bundle, store
        self._clock, self._emit, self._examine, self._wall = clock, emit, examine, wall
        self._topics = Topics(settings.fleet)
        self._library = Library(bundle, store.models)
        self._link = Link(transport, self._topics, store.epoch, store.traffic())
        self._link.begin_day(day_of(wall()))
        self._fleet = Fleet(store.devices())
        self._asking = Asking(self._link, self._fleet)
        self._uploads = Uploads(store.updates, self._link)
        self._reception = Reception(store, self._link, self._uploads, bundle.manifest, settings.limits.examples)
        self._candidates = Candidates(
            settings, bundle.manifest, store, self._fleet, self._link, self._uploads, wall, self._count
        )
        self._doubles = Doubles()
        self._rivals = Rivals(CoordinatorState(store.epoch, accepting=True, run=store.run))
        self._restraint = Restraint()
        self._greeted: set[str] = set()
        self._parts: dict[str, Part] = {}
        self._noted = dict(self._link.traffic)
        self._uncounted: dict[tuple[str, str], tuple[int, str]] = {}
        self._connected, self._outage_logged = False, False
        self._waiting_with: int | None = None
        self._finished = False
        self._note_at = 0.0
        self.recover(clock())

    def recover(self, now: float) -> None:
        """Takes model, round and tasks from the store; makes version 0 if there is none yet."""
        store = self._store
        self._versions = Versions(self._settings, self._bundle, store, self._clock, self._examine)
        self._invitations = store.invitations()
        self._round: rounds.Round | None = None
        self._asking.resume({}, (), now)
        self._opened_at = now
        self._uploads.clear()
        self._reception.clear()
        self._done = 0
        opened = store.opened_round()
        if opened is None:
            return
        self._bytes_before = opened.bytes_before
        seats = {t.device: t.phase for t in opened.tasks}
        self._round = self._empty_round(opened.number, now, seats, opened.extensions)
        self._done = len(self._round.devices("done"))
        tasks = {t.device: t.task for t in opened.tasks}
        self._asking.resume(tasks, self._round.devices("invited", "late"), now)
        log.info("resumed round=%d delivered=%d", opened.number, len(self._round.devices("done")))

    @property
    def finished(self) -> bool:
        return self._finished

    # What arrives

    def handle(self, event: Event, now: float) -> None:
        """Takes one event of the transport in."""
        match event:
            case Connected():
                log.info("connected epoch=%d", self._store.epoch)
                self._connected, self._outage_logged = True, False
                self._rivals.connected(now)
                self._link.tell_everyone("coordinator", self._rivals.own, retain=True)
            case Disconnected(reason):
                # Once per outage: the transport goes on trying, and says so at every attempt.
                if not self._outage_logged:
                    log.warning("disconnected reason=%r", reason)
                self._connected, self._outage_logged = False, True
            case Incoming():
                self._read(event, now)

    def _read(self, message: Incoming, now: float) -> None:
        read = self._link.read(message)
        if read is None:
            self._hear(self._link.read_coordinator(message), now)
            return
        topic, said = read
        device = topic.device
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
            if not isinstance(said.body, DeviceState) or said.body.state == "ready":
                self._fleet.heard(device, said.boot, self._wall(), greeting=isinstance(said.body, Hello))
            else:
                self._fleet.left(device, said.boot)
        self._obey(device, said, now)

    def _hear(self, said: CoordinatorState | None, now: float) -> None:
        if said is not None and self._rivals.hear(said, self._settings.fleet, now):
            self._link.tell_everyone("coordinator", self._rivals.own, retain=True)
            if self._restraint.unsaid("rival", now) is not None:
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
                self._counted(device, self._reception.take(device, body, self._versions.view, now))
                self._settle_full(now)
            case Unavailable(digest, reason):
                if self._restraint.unsaid((device, "unavailable"), now) is not None:
                    log.warning("unavailable device=%s blob=%s reason=%r", device, digest.hex()[:12], reason)
                self._uploads.end(device)
            case DeviceState():
                if self._restraint.unsaid((device, "state"), now) is not None:
                    log.info("device=%s state=%s", device, body.state)
            case _:
                self._count(device, Rejection("misplaced", f"{type(body).__name__} is not a device's to say"))

    def _greet(self, device: str, hello: Hello, sequence: int, now: float) -> None:
        doubled = self._doubles.hear(device, hello.instance, sequence, now)
        if doubled is not None:
            self._count(device, doubled)
        self._fleet.hello(device, hello, self._wall())
        self._link.send(device, Welcome(self._store.run, self._wall(), doubled.reason if doubled else None))
        if device not in self._greeted:
            self._greeted.add(device)
            self._show(device)
        if hello.task is not None and not self._holds(device, hello.task):
            self._link.send(device, Withdraw(hello.task, "round-closed"))
        self._uploads.reconnected(device, now)
        self._decide(rounds.Returned(device), now)

    def _reported(self, device: str, report: TaskReport, now: float) -> None:
        if self._fleet.reported(device, report):
            self._show(device)
        if not self._holds(device, report.task):
            if report.state == "accepted":
                self._link.send(device, Withdraw(report.task, "round-closed"))
            return
        assert self._round is not None
        number = self._round.number
        self._asking.answered(device)
        if report.state == "accepted":
            self._decide(rounds.Accepted(device), now)
            return
        if report.reason == "mask-base" and self._tell_whole_mask(device, now):
            return
        log.warning("task %s device=%s round=%d %s: %s", report.state, device, number, report.reason, report.detail)
        if self._round.seats[device] in rounds.OPEN:
            self._store.set_phase(number, device, "out", f"{report.state}: {report.reason}", report.detail)
            self._uploads.end(device)
        self._decide(rounds.Stopped(device), now)

    def _tell_whole_mask(self, device: str, now: float) -> bool:
        """Says the task once more if the device was told a difference to a mask that it lost, or never had."""
        task = self._asking.task(device)
        if self._round is None or task is None or task.mask is None or task.mask.base is None:
            return False
        log.info("device=%s round=%d gets the whole mask", device, self._round.number)
        task = replace(task, mask=self._versions.whole_mask(task.mask))
        self._store.replace_task(self._round.number, device, task)
        self._asking.ask(device, task, now, self._round.deadline)
        return True

    def _holds(self, device: str, task: str) -> bool:
        """Whether this is the device's task in the round that is open, and not over."""
        state = self._round
        own = self._asking.task(device)
        return state is not None and own is not None and own.name == task and state.seats[device] in rounds.OPEN

    # Updates

    def _seat(self, device: str, offer: Offer) -> Seat:
        state = self._round
        if state is None or state.number != offer.round:
            known = self._store.has_round(offer.round)
            return Seat(self._fleet.knows(device), known, open_round=False, phase=None, task=None)
        return Seat(self._fleet.knows(device), True, True, state.seats.get(device), self._asking.task(device))

    def _offered(self, device: str, offer: Offer, now: float) -> None:
        if self._reception.awaits(device):
            self._settle(now)
        if self._holds(device, offer.task):
            self._asking.answered(device)
        seat = self._seat(device, offer)
        self._counted(device, self._reception.offered(device, offer, seat, self._versions.view, now))
        self._settle_full(now)

    def _counted(self, device: str, verdict: Uncounted | None) -> None:
        if verdict is not None:
            self._count(device, verdict.why)

    def _settle_full(self, now: float) -> None:
        """The round closes with as many updates as it is to have, though more may have arrived by then."""
        if self._round is not None and self._done + self._reception.taken >= self._round.goal:
            self._settle(now)

    def _settle(self, now: float) -> None:
        """Makes durable what was decided of updates, tells their devices, and then the round and the operator."""
        for device, verdict in self._reception.settle():
            match verdict:
                case Taken(offer):
                    log.info("accepted device=%s round=%d bytes=%d", device, offer.round, offer.blob.size)
                    self._candidates.delivered(device, offer)
                    self._decide_of(offer.round, rounds.Delivered(device), now)
                case Rejected(why, number, ends_task):
                    self._tell_rejected(device, number, why)
                    if ends_task:
                        self._decide_of(number, rounds.Stopped(device), now)
        self._done = 0 if self._round is None else len(self._round.devices("done"))

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
        self._link.begin_day(day_of(self._wall()))
        due = [self._note_at]
        if now >= self._note_at:
            self._note()
            self._note_at = due[0] = now + NOTE_EVERY_S
        if self._round is not None:
            # Any event lets the table see that the round is complete; after a resume there may be no other.
            self._decide(rounds.Tick(), now)
        if self._connected:
            self._open_next(now)
            if self._round is not None:
                self._asking.say_again(now, self._round.deadline)
                due.extend(self._asking.due())
            due.append(self._uploads.ask_again(now))
        if self._round is not None:
            due.append(self._round.deadline)
        return max(0.0, min(due) - now)

    def stop(self) -> None:
        """Says goodbye and writes the last counts."""
        self._settle(self._clock())
        self._link.tell_everyone("coordinator", replace(self._rivals.own, accepting=False), retain=True)
        self._note()

    def _note(self) -> None:
        changed = self._fleet.take_changed()
        traffic = {key: t for key, t in self._link.traffic.items() if self._noted.get(key) != t}
        if changed or self._uncounted or traffic:
            self._store.note(changed, traffic, self._uncounted)
            self._uncounted.clear()
            self._noted |= traffic

    def _open_next(self, now: float) -> None:
        if self._round is not None or self._finished:
            return
        reason = self._end()
        if reason is not None:
            self._finished = True
            self._emit(Finished(reason, self._versions.number))
            return
        present, least = self._fleet.present_count, self._settings.rounds.least
        if present >= least:
            present = len(self._candidates.able(self._versions))
        if present < least:
            if present != self._waiting_with:
                log.info("waiting for devices present=%d needed=%d", present, least)
            self._waiting_with = present
            return
        self._waiting_with = None
        state, decisions = rounds.decide(
            self._empty_round(self._versions.number + 1, now, {}, 0), rounds.Tick(), now, self._spare()
        )
        self._round = state
        tasks = {d.device: self._make_task(d.device) for d in decisions if isinstance(d, rounds.Invite)}
        self._note()
        self._bytes_before = self._bytes()
        self._store.open_round(state.number, self._versions.number, tasks, self._bytes_before)
        self._opened_at = self._clock()
        log.info("opened round=%d devices=%d", state.number, len(tasks))
        self._emit(RoundOpened(state.number, len(tasks)))
        for device, task in tasks.items():
            self._invite(device, task, now)

    def _end(self) -> FinishReason | None:
        target = self._settings.rounds.target_accuracy
        accuracy = self._versions.accuracy
        if target is not None and accuracy is not None and accuracy >= target:
            return "target-accuracy"
        return "rounds" if self._versions.number >= self._settings.rounds.count else None

    # What the round table decides

    def _decide_of(self, number: int, event: rounds.Event, now: float) -> None:
        """An event of a round that one before it, settled with it, may have closed."""
        if self._round is not None and self._round.number == number:
            self._decide(event, now)

    def _decide(self, event: rounds.Event, now: float) -> None:
        if self._round is None:
            if self._connected:
                self._open_next(now)
            return
        self._round, decisions = rounds.decide(self._round, event, now, self._spare())
        for decision in decisions:
            self._carry_out(decision, now)

    def _carry_out(self, decision: rounds.Decision, now: float) -> None:
        assert self._round is not None
        match decision:
            case rounds.Invite(device):
                task = self._make_task(device)
                self._note()
                self._store.invite(self._round.number, device, task)
                self._invite(device, task, now)
            case rounds.SendAgain(device):
                self._asking.say(device, now, self._round.deadline)
            case rounds.Extend(delivered, late):
                said = (
                    f"deadline passed with {delivered} of {self._round.minimum} updates, late: {', '.join(late) or '-'}"
                )
                log.warning("extended round=%d %s", self._round.number, said)
                self._store.extend_round(self._round.number, late, said)
            case rounds.Close(_, withdrawn):
                # What else has arrived by now is as good as what closed the round.
                self._settle(now)
                taken = self._store.delivered_in(self._round.number)
                for device in withdrawn:
                    if device in taken:
                        continue
                    asked = self._asking.task(device)
                    assert asked is not None, "only who was asked can be withdrawn"
                    self._link.send(device, Withdraw(asked.name, "round-closed"))
                self._commit(self._round.number)
                self._open_next(now)

    def _invite(self, device: str, task: Task, now: float) -> None:
        assert self._round is not None
        self._invitations[device] = self._invitations.get(device, 0) + 1
        self._asking.ask(device, task, now, self._round.deadline)

    def _commit(self, number: int) -> None:
        """Folds the round into the next version and commits both."""
        figures = self._versions.advance(number, self._opened_at, self._bytes_before, self._bytes())
        self._round = None
        self._asking.resume({}, (), self._clock())
        self._uploads.clear()
        self._store.sweep(self._settings.downlink.keep_versions)
        self._link.tell_everyone("notice", Announcement(self._versions.number, self._versions.published))
        log.info("committed round=%d version=%d devices=%d", number, self._versions.number, figures.devices)
        self._emit(
            RoundCommitted(
                number,
                self._versions.number,
                figures.devices,
                figures.accuracy,
                self._versions.loss,
                round(figures.seconds, 3),
                round(figures.overhead_s, 3),
                figures.bytes_up,
                figures.bytes_down,
            )
        )

    def _bytes(self) -> tuple[int, int]:
        return self._link.total_bytes("up"), self._link.total_bytes("down")

    def _empty_round(self, number: int, now: float, seats: dict[str, rounds.Phase], extensions: int) -> rounds.Round:
        wanted = self._settings.rounds
        return rounds.open_round(
            number, wanted.devices, wanted.least, wanted.over_select, wanted.deadline_s, now, seats, extensions
        )

    def _make_task(self, device: str) -> Task:
        version, part = self._versions.number, self._parts[device]
        seen = self._versions.for_device(part.variant or FULL, device, newcomer=device not in self._invitations)
        run, manifest = self._store.run, self._library.manifest
        return make_task(self._settings, run, version + 1, device, manifest, version, seen, part.variant, part.codec)

    def _spare(self) -> Iterator[str]:
        """The devices that can be asked, the next one first; worked out only when the table looks."""
        self._parts = self._candidates.able(self._versions)
        asked = {device: self._invitations.get(device, 0) for device in self._parts}
        yield from order_devices(asked, self._settings.seed, self._versions.number + 1)

    def _show(self, device: str) -> None:
        seen = self._fleet[device]
        log.info("device=%s backend=%s examples=%s", device, seen.backend, seen.examples)
        self._emit(DeviceSeen(device, seen.examples, seen.backend))
