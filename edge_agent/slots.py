"""The device's model slots: which bundle is committed, which one is on trial, and which failed here, durably.

    (unknown) --begin--> trial --commit--> committed --a newer one commits--> committed, held for rollback --> forgotten
                           `--fail, or two deaths--> failed --retry, or another agent or runtime--> (unknown)

A slot is known by the digest of its bundle's manifest. Beginnings of a trial are counted before they are made, so that
a process that a bundle kills need not live to say so.
"""

import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import cbor2

from protocol.database import damaged, sealed, transaction, unsealed
from protocol.disk import is_disk_trouble
from protocol.errors import Rejection
from protocol.failpoints import reached
from protocol.records import RecordError, read_record, write_record

log = logging.getLogger("edge-agent")

T = TypeVar("T")

State = Literal["trial", "committed", "failed"]
Failure = Literal["", "load", "parity", "steps", "died", "by hand"]

# A power cut may fall into a trial by chance; into the same bundle's second one it does not.
MOST_DEATHS = 2
# A fleet that had more versions than this fail has other worries, and the oldest are offered no more.
MOST_FAILED = 16
# The one that is trained with, and the one before.
MOST_COMMITTED = 2
# So many hexadecimal digits of a digest are said, and as few name a slot.
SAID, FEWEST = 12, 4

_TABLE = "CREATE TABLE IF NOT EXISTS slot (digest BLOB PRIMARY KEY, record BLOB NOT NULL)"
# A row that is no slot: the highest version, under what is no digest.
_HIGHEST = b"highest"
_LOST = "versions that failed here are tried again, and an older one than was seen is no longer refused"


@dataclass(frozen=True, slots=True)
class Asked:
    """How a task asks a bundle to be trained, as far as that may make a sound one diverge. how: all but the rate.
    model: the digest of what it starts from."""

    how: str
    learning_rate: float
    model: bytes = b""


@dataclass(frozen=True, slots=True)
class Slot:
    """A bundle on this device. version: of its release, where that is known. turn: grows with every change of state, in
    place of clocks, which boards may not have. since_s: wall time of that change, for people. begun: trials that were
    begun and not ended in order. failure, detail: why it failed, by kind and in words. software: of the agent and
    runtime that said so. asked: of the task whose steps failed."""

    digest: bytes
    version: int | None
    state: State
    turn: int
    since_s: float
    begun: int = 0
    failure: Failure = ""
    detail: str = ""
    software: str = ""
    asked: Asked | None = None

    @property
    def name(self) -> str:
        """What logs and reports call it."""
        said = self.digest.hex()[:SAID]
        return said if self.version is None else f"{said} (version {self.version})"


@dataclass(frozen=True, slots=True)
class _Highest:
    version: int


class Slots:
    """The slots in an agent's database; nothing is kept in memory, so that a command may change them meanwhile.

    software: names the agent and the runtime that bundles are tried with. Raises DamagedError.
    """

    def __init__(self, database: sqlite3.Connection, software: str, wall: Callable[[], float] = time.time) -> None:
        self._database, self._software, self._wall = database, software, wall
        try:
            database.execute(_TABLE)
            database.execute("SELECT digest, record FROM slot LIMIT 0")
        except sqlite3.DatabaseError as error:
            if is_disk_trouble(error):
                raise
            raise damaged(Path("agent.sqlite"), error, _LOST) from None

    # What is known

    def all(self) -> tuple[Slot, ...]:
        """Every slot, the newest change last."""
        found = []
        for digest, record in self._database.execute("SELECT digest, record FROM slot"):
            slot = None if digest == _HIGHEST else _load(Slot, record)
            if slot is not None and slot.digest == digest:
                found.append(slot)
        return tuple(sorted(found, key=lambda slot: slot.turn))

    def find(self, digest: bytes) -> Slot | None:
        row = self._database.execute("SELECT record FROM slot WHERE digest = ?", (digest,)).fetchone()
        slot = None if row is None else _load(Slot, row[0])
        return slot if slot is not None and slot.digest == digest else None

    def committed(self) -> tuple[Slot, ...]:
        """The one that this device trains with, and the one before, as far as they are."""
        return tuple(slot for slot in reversed(self.all()) if slot.state == "committed")

    def held(self) -> set[bytes]:
        """Digests of the bundles whose files stay on this disk."""
        return {slot.digest for slot in self.all() if slot.state != "failed"}

    def is_committed(self, digest: bytes) -> bool:
        slot = self.find(digest)
        return slot is not None and slot.state == "committed"

    @property
    def highest(self) -> int | None:
        """The highest version of a release ever seen."""
        row = self._database.execute("SELECT record FROM slot WHERE digest = ?", (_HIGHEST,)).fetchone()
        kept = None if row is None else _load(_Highest, row[0])
        known = [slot.version for slot in self.all() if slot.version is not None]
        return max([*known, *([] if kept is None else [kept.version])], default=None)

    def refusal(self, digest: bytes, version: int | None = None, asked: Asked | None = None) -> Rejection | None:
        """Why a bundle is not to be fetched: it failed here, or is of an older release than was seen and in no slot.

        asked: how it is to be trained; None where that is not said yet.
        """
        slot = self.find(digest)
        if slot is not None and self._fails(slot, asked):
            return Rejection("trial", self.said_of(slot))
        highest = self.highest
        held = slot is not None and slot.state != "failed"
        if version is not None and highest is not None and version < highest and not held:
            return Rejection(
                "rollback",
                f"bundle {digest.hex()[:SAID]} is of version {version}, version {highest} was seen here, and no slot "
                "of this device holds it",
            )
        return None

    def said_of(self, slot: Slot) -> str:
        """What became of a failed one, and where that leaves the device."""
        current = self.committed()
        stays = f"stays on {current[0].name}" if current else "has no earlier one to go back to"
        return (
            f"bundle {slot.name} failed its trial here, {slot.failure}: {slot.detail}; this device {stays}; to have it "
            f"tried again: edge-agent model retry {slot.digest.hex()[:SAID]}"
        )

    def _fails(self, slot: Slot, asked: Asked | None) -> bool:
        """Another agent or runtime may do what these could not; another optimiser, half the learning rate or a model
        that has not exploded may too; what a person said holds for all."""
        if slot.state != "failed" or slot.failure == "by hand":
            return slot.state == "failed"
        if slot.software != self._software:
            return False
        if slot.failure != "steps" or slot.asked is None or asked is None:
            return True
        alike = (asked.how, asked.model) == (slot.asked.how, slot.asked.model)
        return alike and asked.learning_rate > slot.asked.learning_rate / 2

    # What changes

    def saw(self, version: int) -> None:
        """Remembers a release's version, durably, before anything is done with it."""
        highest = self.highest
        if highest is None or version > highest:
            with transaction(self._database):
                self._put(_HIGHEST, _Highest(version))

    def begin(self, digest: bytes, version: int | None = None) -> bool:
        """Counts a trial that is about to begin, durably; False for a bundle that needs none, which is current now."""
        if version is not None:
            self.saw(version)
        slot, current = self.find(digest), self.committed()
        if slot is not None and slot.state == "committed":
            if current[0].digest != digest:
                log.info("slot bundle=%s is current again", slot.name)
                with transaction(self._database):
                    self._keep(slot)
            return False
        if slot is None or slot.state == "failed":
            slot = Slot(digest, version, "trial", 0, 0.0)
        with transaction(self._database):
            for other in self.all():
                if other.state == "trial" and other.digest != digest:
                    self._drop(other)
            self._keep(replace(slot, begun=slot.begun + 1))
        reached("agent.trial-begun")
        return True

    def interrupt(self, digest: bytes) -> None:
        """The trial ended in order and without a result: it does not count."""
        slot = self.find(digest)
        if slot is not None and slot.state == "trial" and slot.begun > 0:
            with transaction(self._database):
                self._put(digest, replace(slot, begun=slot.begun - 1))

    def died(self, digest: bytes, detail: str) -> Slot | None:
        """The process that tried it ended, or failed inside; the slot where that was once too often."""
        slot = self.find(digest)
        if slot is None or slot.state != "trial" or slot.begun < MOST_DEATHS:
            return None
        return self.fail(digest, "died", f"{slot.begun} trials did not come to an end: {detail}")

    def recover(self) -> tuple[Slot, ...]:
        """At a start: what failed by the deaths of the processes before."""
        trials = [slot for slot in self.all() if slot.state == "trial"]
        why = "the process was killed, ran out of memory or crashed"
        return tuple(failed for slot in trials if (failed := self.died(slot.digest, why)) is not None)

    def commit(self, digest: bytes) -> bool:
        """Ends a trial well; False where it is on trial no more."""
        slot = self.find(digest)
        if slot is None or slot.state != "trial":
            return False
        with transaction(self._database):
            self._keep(replace(slot, state="committed", begun=0, failure="", detail="", software="", asked=None))
            for old in self.committed()[MOST_COMMITTED:]:
                self._drop(old)
            reached("agent.trial-committing")
        reached("agent.trial-committed")
        return True

    def fail(self, digest: bytes, failure: Failure, detail: str, asked: Asked | None = None) -> Slot | None:
        """Ends a trial, or by hand what is committed, badly. None where there is no such slot."""
        slot = self.find(digest)
        if slot is None or slot.state == "failed":
            return slot
        failed = replace(
            slot,
            state="failed",
            begun=0,
            failure=failure,
            detail=detail[:500],
            software=self._software,
            asked=asked,
        )
        with transaction(self._database):
            self._keep(failed)
            for old in [other for other in self.all() if other.state == "failed"][:-MOST_FAILED]:
                self._drop(old)
        reached("agent.trial-failed")
        return self.find(digest)

    def retry(self, digest: bytes) -> bool:
        """Forgets that a bundle failed; False where it did not."""
        slot = self.find(digest)
        if slot is None or slot.state != "failed":
            return False
        with transaction(self._database):
            self._drop(slot)
        return True

    def give_up_earlier(self, wanted: bytes) -> bool:
        """Lets go of the slot that is held for rollback, for want of room; False where there is none but `wanted`."""
        earlier = [slot for slot in self.committed()[1:] if slot.digest != wanted]
        if earlier:
            log.warning("slot bundle=%s is let go: limits.disk_mib has no room for it", earlier[0].name)
            with transaction(self._database):
                self._drop(earlier[0])
        return bool(earlier)

    def _keep(self, slot: Slot) -> None:
        turn = max((other.turn for other in self.all()), default=0) + 1
        self._put(slot.digest, replace(slot, turn=turn, since_s=self._wall()))

    def _put(self, key: bytes, record: Slot | _Highest) -> None:
        self._database.execute("INSERT OR REPLACE INTO slot VALUES (?, ?)", (key, _dump(record)))

    def _drop(self, slot: Slot) -> None:
        self._database.execute("DELETE FROM slot WHERE digest = ?", (slot.digest,))


def folder_of(digest: bytes) -> str:
    """What the folder of a bundle is called, by its manifest's digest."""
    return digest.hex()[:32]


def _dump(record: object) -> bytes:
    return sealed(cbor2.dumps(write_record(record)))


def _load(cls: type[T], data: bytes) -> T | None:
    """None where it is not what was kept: it is not acted on, and the bundle is tried once more."""
    said = unsealed(data)
    try:
        if said is not None:
            return read_record(cls, cbor2.loads(said), ignore_unknown=True)
    except (RecordError, cbor2.CBORDecodeError, ValueError) as error:
        log.debug("slot: %s", error)
    log.error("a slot is passed over: it was altered on this disk since it was kept; check the disk")
    return None
