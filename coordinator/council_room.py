"""Where the council of a fleet without a hub meets the daemon: what devices say goes in, memberships come out, and what
was decided is durable before anybody hears of it.

A device counts as there while it is connected and nobody waits for it. One that its neighbours wait for must report,
and one that is to begin an epoch must speak, so that who hangs, or may not train, is left out like who is gone. It is
taken in again when it reports, or, where it is connected, after it was left out for as long.

Where nobody comes any farther for twice as long as a silent device is waited for, those who are waited for and wait for
nobody are left out, however often they greet; where all of them wait for each other, they begin a new epoch.
"""

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from coordinator import council_rows, gossip
from coordinator.council_rows import Consensus
from coordinator.fleet import Fleet
from coordinator.gossip import Council, Rules, Told
from coordinator.link import Link
from coordinator.store import Store
from protocol.errors import Rejection
from protocol.failpoints import reached
from protocol.gossip import Membership, Standing
from protocol.messages import Hello
from protocol.restraint import Restraint

log = logging.getLogger("coordinator")

FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 60.0
# Reports are written so often; epochs and efforts at once.
KEEP_EVERY_S = 5.0
# A device that had a model of the run says where it stands when it comes; one that says nothing has lost it.
REPORT_S = 10.0
# Who waits for a neighbour says so again within a minute; what was said before that is over.
WAITS_S = 90.0
# Who is there, and by which keys they speak, is looked at so often.
LOOK_EVERY_S = 1.0

# Of those who wait, in the log.
MOST_NAMED = 8

# Lets devices hear each other at the broker, by name.
Allow = Callable[[Mapping[str, Sequence[str]]], None]
# The public key by which a device is believed (SubjectPublicKeyInfo, DER), None where there are none.
KeyOf = Callable[[str], bytes | None]


class CouncilRoom:
    """One fleet's council, kept in the store. skills: what an agent must know to be in it. asked: the
    exchange of the run that devices were asked to come to."""

    def __init__(
        self,
        rules: Rules,
        skills: frozenset[str],
        store: Store,
        link: Link,
        fleet: Fleet,
        admit: Callable[[str], Rejection | None],
        allow: Allow,
        key_of: KeyOf,
        asked: Callable[[], int],
    ) -> None:
        self._rules, self._skills, self._store, self._link, self._fleet = rules, skills, store, link, fleet
        self._admit, self._allow, self._key_of, self._asked = admit, allow, key_of, asked
        self._restraint = Restraint()

    def recover(self, now: float) -> None:
        """Takes the council from the store, after a start or a fault, and the broker's access with it."""
        kept = self._store.told(partial(council_rows.load, now=now))
        self._council = kept or Council(self._store.run)
        self._waits: dict[str, tuple[float, tuple[str, ...]]] = {}
        # Epoch and number of the last reports, also of the epoch that ends.
        self._stood: dict[str, tuple[int, int]] = {}
        self._spoke: dict[str, float] = {}
        self._left_out: dict[str, float] = {}
        self._retry: dict[str, tuple[float, float]] = {}
        self._keys: dict[str, bytes | None] = {}
        self._silent: dict[str, float] = {}
        self._allowed: dict[str, tuple[str, ...]] = {}
        self._keep_at = self._look_at = now
        self._unkept = False
        self._came: tuple[int, frozenset[tuple[str, tuple[int, int]]]] | None = None
        self._moved_at = now
        # Who is left out for standing still, and until when: such a device greets and reports as others do.
        self._barred: dict[str, float] = {}
        for device in self._council.members:
            self._retry[device] = (now, FIRST_RETRY_S)
        self._open_to(self._council)

    # What the course of rounds asks

    @property
    def members(self) -> frozenset[str]:
        """Whom a round asks."""
        return frozenset(self._council.members)

    @property
    def collected(self) -> frozenset[str]:
        """For whom a round waits."""
        return gossip.collected(self._council)

    def note(self, number: int) -> Consensus:
        """Writes how far apart the devices were when a round is closed, and says it."""
        found: list[Consensus] = []

        def write(sql: sqlite3.Connection) -> None:
            found.append(council_rows.note(sql, number, self._council, self._rules))
            # With what they reported, so that a coordinator that is begun anew knows it in the round after.
            council_rows.keep(sql, self._council)

        self._store.keep(write)
        (said,) = found
        what = (number, said.epoch, said.members, said.gossip_rounds, said.local_steps, _figure(said.distance))
        log.info("consensus round=%d epoch=%d members=%d gossip_rounds=%d local_steps=%d distance=%s", *what)
        return said

    # What devices say

    def heard(self, device: str, now: float) -> None:
        """A device said anything."""
        self._spoke[device] = now

    def greeted(self, device: str, hello: Hello, now: float) -> None:
        """A device has come. Whether one that had a model still has it is for its report to say."""
        if not self._skills <= set(hello.skills):
            self._council = gossip.left(self._council, device)
            return
        if device not in self._council.members and not self._is_barred(device, now):
            if device in self._council.models:
                self._silent[device] = now + REPORT_S
            else:
                self._change(gossip.here(self._council, device, now, model=False))
        self._heard(device, now)
        self._say_again(device, now)
        if device in self._council.members and self._council.effort is not None:
            self._link.send(device, gossip.effort_of(self._council, self._rules))

    def stands(self, device: str, said: Standing, now: float) -> None:
        """A device's report."""
        known = self._fleet.skills(device)
        paused = device not in self._council.members and self._fleet[device].paused is not None
        if known is None or not self._skills <= known or paused or self._is_barred(device, now):
            return
        within = gossip.asked_of(self._council, said, self._asked())
        if within.number < said.number and self._restraint.unsaid(("beyond", device), now) is not None:
            what = (device, said.number, said.epoch, within.number)
            log.warning("device=%s says that it completed exchange %d of epoch %d, and %d were asked for", *what)
        said = within
        self._waits[device] = now, said.waits_for
        self._stood[device] = said.epoch, said.number
        self._silent.pop(device, None)
        self._change(gossip.stands(self._council, device, said, now))

    def sent(self, device: str, exchange: int) -> None:
        """A device's model of an exchange of the run was accepted."""
        self._change(gossip.sent(self._council, device, exchange))

    def left(self, device: str) -> None:
        """A device said goodbye, or is not to be heard any more."""
        self._waits.pop(device, None)
        self._change(gossip.left(self._council, device))

    # What is due

    def advance(self, now: float) -> float:
        """Does what is due, and says when something will be."""
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._see_who_is_there(now)
            self._see_who_stands_still(now)
            self._renew_keys()
        try:
            council, told = gossip.due(self._council, self._rules, now)
        except ValueError as error:
            if self._restraint.unsaid("graph", now) is not None:
                log.error("no epoch can be made of the devices that are there: gossip.%s", error)
            council, told = self._council, Told()
        for device in self._council.devices.keys() - council.devices.keys():
            log.warning("device=%s is left out: nothing was heard of it for %.0f s", device, self._rules.dead_after_s)
            self._left_out[device] = now + self._rules.dead_after_s
        if told != Told():
            self._decide(council, told, now)
        self._council = council
        self._open_to(council)
        for device, (at, _) in tuple(self._retry.items()):
            if now >= at:
                self._say_again(device, now)
        if self._unkept and now >= self._keep_at:
            self._keep(council)
            self._keep_at = now + KEEP_EVERY_S
        return self._look_at

    def _decide(self, council: Council, told: Told, now: float) -> None:
        """Makes it durable, and says it to those whom it concerns."""
        self._keep(council)
        reached("coordinator.council-kept")
        self._council = council
        self._open_to(council)
        if told.memberships:
            some = next(iter(told.memberships.values()))
            gone = sorted(set(self._waits) - set(council.members))
            self._waits = {device: waits for device, waits in self._waits.items() if device not in gone}
            said = (council.epoch, len(council.members), some.gamma, some.after, some.begun)
            log.info("epoch=%d members=%d gamma=%.4g after=%d begun=%d", *said)
        self._retry = {d: at for d, at in self._retry.items() if d in council.members}
        for device in told.memberships:
            self._retry[device] = (now, FIRST_RETRY_S)
            self._say_again(device, now)
        if told.effort is not None:
            wanted, distance = told.effort, _figure(gossip.mean_distance(council))
            said_now = (gossip.place(council), wanted.gossip_rounds, wanted.local_steps, distance)
            log.info("effort exchange=%d gossip_rounds=%d local_steps=%d distance=%s", *said_now)
            for device in council.members:
                self._link.send(device, wanted)

    def _see_who_is_there(self, now: float) -> None:
        """Who may not be heard has left; who is connected and holds nobody up is there."""
        for device in self._council.devices:
            if self._admit(device) is not None:
                self.left(device)
        for device in [device for device, at in self._silent.items() if now >= at]:
            del self._silent[device]
            if self._fleet.has(device):
                self._change(gossip.here(self._council, device, now, model=False))
        for device in [device for device, at in self._left_out.items() if now >= at and self._may_come(device)]:
            del self._left_out[device]
            self._change(gossip.here(self._council, device, now, model=device in self._council.models))
        late = self._late(now)
        devices = {
            device: replace(member, heard_s=now) if self._fleet.has(device) and device not in late else member
            for device, member in self._council.devices.items()
        }
        self._council = replace(self._council, devices=devices)

    def _see_who_stands_still(self, now: float) -> None:
        """Ends what no report of a single device shows: all are there, and none comes any farther."""
        council, still_s = self._council, 2 * self._rules.dead_after_s
        came = council.epoch, frozenset(self._stood.items())
        awaited = self._awaited(now)
        if came != self._came or not awaited:
            self._came, self._moved_at = came, now
        if now - self._moved_at < still_s:
            return
        self._moved_at = now
        waiting = {d for d, (at, names) in self._waits.items() if names and now - at < WAITS_S}
        guilty = awaited - waiting
        said = "; ".join(f"{d} for {', '.join(self._waits[d][1])}" for d in sorted(waiting)[:MOST_NAMED])
        log.error("no exchange was completed for %.0f s, and devices wait: %s", still_s, said)
        if not guilty:
            log.warning(
                "all who are waited for wait themselves: a new epoch begins; see their logs for what is refused"
            )
            self._change(gossip.anew(council, waiting & set(council.members)))
        for device in sorted(guilty):
            log.warning("device=%s is left out: others wait for it, and it comes no farther", device)
            self._left_out[device] = self._barred[device] = now + still_s
            devices = {name: member for name, member in self._council.devices.items() if name != device}
            self._change(replace(self._council, devices=devices))

    def _is_barred(self, device: str, now: float) -> bool:
        return now < self._barred.get(device, now)

    def _may_come(self, device: str) -> bool:
        known = self._fleet.skills(device)
        there = self._fleet.has(device) and self._fleet[device].paused is None and self._admit(device) is None
        return there and known is not None and self._skills <= known and device not in self._council.devices

    def _late(self, now: float) -> set[str]:
        """Whom others wait for, as far as it is for them to speak."""
        council, found = self._council, self._awaited(now)
        for device in council.members:
            member, told = council.devices.get(device), council.told[device]
            to_begin = member is not None and member.epoch != council.epoch and told.after == 0
            if to_begin and now - self._spoke.get(device, 0.0) >= LOOK_EVERY_S:
                found.add(device)
        return found

    def _awaited(self, now: float) -> set[str]:
        """Of whom neighbours say that they wait for them, those who are no farther than these: in the epoch in force,
        or in the one that ends. Who has come to where all wait for the next task has nobody to wait for."""
        council, near, found = self._council, gossip.access(self._council), set[str]()
        for waiting, (at, names) in self._waits.items():
            if now - at >= WAITS_S or waiting not in near:
                continue
            epoch, number = self._stood[waiting]
            if epoch == council.epoch and 0 < number >= self._asked() - council.begun:
                continue
            for name in set(names) & set(near[waiting]) & council.devices.keys():
                known = council.devices[name]
                of, come = self._stood.get(name, (known.epoch or epoch, known.number))
                if of == epoch and come <= number:
                    found.add(name)
        return found

    def _say_again(self, device: str, now: float) -> None:
        """Says its membership to a member that has not begun it, ever more rarely."""
        said = gossip.unheard(self._council, device)
        if said is None:
            self._retry.pop(device, None)
            return
        _, retry_s = self._retry.get(device, (now, FIRST_RETRY_S))
        self._retry[device] = (now + retry_s, min(2 * retry_s, LONGEST_RETRY_S))
        if self._fleet.has(device):
            self._link.send(device, self._with_keys(said))

    def _with_keys(self, said: Membership) -> Membership:
        near = []
        for neighbour in said.neighbours:
            self._keys[neighbour.device] = self._key_of(neighbour.device)
            near.append(replace(neighbour, key=self._keys[neighbour.device]))
        return replace(said, neighbours=tuple(near))

    def _renew_keys(self) -> None:
        """Says a membership anew to the neighbours of a device that has another key since."""
        changed = {device for device, key in self._keys.items() if self._key_of(device) != key}
        for device, said in self._council.told.items() if changed else ():
            if any(neighbour.device in changed for neighbour in said.neighbours):
                self._link.send(device, self._with_keys(said))

    def _heard(self, device: str, now: float) -> None:
        member = self._council.devices.get(device)
        if member is not None:
            devices = {**self._council.devices, device: replace(member, heard_s=now, gone=False)}
            self._change(replace(self._council, devices=devices))

    def _open_to(self, council: Council) -> None:
        """Has the broker let each member hear its neighbours, and nobody else."""
        wanted = gossip.access(council)
        if wanted != self._allowed:
            self._allow(wanted)
            self._allowed = wanted

    def _change(self, council: Council) -> None:
        self._council, self._unkept = council, True

    def _keep(self, council: Council) -> None:
        self._store.keep(partial(council_rows.keep, council=council))
        self._unkept = False


def _figure(distance: float | None) -> str:
    return "-" if distance is None else f"{distance:.4g}"
