"""The course of a run: rounds are opened, what their table decides is carried out, and each ends in a version.

Whatever it holds in memory can be had again from the store: `recover` does so, at the start and after any fault.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from coordinator import carried as seats
from coordinator import round as rounds
from coordinator.asking import Asking
from coordinator.candidates import Candidates, Part
from coordinator.carried import Carried, CarriedSeat
from coordinator.collection import waiting_for
from coordinator.council_room import CouncilRoom
from coordinator.distiller import Distiller
from coordinator.evaluate import Examine
from coordinator.events import Emit, Finished, FinishReason, RoundCommitted, RoundOpened
from coordinator.fleet import Fleet
from coordinator.held_out import on_devices, own_models
from coordinator.intake import Seat
from coordinator.ledger import round_bytes, waiting_before
from coordinator.link import Link
from coordinator.local_steps import steps_left
from coordinator.planner import make_task, order_devices
from coordinator.reception import Rejected, Taken, Verdict
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.uploads import Uploads
from coordinator.versions import Versions
from coordinator.views import View
from protocol.bundle import Bundle
from protocol.errors import Rejection, SparsefleetError
from protocol.manifest import FULL
from protocol.messages import Announcement, BlobRef, Hello, Task, Withdraw

log = logging.getLogger("coordinator")


class Course:
    """The rounds of one run.

    note: writes what is only noted now and then, before a device's first invitation. settle: makes durable what has
    arrived, and tells `settled` of it. council: of a fleet without a hub, None where there is one.
    """

    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        manifest: BlobRef,
        store: Store,
        link: Link,
        fleet: Fleet,
        uploads: Uploads,
        candidates: Candidates,
        clock: Callable[[], float],
        emit: Emit,
        examine: Examine | None,
        distiller: Distiller | None,
        note: Callable[[], None],
        settle: Callable[[float], None],
        council: CouncilRoom | None = None,
    ) -> None:
        self._settings, self._bundle, self._manifest, self._store = settings, bundle, manifest, store
        self._link, self._fleet, self._uploads, self._candidates = link, fleet, uploads, candidates
        self._clock, self._emit, self._examine, self._note = clock, emit, examine, note
        self._distiller, self._settle, self._council = distiller, settle, council
        self.asking = Asking(link, fleet)
        self._started_at, self._uptime_before_s = clock(), store.uptime_s()
        self._parts: dict[str, Part] = {}
        self._waiting_with: int | None = None
        self.finished = self.connected = False
        self.recover(clock())

    def recover(self, now: float) -> None:
        """Takes model, round, tasks and carried seats from the store; makes version 0 if there is none yet."""
        store = self._store
        self.versions = Versions(self._settings, self._bundle, store, self._clock, self._examine, self._distiller)
        self._invitations = store.invitations()
        self._spent = store.told(round_bytes)
        self.round: rounds.Round | None = None
        self.asking.resume({}, (), now)
        self._opened_at = now
        self._uploads.clear()
        self.carried: Carried = {}
        for task in store.carried():
            seat = self._carried_seat(task.number, task.uptime_s, now + self._settings.rounds.deadline_s, now)
            self.carried = seats.carry(self.carried, (task.device,), seat)
        opened = store.opened_round()
        if opened is None:
            return
        self._bytes_before, self._opened_uptime_s = opened.bytes_before, opened.uptime_s
        taken = {t.device: t.phase for t in opened.tasks}
        self.round = self._empty_round(opened.number, now, taken, opened.extensions)
        tasks = {t.device: t.task for t in opened.tasks}
        self.asking.resume(tasks, self.round.devices("invited", "late"), now)
        log.info("resumed round=%d delivered=%d", opened.number, self.round.gathered)

    def uptime_s(self, now: float) -> float:
        """For how long coordinators have served this run, all starts together: a clock that nobody sets."""
        return self._uptime_before_s + max(0.0, now - self._started_at)

    # What devices said

    def holds(self, device: str, task: str) -> bool:
        """Whether this is the device's task in the round that is open, or in one it is carried from, and not over."""
        late = self.carried.get(device)
        if late is not None and task == self._name(late.number):
            return True
        state, own = self.round, self.asking.task(device)
        return state is not None and own is not None and own.name == task and state.seats[device] in rounds.OPEN

    def seat(self, device: str, number: int) -> Seat:
        """What an update of a device for a round is checked against."""
        known, state, late = self._fleet.knows(device), self.round, self.carried.get(device)
        if state is not None and state.number == number:
            return Seat(known, True, True, state.seats.get(device), self.asking.task(device))
        known_round = self._store.has_round(number)
        stored = self._store.task(number, device) if known_round else None
        if stored is None or late is None or late.number != number:
            closed = stored[1] if stored is not None and stored[1].reason == "too-late" else None
            return Seat(known, known_round, open_round=False, phase=None, task=None, closed=closed)
        return Seat(known, True, True, "carried", stored[0].task)

    def view_for(self, task: Task, variant: str) -> View | Rejection:
        """What an update for a task is made of, or why nobody can say any more."""
        try:
            return self.versions.view_for(task.version, variant)
        except SparsefleetError as error:
            return Rejection("base-gone", f"{error}; it cannot be told any more what the update's values are of")

    def returned(self, device: str, hello: Hello, now: float) -> None:
        """A device is there, and says what it has in hand."""
        late = self.carried.get(device)
        if late is not None and seats.has_lost(self._name(late.number), hello.task, hello.outbox):
            log.info("device=%s has lost its task of round=%d", device, late.number)
            self._end_carried(device, "lost", "the device came back without it")
        self.decide(rounds.Returned(device), now)

    def accepted_task(self, device: str, now: float) -> None:
        """A device took its task, which it holds."""
        self.asking.answered(device)
        if device not in self.carried:
            self.decide(rounds.Accepted(device), now)

    def stopped(self, device: str, reason: str, detail: str, now: float) -> None:
        """A device will not do the task that it holds."""
        if device in self.carried:
            self._end_carried(device, reason, detail)
            self.decide(rounds.Tick(), now)
            return
        assert self.round is not None
        self._store.set_phase(self.round.number, device, "out", reason, detail)
        self._uploads.end(device)
        self.decide(rounds.Stopped(device), now)

    def turned_away(self, device: str, why: Rejection, now: float) -> None:
        """A device is not heard any more, so nothing is waited for from it."""
        if device in self.carried or (self.round is not None and self.round.seats.get(device) in rounds.OPEN):
            self.stopped(device, why.reason, why.detail, now)

    @property
    def counted(self) -> int:
        """How many updates count for the goal of the open round."""
        if self.round is None:
            return 0
        return self.round.gathered if self.round.buffered else self.round.count("done")

    def settled(self, verdicts: Iterable[tuple[str, Verdict]], now: float) -> None:
        """Updates were accepted, or rejected for good, durably.

        The first of them may close the round; then its fold has taken the others too, and they are no news any more.
        """
        number = None if self.round is None else self.round.number
        for event in [self._event(device, verdict, number) for device, verdict in verdicts]:
            if (None if self.round is None else self.round.number) == number:
                self.decide(event, now)

    def _event(self, device: str, verdict: Verdict, number: int | None) -> rounds.Event:
        """What a verdict is to the table of the open round, of that number. A carried seat that it ends is let go."""
        late = self.carried.get(device)
        match verdict:
            case Taken(offer):
                self._candidates.delivered(device, offer)
                if late is not None and late.number == offer.round:
                    self.carried = seats.without(self.carried, device)
                    # Without a round, whichever opens next finds it in the store.
                    return rounds.Tick() if number is None else rounds.DeliveredLate(device)
                return rounds.Delivered(device) if offer.round == number else rounds.Tick()
            case Rejected(_, of, ends_task) if ends_task:
                if late is not None and late.number == of:
                    self.carried = seats.without(self.carried, device)
                elif of == number:
                    return rounds.Stopped(device)
        return rounds.Tick()

    def tell_whole_mask(self, device: str, now: float) -> bool:
        """Says the task once more if the device was told a difference to a mask that it lost, or never had."""
        task = self.asking.task(device)
        if self.round is None or device in self.carried or task is None or task.mask is None or task.mask.base is None:
            return False
        log.info("device=%s round=%d gets the whole mask", device, self.round.number)
        task = replace(task, mask=self.versions.whole_mask(task.mask))
        self._store.replace_task(self.round.number, device, task)
        self.asking.ask(device, task, now, self.round.deadline)
        return True

    # What is due

    def advance(self, now: float) -> list[float]:
        """Does what is due, and says when something will be."""
        self._end_overdue(now)
        due = [seat.horizon for seat in self.carried.values()]
        if self.round is not None:
            # Any event lets the table see that the round is complete; after a resume there may be no other.
            self.decide(rounds.Tick(), now)
        if self.connected:
            self._open_next(now)
            if self.round is not None:
                self.asking.say_again(now, self.round.deadline)
                due.append(self.asking.due())
        if self.round is not None:
            due.append(self.round.deadline)
        return due

    def _end_overdue(self, now: float) -> None:
        wanted, number = self._settings.rounds, self.versions.number + 1
        for device in seats.past(self.carried, now, number, wanted.late_rounds):
            seat = self.carried[device]
            why = (
                f"round {seat.number} is closed, and what is late is folded for {wanted.late_hours:g} hours of the "
                f"coordinator's running time (rounds.late_hours) and {wanted.late_rounds} rounds (rounds.late_rounds)"
            )
            log.warning("late device=%s %s", device, why)
            self._end_carried(device, "too-late", why)
            self._link.send(device, Withdraw(self._name(seat.number), "too-late"))

    def _end_carried(self, device: str, reason: str, detail: str) -> None:
        self._store.set_phase(self.carried[device].number, device, "out", reason, detail)
        self._uploads.end(device)
        self.carried = seats.without(self.carried, device)

    def _open_next(self, now: float) -> None:
        if self.round is not None or self.finished:
            return
        reason = self._end()
        if reason is not None:
            self._finish(reason)
            return
        if not self._enough_there():
            return
        number = self.versions.number + 1
        state, decisions = rounds.decide(
            self._empty_round(number, now, {}, 0), rounds.Tick(), now, self._spare(), self._busy(now)
        )
        self.round = state
        tasks = {d.device: self._make_task(d.device) for d in decisions if isinstance(d, rounds.Invite)}
        self._note()
        self._bytes_before, self._opened_uptime_s = self._bytes(), self.uptime_s(now)
        self._store.open_round(number, self.versions.number, tasks, self._bytes_before, self._opened_uptime_s)
        self._opened_at = self._clock()
        log.info("opened round=%d devices=%d", number, len(tasks))
        self._emit(RoundOpened(number, len(tasks)))
        for device, task in tasks.items():
            self._invite(device, task, now)
        for decision in decisions:
            if not isinstance(decision, rounds.Invite):
                self._carry_out(decision, now)

    def _enough_there(self) -> bool:
        """Whether a round can begin: its minimum is there, and somebody of them is not still at work for another."""
        present, least = self._fleet.present_count, self._settings.rounds.least
        if self._council is not None:
            return bool(self._candidates.able(self.versions))
        free = False
        if present >= least:
            able = self._candidates.able(self.versions)
            present, free = len(able), any(device not in self.carried for device in able)
        if present >= least and free:
            self._waiting_with = None
            return True
        if present != self._waiting_with:
            log.info("waiting for devices present=%d needed=%d", present, least)
        self._waiting_with = present
        return False

    def _end(self) -> FinishReason | None:
        target = self._settings.rounds.target_accuracy
        accuracy = self.versions.accuracy
        if target is not None and accuracy is not None and accuracy >= target:
            return "target-accuracy"
        wanted = self._settings
        if wanted.training.budget.steps and not steps_left(wanted.training.step_rule(wanted.rounds.count), self._spent):
            return "steps"
        return "rounds" if self.versions.number >= wanted.rounds.count else None

    def _finish(self, reason: FinishReason) -> None:
        """No fold will come any more: who is still at work need not be, and what waits for one is stated."""
        for device, seat in tuple(self.carried.items()):
            self._end_carried(device, "run-over", "the run ended before its update came")
            self._link.send(device, Withdraw(self._name(seat.number), "run-over"))
        for update in self._store.accepted(self.versions.number + 1):
            log.warning("discarded device=%s round=%d run-over", update.device, update.number)
            self._store.discard(update.number, update.device, "run-over")
        self.finished = True
        self._emit(Finished(reason, self.versions.number))

    # What the round table decides

    def decide(self, event: rounds.Event, now: float) -> None:
        """Tells the table of the open round, and carries out what it says; opens the next one where none is."""
        if self.round is None:
            if self.connected:
                self._open_next(now)
            return
        self.round, decisions = rounds.decide(self._of_members(self.round), event, now, self._spare(), self._busy(now))
        for decision in decisions:
            self._carry_out(decision, now)

    def _carry_out(self, decision: rounds.Decision, now: float) -> None:
        assert self.round is not None
        match decision:
            case rounds.Invite(device):
                task = self._make_task(device)
                self._note()
                self._store.invite(self.round.number, device, task)
                self._invite(device, task, now)
            case rounds.SendAgain(device):
                self.asking.say(device, now, self.round.deadline)
            case rounds.Extend(delivered, late):
                said = (
                    f"deadline passed with {delivered} of {self.round.minimum} updates, late: {', '.join(late) or '-'}"
                )
                log.warning("extended round=%d %s", self.round.number, said)
                self._store.extend_round(self.round.number, late, said)
            case rounds.Close(_, withdrawn):
                # What else has arrived by now is as good as what closed the round.
                self._settle(now)
                taken = self._store.delivered_in(self.round.number)
                for device in withdrawn:
                    if device not in taken:
                        self._link.send(device, Withdraw(self._name(self.round.number), "round-closed"))
                self._commit(self.round, now)
                if self.connected:
                    self._open_next(now)

    def _invite(self, device: str, task: Task, now: float) -> None:
        assert self.round is not None
        self._invitations[device] = self._invitations.get(device, 0) + 1
        self.asking.ask(device, task, now, self.round.deadline)

    def _commit(self, closed: rounds.Round, now: float) -> None:
        """Folds the updates that wait into the next version and commits both."""
        number = closed.number
        if self._council is not None:
            self._council.note(number)
        figures = self.versions.advance(number, self._opened_at, self._bytes_before, self._bytes(), carry=closed.carry)
        if figures is None:
            # Nothing is left to fold, and all that is stated; the round goes on as the store has it.
            self.recover(now)
            return
        left = [task.device for task in self._store.carried() if task.number == number]
        seat = self._carried_seat(number, self._opened_uptime_s, closed.deadline, now)
        self.carried = seats.carry(self.carried, left, seat, silent=closed.devices("late"), now=now)
        self.round = None
        self._spent = (*self._spent, figures.bytes_up + figures.bytes_down)
        self.asking.resume({}, (), self._clock())
        self._uploads.keep_only(self.carried)
        self._store.sweep(self._settings.downlink.keep_versions, self._uploads.digests())
        self._link.tell_everyone("notice", Announcement(self.versions.number, self.versions.published))
        seen = self._store.told(partial(on_devices, version=number - 1))
        if seen is not None:
            said = (number - 1, seen.devices, seen.mean, seen.worst, seen.worst_device)
            log.info("on devices version=%d devices=%d accuracy_mean=%.4f accuracy_worst=%.4f worst=%s", *said)
        own = self._store.told(partial(own_models, number=number))
        if own is not None:
            told = (number, own.devices, own.mean, own.worst, own.worst_device)
            log.info("own models round=%d devices=%d accuracy_mean=%.4f accuracy_worst=%.4f worst=%s", *told)
        log.info("committed round=%d version=%d devices=%d", number, self.versions.number, figures.devices)
        self._emit(
            RoundCommitted(
                number,
                self.versions.number,
                figures.devices,
                figures.accuracy,
                self.versions.loss,
                round(figures.seconds, 3),
                round(figures.overhead_s, 3),
                figures.bytes_up,
                figures.bytes_down,
                figures.late,
                *(self.versions.trust.epsilon, self.versions.trust.delta),
            )
        )

    def _busy(self, now: float) -> int:
        """How many carried devices take a place of those that work at once, which only buffered rounds share."""
        return seats.busy(self.carried, now) if self._settings.rounds.buffered else 0

    def _carried_seat(self, number: int, opened_uptime_s: float, busy_until: float, now: float) -> CarriedSeat:
        left_s = 3600.0 * self._settings.rounds.late_hours - (self.uptime_s(now) - opened_uptime_s)
        return CarriedSeat(number, busy_until, now + left_s)

    def _name(self, number: int) -> str:
        return f"{self._store.run}/{number}"

    def _bytes(self) -> tuple[int, int]:
        return self._link.total_bytes("up"), self._link.total_bytes("down")

    def _of_members(self, state: rounds.Round) -> rounds.Round:
        if (room := self._council) is None:
            return state
        least = self._settings.rounds.minimum or self._settings.gossip.minimum
        return waiting_for(state, room.members, room.collected, least)

    def _empty_round(self, number: int, now: float, taken: dict[str, rounds.Phase], extensions: int) -> rounds.Round:
        wanted = self._settings.rounds
        made = rounds.Round(
            number=number,
            goal=wanted.goal,
            minimum=wanted.least,
            wanted=wanted.at_work,
            deadline_s=wanted.deadline_s,
            deadline=now + wanted.deadline_s,
            seats=taken,
            extensions=extensions,
            late=self._store.told(partial(waiting_before, number=number)),
            # Without a hub, what is late is no difference to the model of another round.
            carry=wanted.late_hours > 0 and self._council is None,
            buffered=wanted.buffered,
        )
        return self._of_members(made)

    def _make_task(self, device: str) -> Task:
        version, part = self.versions.number, self._parts[device]
        seen = self.versions.for_device(part.variant or FULL, device, newcomer=device not in self._invitations)
        run, manifest = self._store.run, self._manifest
        spent = self._spent
        return make_task(
            self._settings, run, version + 1, device, manifest, version, seen, part.variant, part.codec, spent
        )

    def _spare(self) -> Iterator[str]:
        """The devices that can be asked, the next one first; worked out only when the table looks."""
        self._parts = self._candidates.able(self.versions)
        asked = {device: self._invitations.get(device, 0) for device in self._parts if device not in self.carried}
        yield from order_devices(asked, self._settings.seed, self.versions.number + 1)
