"""The status record: what the running agent says of itself in its state folder, for whoever asks without disturbing it.

A file of one page that is overwritten in place and never synced: the system writes it out when it writes anyhow, and a
power cut costs nothing but the record. What changes all the time (steps done, the last message heard) is written
rarely, what an operator waits for within seconds.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_agent.job import Job
from edge_agent.trainer import Ready
from protocol.disk import LOCAL, Disk, is_disk_trouble
from protocol.messages import Receipt
from protocol.records import RecordError, read_record, write_record

FILE = "status.json"
PAGE_BYTES = 4096
# Made by `edge-agent outbox retry`, and removed by the agent that does as it is asked.
RETRY_FILE = "retry"
# Between two writes: for what an operator waits for, and for progress and the last message heard.
SOON_S = 5.0
RARELY_S = 60.0
# Of neighbours that are waited for.
MOST_NAMED = 8
# Of a reason in words; three of them fit into the page with all the rest.
_WORDS = 400


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a task or its update. at_s: Unix seconds, when this device heard or said so."""

    task: str
    reason: str = ""
    detail: str = ""
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Gossip:
    """How far a device without a hub is. number: exchanges of the epoch that are completed, position: of the run.
    estimate: how far it is from its neighbours. waits_for: some of those whose message is missing; why: what else it
    waits for. refused: messages of neighbours."""

    epoch: int = 0
    number: int = 0
    position: int = 0
    estimate: float = 0.0
    waits_for: tuple[str, ...] = ()
    why: str = ""
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """What an agent is about at one moment. Seconds are of its monotonic clock; verdicts' times are not known to it.

    heard: when a message last came; offered: when the outbox was last offered.
    """

    connected: bool = False
    why_not: str = ""
    heard: float | None = None
    phase: str = "idle"
    task: str = ""
    done: int = 0
    total: int = 0
    backend: str = ""
    offered: float | None = None
    accepted: Verdict | None = None
    rejected: Verdict | None = None
    refused: Verdict | None = None
    gossip: Gossip | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """The record. Times are Unix seconds by this device's clock. stopped: whether the agent ended in good order."""

    pid: int
    boot: int
    version: str
    device: str
    fleet: str
    broker: str
    started_s: float
    written_s: float = 0.0
    stopped: bool = False
    connected: bool = False
    why_not: str = ""
    heard_s: float | None = None
    phase: str = "idle"
    task: str = ""
    done: int = 0
    total: int = 0
    backend: str = ""
    offered_s: float | None = None
    accepted: Verdict | None = None
    rejected: Verdict | None = None
    refused: Verdict | None = None
    gossip: Gossip | None = None


@dataclass(slots=True)
class Journal:
    """What an agent notes down for its status, while it works."""

    why_not: str = ""
    heard: float | None = None
    accepted: Verdict | None = None
    rejected: Verdict | None = None
    refused: Verdict | None = None

    def settled(self, receipt: Receipt) -> None:
        """An update left the outbox by a receipt."""
        said = Verdict(receipt.task, receipt.reason[:_WORDS], receipt.detail[:_WORDS])
        if receipt.verdict == "accepted":
            self.accepted = said
        else:
            self.rejected = said

    def reported(self, task: str, state: str, reason: str, detail: str) -> None:
        """The coordinator was told what becomes of a task."""
        if state != "accepted":
            self.refused = Verdict(task, reason[:_WORDS], detail[:_WORDS])

    def standing(self, connected: bool, job: Job, ready: Ready | None, done: int, offered: float | None) -> Standing:
        """All of it at one moment. done: steps of the task in hand."""
        return Standing(
            connected=connected,
            why_not=self.why_not,
            heard=self.heard,
            phase=job.phase,
            task=job.task.name if job.task else "",
            done=done if ready else 0,
            total=ready.total_steps if ready else 0,
            backend=ready.backend if ready else "",
            offered=offered,
            accepted=self.accepted,
            rejected=self.rejected,
            refused=self.refused,
        )


class StatusKeeper:
    """Writes the record of one agent. A disk that does not take it is no reason to stop: the next change tries again.

    first: what does not change, and what is known from before.
    """

    def __init__(self, folder: Path, first: Status, disk: Disk = LOCAL, pid: Callable[[], int] = os.getpid) -> None:
        self._path, self._disk = folder / FILE, disk
        self._asking = folder / RETRY_FILE
        before = read_status(folder, disk)
        # Of the run before: what became of updates is still what an operator asks for.
        kept = before or first
        self._now = replace(
            first,
            pid=pid(),
            heard_s=kept.heard_s,
            backend=kept.backend,
            offered_s=kept.offered_s,
            accepted=kept.accepted,
            rejected=kept.rejected,
            refused=kept.refused,
        )
        self._seen = Standing()
        self._due = 0.0
        self._rarely = 0.0
        self._written_at = float("-inf")

    def note(self, standing: Standing, wall_s: float, now: float) -> None:
        """Takes in what the agent is about, and writes it if it is time to. wall_s: Unix seconds; now: monotonic."""
        if standing != self._seen:
            soon = _essence(standing) != _essence(self._seen)
            self._now = _updated(self._now, standing, self._seen, wall_s, now)
            self._seen = standing
            self._due = min(self._due, self._written_at + (SOON_S if soon else RARELY_S))
        if now >= self._due:
            self._write(wall_s, now)

    def asked_to_retry(self) -> bool:
        """Whether somebody wants the outbox offered now; once."""
        try:
            self._asking.unlink()
        except OSError:
            return False
        return True

    def wait_s(self, now: float) -> float:
        """How long until there is something to write."""
        return max(0.0, self._due - now)

    def end(self, wall_s: float, now: float) -> None:
        """The last words of an agent that stops in good order."""
        self._now = replace(self._now, stopped=True, connected=False)
        self._write(wall_s, now)

    def _write(self, wall_s: float, now: float) -> None:
        self._now = replace(self._now, written_s=wall_s)
        self._written_at, self._due = now, float("inf")
        data = json.dumps(write_record(self._now)).encode().ljust(PAGE_BYTES)
        try:
            self._disk.write_at(self._path, data, 0, len(data))
        except OSError as error:
            if not is_disk_trouble(error):
                raise


def read_status(folder: Path, disk: Disk = LOCAL) -> Status | None:
    """The record in a state folder; None where there is none, or it is half written."""
    try:
        return read_record(Status, json.loads(disk.read(folder / FILE, 0, 16 * PAGE_BYTES)), ignore_unknown=True)
    except (OSError, ValueError, RecordError, RecursionError):
        return None


def _essence(standing: Standing) -> Standing:
    gossip = standing.gossip
    if gossip is not None:
        # An exchange may take a moment: of these the epoch is news, and what it waits for besides.
        gossip = Gossip(gossip.epoch, why=gossip.why)
    return replace(standing, heard=None, offered=None, done=0, gossip=gossip)


def _updated(status: Status, standing: Standing, before: Standing, wall_s: float, now: float) -> Status:
    def at(moment: float | None, known: float | None) -> float | None:
        return known if moment is None else wall_s - (now - moment)

    def said(found: Verdict | None, old: Verdict | None, known: Verdict | None) -> Verdict | None:
        return known if found is None or found is old else replace(found, at_s=wall_s)

    changed: dict[str, Any] = {
        name: getattr(standing, name) for name in ("connected", "phase", "task", "done", "total")
    }
    return replace(
        status,
        **changed,
        why_not=standing.why_not[:_WORDS],
        gossip=standing.gossip,
        backend=standing.backend or status.backend,
        heard_s=at(standing.heard, status.heard_s),
        offered_s=at(standing.offered, status.offered_s),
        accepted=said(standing.accepted, before.accepted, status.accepted),
        rejected=said(standing.rejected, before.rejected, status.rejected),
        refused=said(standing.refused, before.refused, status.refused),
    )
