"""The agent: carries out what the job and transfer tables decide. Events and time come in, messages go out."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_agent import job as jobs
from edge_agent.assets import Assets
from edge_agent.attempt import Attempt
from edge_agent.differences import CatchUp
from edge_agent.download import Download
from edge_agent.gossip.gossiping import Gossiping
from edge_agent.greeting import SKILLS, SPREAD_S, Greetings, agent_version, say_warning
from edge_agent.link import Link
from edge_agent.masks import MaskShelf
from edge_agent.memory import peak_mib
from edge_agent.outgoing import Outgoing
from edge_agent.packing import Packing
from edge_agent.progress import clear
from edge_agent.repeats import NEVER, Unused
from edge_agent.same_process import SameProcess
from edge_agent.selector import Selector
from edge_agent.settings import AgentSettings
from edge_agent.slots import Slots
from edge_agent.status import Journal, Standing
from edge_agent.store import AgentStore
from edge_agent.trainer import Facts, Finished, News, Trainer
from edge_agent.trial import Trial, software
from edge_agent.trusted import Trusted, unbelieved
from edge_agent.watch import Source, watch_of
from edge_agent.workshop import Workshop
from protocol.errors import Rejection
from protocol.failpoints import reached
from protocol.gossip import Effort, Membership
from protocol.keyring import Keyring
from protocol.messages import (
    Body,
    Chunk,
    CoordinatorState,
    DeviceState,
    Hello,
    Later,
    Need,
    Receipt,
    Task,
    TaskReport,
    Unavailable,
    Welcome,
    Withdraw,
)
from protocol.restraint import Restraint
from protocol.topics import Topics
from protocol.transport import Connected, Disconnected, Event, Incoming, Transport

log = logging.getLogger("edge-agent")

# Training is done in slices, so that a withdrawal or a need for chunks waits no longer than this.
SLICE_S = 0.05
# Of one outage, in the log.
MOST_REASONS = 8


class Agent:
    """One device of one fleet. `handle` takes what arrived, `advance` does what is due; both from one thread.

    memory_mib: what training may use here, which the coordinator is told; None where nobody knows. clock: in seconds,
    for what training takes. peak: MiB that it took at the most. trainer: made of what holds the tasks' files; None
    trains in this process. device: says whether it may train now. trusted: whom this device believes; None where nobody
    has an identity. wall: time of day, by which files are dated and days counted.
    """

    def __init__(
        self,
        settings: AgentSettings,
        base: Path,
        store: AgentStore,
        transport: Transport,
        rng: np.random.Generator,
        memory_mib: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        peak: Callable[[], float | None] = peak_mib,
        trainer: Callable[[Assets], Trainer] | None = None,
        device: Source | None = None,
        trusted: Trusted | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._store, self._rng, self._memory_mib = settings, store, rng, memory_mib
        self._topics = Topics(settings.fleet)
        self._trusted = trusted
        self._link = Link(transport, self._topics, settings.device, store.boot, trusted)
        self._outgoing = Outgoing(store, self._link, rng)
        state, disk = store.blobs.root.parent, store.blobs.disk
        self._watch = watch_of(settings, store, self._link, device, wall)
        selector = Selector(settings.training.backend, self._facts, state, disk)
        masks, variant = MaskShelf(state / "masks", disk), settings.training.variant
        catch_up = CatchUp(store.blobs, self._outgoing.digests)
        slots = Slots(store.database, software(), wall)
        fetched = catch_up, variant, selector.selected, slots, settings.personal.deployed
        assets = Assets(state / "bundles", store.blobs, masks, *fetched)
        if trainer is None:
            workshop = Workshop(settings.data, base, state, settings.training, disk, clock, wall, settings.personal)
            self._trainer: Trainer = SameProcess(workshop, assets, settings.training, peak)
        else:
            self._trainer = trainer(assets)
        self._assets = assets
        self._packing = Packing(store, assets, settings.training.residual_rounds)
        self._trial = Trial(slots, settings.training.trial_steps, self._let_go)
        self._connected = False
        # Why there is no connection, as far as the log has it.
        self._outage: set[str] = set()
        self._restraint = Restraint()
        self._greetings = Greetings(rng)
        self._runtime = Unused(settings.training.idle_unload_s)
        self._download = Download(store.blobs, self._link)
        self._attempt = Attempt(self._trainer, selector, assets, self._trial, trusted, self._packing.lay_out)
        self._gossiping = Gossiping(
            *(settings.device, store, self._link, self._topics, assets, self._trainer.again, trusted)
        )
        self._accepted_task = ""
        self.job = jobs.Job()
        self.rejected = 0
        self._journal = Journal()
        remembered = store.task()
        if remembered is None:
            clear(store.blobs)
        else:
            self._on(jobs.Assigned(remembered))

    @property
    def sent_bytes(self) -> int:
        return self._link.sent_bytes

    @property
    def status(self) -> str:
        """What it is at, in a few words."""
        task = "" if self.job.task is None else f" task={self.job.task.name}"
        return f"{self.job.phase}{task}{'' if self._connected else ', no connection to the broker'}"

    def _facts(self) -> Facts:
        return self._trainer.facts()

    def standing(self) -> Standing:
        """What an operator wants to know of it."""
        seen = self._connected, self.job, self._attempt.ready, self._trainer.done, self._outgoing.offered
        return replace(self._journal.standing(*seen), gossip=self._gossiping.state())

    # What arrives

    def handle(self, event: Event, now: float) -> None:
        """Takes one event of the transport in."""
        match event:
            case Connected(refused):
                self._connect(now)
                self._gossiping.connected(refused, now)
            case Disconnected(reason):
                # Once per outage and reason: the transport goes on trying, and says so at every attempt.
                if reason not in self._outage and len(self._outage) < MOST_REASONS:
                    log.warning("disconnected reason=%r", reason)
                    self._outage.add(reason)
                self._connected, self._journal.why_not = False, reason
            case Incoming():
                self._read(event, now)

    def _connect(self, now: float) -> None:
        log.info("connected broker=%s", self._settings.broker.url)
        self._connected, self._journal.why_not = True, ""
        self._outage.clear()
        self._link.send("state", DeviceState("ready"), retain=True)
        # A broker that returns has its whole fleet back within a second.
        self._greet_within(self._greetings.spread_s, now)
        self._download.forget()

    def _read(self, event: Incoming, now: float) -> None:
        if heard := self._gossiping.hear(event, now):
            if isinstance(heard, Rejection):
                # Not by its topic: whoever is at the broker may speak by any number of names.
                self._complain("gossip", heard, now)
            return
        envelope = self._link.read(event)
        if envelope is None:
            return
        if isinstance(envelope, Rejection):
            self._complain(f"message topic={event.topic}", envelope, now)
            if envelope.reason in ("unknown-key", "key-expired") and self._restraint.unsaid("greet", now) is not None:
                # The fleet may have newer keys, which the answer to a greeting brings.
                self._greet_within(SPREAD_S, now)
            return
        if isinstance(envelope.body, CoordinatorState) and envelope.body.spread_s is not None:
            self._greetings.spread_s = envelope.body.spread_s
        self._journal.heard = now
        if not isinstance(envelope.body, Keyring):
            self._meet(envelope.boot, now)
        self._obey(envelope.body, now)

    def _meet(self, epoch: int, now: float) -> None:
        """A coordinator that started anew remembers no transfer and may not know this device is here."""
        if self._greetings.is_another(epoch):
            self._greet_within(max(SPREAD_S, self._greetings.spread_s), now)
            self._download.forget()

    def _greet_within(self, seconds: float, now: float) -> None:
        """Greets, and offers what waits, at a moment of its own in that time."""
        self._outgoing.begin(self._greetings.within(seconds, now))

    def _obey(self, body: Body, now: float) -> None:
        match body:
            case Membership() | Effort():
                self._gossiping.told(body, now)
            case Welcome(run, warning=warning):
                self._gossiping.welcomed(run)
                if warning is not None and self._restraint.unsaid("warning", now) is not None:
                    say_warning(warning, self._settings)
                self._greetings.answered(now)
            case CoordinatorState(accepting=accepting):
                self._greetings.sees(here=accepting)
            case Task():
                self._assign(body, now)
            case Withdraw(task, reason):
                if self.job.task is not None and self.job.task.name == task:
                    log.info("withdrawn task=%s reason=%s", task, reason)
                self._on(jobs.Withdrawn(task))
            case Need():
                self._outgoing.serve(body)
            case Later():
                self._outgoing.later(body, now)
            case Chunk():
                self.rejected += self._download.take(body, now) is not None
            case Unavailable(digest, reason) if self._download.is_of(digest):
                self._lack(digest, reason)
            case Receipt():
                self._settle(body, now)
            case Keyring():
                self._adopt(body, now)
            case _:
                pass

    def _adopt(self, said: Keyring, now: float) -> None:
        taken = self._trusted is not None and self._trusted.adopt(said)
        if isinstance(taken, Rejection):
            self._complain("keys", taken, now)
        elif taken:
            # There may be more of them, and what was sealed with them was not believed.
            self._greet_within(0.0, now)

    def _complain(self, of: str, why: Rejection, now: float) -> None:
        self.rejected += 1
        unsaid = self._restraint.unsaid((of, why.reason), now)
        if unsaid is not None:
            log.warning("%s rejected %s unsaid=%d", of, why, unsaid)

    def _assign(self, task: Task, now: float) -> None:
        if task.name == self._accepted_task:
            # An echo of what is done: the coordinator has the update, and said so.
            return
        if self._outgoing.is_done(task.name):
            # The work waits for its receipt: the coordinator did not hear the offer.
            self._outgoing.begin(now)
            return
        wrong = unbelieved(self._trusted, lambda _, version: self._trial.refusal(task, version), task)
        if wrong is not None:
            self._complain("task", wrong, now)
            self._link.send("up", TaskReport(task.name, "refused", reason=wrong.reason, detail=wrong.detail[:2000]))
            return
        self._on(jobs.Assigned(task))

    def _lack(self, digest: bytes, reason: str) -> None:
        """A blob that the coordinator has no more: the task ends, unless there is another way to do it."""
        assert self.job.task is not None
        if self._assets.do_without(self.job.task, digest, reason):
            self._download.drop()
        else:
            self._on(jobs.Stopped("refused", "unavailable", f"{digest.hex()[:12]}: {reason}"))

    def _settle(self, receipt: Receipt, now: float) -> None:
        settled = self._outgoing.settle(receipt, now)
        if settled is None:
            return
        self._journal.settled(receipt)
        if settled.accepted:
            self._accepted_task = receipt.task
        if self.job.task is not None and self.job.task.name == receipt.task:
            self._on(jobs.Withdrawn(receipt.task))

    # What is due

    def advance(self, now: float) -> float:
        """Does what is due and says in how many seconds something will be; 0 while there is work."""
        if self._connected and now >= self._greetings.due:
            self._greet(now)
        if (changed := self._watch.look(self.job, now)) is not None:
            self._on(changed)
        if self.job.phase == "fetching" and not self._attempt.begun:
            self._fetch(now)
        for news in self._trainer.work(SLICE_S):
            self._hear(news, now)
        self._on_if(self._gossiping.advance(self.job, self._attempt.ready, now))
        if self.job.phase == "packing" and now >= self._packing.at and not self._outgoing.waiting:
            self._pack(now)
        if self._connected and now >= self._outgoing.due:
            if self._watch.holds_link():
                self._outgoing.begin(now + self._settings.eligibility.interval_s)
            else:
                self._outgoing.offer(now)
        self._rest(now)
        return self._wait(now)

    @property
    def offers(self) -> bool:
        """Whether it has updates to offer, now or later."""
        return self._outgoing.due != NEVER

    def offer_now(self, now: float) -> None:
        """Offers what waits as soon as there is a connection, without waiting for its turn."""
        self._outgoing.begin(now)

    def _rest(self, now: float) -> None:
        """Lets go of runtime and data after a while without work, whatever became of it."""
        if self.job.phase not in ("idle", "packing"):
            self._runtime.use()
        elif self._runtime.rest(now):
            self._trainer.unload()
            log.info("idle: runtime and data unloaded")

    def stop(self) -> None:
        """Says goodbye, and keeps what was trained and what today came to; nothing else on disk changes."""
        self._trainer.close()
        self._trial.end()
        self._watch.save()
        self._link.send("state", DeviceState("gone"), retain=True)

    def fail(self, reason: str, detail: str) -> None:
        """Gives the task in hand back after a fault of our own, so that the fleet does not wait for it."""
        if reason == "disk" and self.job.phase == "packing":
            # The work is done, and waits for room; what else the disk did not take is said again.
            return
        # Where the disk does not even take this, it is begun anew.
        self._attempt.begun = False
        self._on(jobs.Stopped("failed", reason, detail))

    def _wait(self, now: float) -> float:
        if self.job.phase == "fetching" and self._download.idle and not self._attempt.begun:
            return 0.0
        due = [self._runtime.at, self._gossiping.at, now + self._trainer.wait_s(), self._watch.due(self.job)]
        if self.job.phase == "packing" and self._packing.at > now:
            due.append(self._packing.at)
        if self._connected:
            due += [self._greetings.due, self._outgoing.due]
            if self.job.phase == "fetching":
                due.append(self._download.due)
        return max(0.0, min(due) - now)

    def _greet(self, now: float) -> None:
        task = self.job.task.name if self.job.task else None
        backend, instance = self._settings.training.backend, self._store.instance
        ring = None if self._trusted is None else self._trusted.ring
        self._link.send(
            "up",
            Hello(agent_version(), backend, task, self._outgoing.waiting, self._memory_mib, instance, ring, SKILLS),
        )
        self._greetings.said(now)

    def _fetch(self, now: float) -> None:
        task = self.job.task
        assert task is not None
        damaged = self._download.finish()
        if damaged is not None and not self._assets.do_without(task, damaged.digest, "one is damaged"):
            self._on(jobs.Stopped("failed", "damaged", f"blob {damaged.digest.hex()[:12]} has another digest"))
            return
        if self._download.idle:
            missing = self._trial.refusal(task) or self._assets.missing(task)
            if isinstance(missing, Rejection):
                self._on(jobs.Stopped("refused", missing.reason, missing.detail))
                return
            if not missing:
                self._on_if(self._attempt.begin(task))
                return
            if self._download.begin(missing[0]):
                return
        if self._connected:
            self._download.ask(now)

    def _hear(self, news: News, now: float) -> None:
        """What the trainer says of the task in hand."""
        assert self.job.task is not None
        said = self._gossiping.pass_on(self.job.task, news, now)
        self._on_if(self._attempt.hear(self.job.task, said) if isinstance(said, News) else said)
        if isinstance(said, Finished) and self._outgoing.waiting:
            self._trainer.keep("waiting")

    def _pack(self, now: float) -> None:
        assert self.job.task is not None
        attempt = self._attempt
        assert attempt.ready is not None
        assert attempt.finished is not None
        event = self._packing.pack(self.job.task, attempt.ready, attempt.finished, now)
        if event is not None:
            self._on(event)
            self._outgoing.begin(now)

    def _let_go(self) -> None:
        """Of a bundle that failed its trial."""
        self._trainer.unload()
        self._assets.sweep()

    # What the job table decides

    def _on_if(self, event: jobs.Event | None) -> None:
        if event is not None:
            self._on(event)

    def _on(self, event: jobs.Event) -> None:
        self.job, decisions = jobs.decide(self.job, self._trial.judged(event))
        for decision in decisions:
            self._carry_out(decision)

    def _carry_out(self, decision: jobs.Decision) -> None:
        match decision:
            case jobs.Remember(task):
                log.info("task=%s round=%d codec=%s", task.name, task.round, task.codec)
                self._store.remember_task(task)
                reached("agent.task-remembered")
                self._assets.keep_only_for(task, self._outgoing.digests())
            case jobs.Forget():
                self._download.drop()
                self._attempt.end()
                try:
                    self._store.forget_task()
                    reached("agent.task-forgotten")
                finally:
                    # Also where the disk takes nothing: nobody is to train for a task that is over.
                    self._trainer.drop()
                    self._trial.end()
            case jobs.Suspend():
                self._trainer.pause()
                self._trial.end()
                self._attempt.pause()
            case jobs.Report(task_name, state, reason, detail):
                self._journal.reported(task_name, state, reason, detail)
                ready = self._attempt.ready if state == "accepted" else None
                examples, backend = (ready.examples, ready.backend) if ready else (0, "")
                left_out = (ready.left_out or None) if ready else None
                self._link.send("up", TaskReport(task_name, state, examples, backend, reason, detail[:2000], left_out))
            case jobs.Fetch() | jobs.Train() | jobs.Pack():
                # The next `advance` sees the phase and does it.
                pass
