"""From a device's offer to its receipt: asked for, fetched, checked, and accepted or rejected, both durably.

What was decided waits for `settle`, which makes all of it durable at the price of one, and only then sends receipts. A
commit takes the disk milliseconds however much is in it, so what arrives during one is in the next. What that
means for the round is said by the verdict, and is the round table's to decide.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from coordinator.intake import NOT_THE_TASKS_END, Seat, check_offer, check_payload, weigh
from coordinator.link import Link
from coordinator.norms import Norms, check_norms, norms_of
from coordinator.store import Store
from coordinator.uploads import Uploads
from coordinator.views import View
from protocol.errors import Rejection
from protocol.failpoints import reached
from protocol.manifest import Manifest
from protocol.messages import Chunk, Later, Offer, Receipt, Task

log = logging.getLogger("coordinator")

# When a device may offer again what there was no disk for: no sooner will anybody have freed some.
NO_DISK_S = 60.0


@dataclass(frozen=True, slots=True)
class Taken:
    """The update is the coordinator's now. norms: of what it holds."""

    offer: Offer
    norms: Norms


@dataclass(frozen=True, slots=True)
class Rejected:
    """The update never will be the coordinator's, and that is counted. `number` is 0 where it is of no round of this
    run."""

    why: Rejection
    number: int
    ends_task: bool


@dataclass(frozen=True, slots=True)
class Uncounted:
    """Something was rejected that the store keeps nothing of; the caller counts it."""

    why: Rejection


Verdict = Taken | Rejected


@dataclass(frozen=True, slots=True)
class _Decided:
    """What will be so, and said, once it is durable."""

    device: str
    offer: Offer
    receipt: Receipt
    verdict: Taken | Rejected


ViewOf = Callable[[Task, str], View | Rejection]


class Reception:
    """Takes updates in. most_examples: what the update of one device may count for. bounds: the norms it may have."""

    def __init__(
        self,
        store: Store,
        link: Link,
        uploads: Uploads,
        manifest: Manifest,
        most_examples: int,
        bounds: Callable[[], Norms],
    ) -> None:
        self._store, self._link, self._uploads, self._manifest = store, link, uploads, manifest
        self._most_examples, self._bounds = most_examples, bounds
        self._tasks: dict[str, Task] = {}
        self._decided: dict[str, _Decided] = {}

    @property
    def taken(self) -> int:
        """How many updates are accepted as soon as `settle` has made them durable."""
        return sum(isinstance(decided.verdict, Taken) for decided in self._decided.values())

    def awaits(self, device: str) -> bool:
        """Whether something of this device waits for `settle`; nothing else of it may be decided before."""
        return device in self._decided

    def settle(self) -> tuple[tuple[str, Verdict], ...]:
        """Makes what was decided durable, in one transaction, and sends the receipts; says what became of whom."""
        self._uploads.keep()
        decided = tuple(self._decided.values())
        if not decided:
            return ()
        with self._store.together():
            for one in decided:
                self._write(one)
        reached("coordinator.update-accepted")
        self._decided.clear()
        for one in decided:
            self._link.send(one.device, one.receipt)
            reached("coordinator.receipt-sent")
        return tuple((one.device, one.verdict) for one in decided)

    def clear(self) -> None:
        """Forgets what is not durable: nobody was told of it, and it will be offered again."""
        self._decided.clear()

    def offered(self, device: str, offer: Offer, seat: Seat, view: ViewOf, now: float) -> Uncounted | None:
        """Answers an offer, unless its chunks must come first or it waits for `settle`. view: of the task's base
        model."""
        earlier = self._store.receipt(device, offer)
        if earlier is not None and earlier[0] == offer.blob.digest:
            self._link.send(device, earlier[1])
            return None
        if earlier is not None:
            why = Rejection("name-reused", "another update has this name; this one was not looked at")
            self._link.send(device, _rejected(offer, why))
            return Uncounted(why)
        rejection = check_offer(offer, self._store.run, seat, self._manifest, view)
        if rejection is not None and not seat.known_device:
            # No receipt: a device that a restart forgot says hello again and keeps its update until then.
            return Uncounted(rejection)
        if rejection is not None:
            self._reject(device, offer, rejection)
            return None
        if not self._store.room_for_update(offer.blob):
            # No fault of the device, which keeps its update and offers it again.
            self._link.send(device, Later(offer.blob.digest, NO_DISK_S))
            log.error("no disk left under limits.disk_mib device=%s bytes=%d", device, offer.blob.size)
            return None
        assert seat.task is not None
        self._tasks[device] = seat.task
        self._arrived(device, self._uploads.begin(device, offer, now), view)
        return None

    def take(self, device: str, chunk: Chunk, view: ViewOf, now: float) -> Uncounted | None:
        """Takes a chunk of an update that was asked for."""
        taken = self._uploads.take(device, chunk, now)
        if isinstance(taken, Rejection):
            return Uncounted(taken)
        self._arrived(device, taken, view)
        return None

    def _arrived(self, device: str, offer: Offer | None, view: ViewOf) -> None:
        """Checks a blob that is complete, and accepts it: from the receipt on it is ours."""
        if offer is None:
            return
        self._uploads.end(device)
        payload = self._uploads.verified(offer.blob)
        if payload is None:
            self._reject(device, offer, Rejection("digest", "the bytes are not those of the offer"))
            return
        checked = self._check(payload, offer, self._tasks[device], view)
        if isinstance(checked, Rejection):
            if not self._used(offer.blob.digest):
                self._uploads.discard(offer.blob)
            self._reject(device, offer, checked)
            return
        receipt = Receipt(offer.blob.digest, offer.task, "accepted")
        self._decided[device] = _Decided(device, offer, receipt, Taken(offer, checked))

    def _used(self, digest: bytes) -> bool:
        waiting = any(one.offer.blob.digest == digest for one in self._decided.values())
        return waiting or self._store.uses(digest)

    def _check(self, payload: bytes, offer: Offer, task: Task, view: ViewOf) -> Norms | Rejection:
        """The norms of a payload that is right."""
        if len(payload) != offer.blob.size:
            return Rejection("size", f"{len(payload)} bytes where {offer.blob.size} were offered")
        seen = view(task, offer.variant)
        if isinstance(seen, Rejection):
            return seen
        checked = check_payload(payload, task.codec, seen.layout, seen.model, seen.shared(task), seen.chances)
        if isinstance(checked, Rejection):
            return checked
        norms = norms_of(checked)
        return check_norms(norms, self._bounds()) or norms

    def _reject(self, device: str, offer: Offer, why: Rejection) -> None:
        """The device's task ends with it unless the update was just out of place."""
        ends_task = why.reason not in NOT_THE_TASKS_END
        of_this_run = offer.run == self._store.run and self._store.has_round(offer.round)
        verdict = Rejected(why, offer.round if of_this_run else 0, ends_task)
        self._decided[device] = _Decided(device, offer, _rejected(offer, why), verdict)
        if ends_task:
            self._uploads.end(device)

    def _write(self, one: _Decided) -> None:
        match one.verdict:
            case Taken(offer, norms):
                self._store.accept(one.device, offer, weigh(offer.examples, self._most_examples), norms, one.receipt)
            case Rejected(_, number, ends_task):
                self._store.reject(one.device, one.offer, number, one.receipt, ends_task=ends_task)


def _rejected(offer: Offer, why: Rejection) -> Receipt:
    return Receipt(offer.blob.digest, offer.task, "rejected", why.reason, why.detail[:500])
