"""From a device's offer to its receipt: asked for, fetched, checked, and accepted or rejected, both durably.

What that means for the round is said by the verdict, and is the round table's to decide.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from coordinator.intake import NOT_THE_TASKS_END, Seat, check_offer, check_payload, weigh
from coordinator.link import Link
from coordinator.store import Store
from coordinator.uploads import Uploads
from coordinator.views import View
from protocol.errors import Rejection
from protocol.failpoints import reached
from protocol.manifest import Manifest
from protocol.messages import Chunk, Offer, Receipt, Task

log = logging.getLogger("coordinator")


@dataclass(frozen=True, slots=True)
class Taken:
    """The update is the coordinator's now."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Rejected:
    """The update never will be, and that is counted. `number` is 0 where it is of no round of this run."""

    why: Rejection
    number: int
    ends_task: bool


@dataclass(frozen=True, slots=True)
class Uncounted:
    """Something was rejected that the store keeps nothing of; the caller counts it."""

    why: Rejection


Verdict = Taken | Rejected | Uncounted
ViewOf = Callable[[str], View]


class Reception:
    """Takes updates in. most_examples: what the update of one device may count for."""

    def __init__(self, store: Store, link: Link, uploads: Uploads, manifest: Manifest, most_examples: int) -> None:
        self._store, self._link, self._uploads, self._manifest = store, link, uploads, manifest
        self._most_examples = most_examples
        self._tasks: dict[str, Task] = {}

    def offered(self, device: str, offer: Offer, seat: Seat, view: ViewOf, now: float) -> Verdict | None:
        """Answers an offer; None while its chunks are on their way. view: of the round's base model."""
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
            return self._reject(device, offer, rejection)
        if not self._store.room_for_update(offer.blob):
            # No fault of the device, which keeps its update and offers it again.
            log.error("no disk left under limits.disk_mib device=%s bytes=%d", device, offer.blob.size)
            return None
        assert seat.task is not None
        self._tasks[device] = seat.task
        return self._arrived(device, self._uploads.begin(device, offer, now), view)

    def take(self, device: str, chunk: Chunk, view: ViewOf, now: float) -> Verdict | None:
        """Takes a chunk of an update that was asked for."""
        taken = self._uploads.take(device, chunk, now)
        if isinstance(taken, Rejection):
            return Uncounted(taken)
        return self._arrived(device, taken, view)

    def _arrived(self, device: str, offer: Offer | None, view: ViewOf) -> Verdict | None:
        """Checks a blob that is complete, and accepts it: from the receipt on it is ours."""
        if offer is None:
            return None
        self._uploads.end(device)
        blobs = self._store.updates
        if not blobs.has(offer.blob.digest) and not blobs.finish(offer.blob):
            return self._reject(device, offer, Rejection("digest", "the bytes are not those of the offer"))
        reached("coordinator.blob-finished")
        wrong = self._check(blobs.read(offer.blob.digest), offer, self._tasks[device], view)
        if wrong is not None:
            if not self._store.uses(offer.blob.digest):
                blobs.remove(offer.blob.digest)
            return self._reject(device, offer, wrong)
        receipt = Receipt(offer.blob.digest, offer.task, "accepted")
        self._store.accept(device, offer, weigh(offer.examples, self._most_examples), receipt)
        self._link.send(device, receipt)
        reached("coordinator.receipt-sent")
        return Taken(offer)

    def _check(self, payload: bytes, offer: Offer, task: Task, view: ViewOf) -> Rejection | None:
        if len(payload) != offer.blob.size:
            return Rejection("size", f"{len(payload)} bytes where {offer.blob.size} were offered")
        seen = view(offer.variant)
        checked = check_payload(payload, task.codec, seen.layout, seen.model, seen.shared(task))
        return checked if isinstance(checked, Rejection) else None

    def _reject(self, device: str, offer: Offer, why: Rejection) -> Verdict:
        """Says so, durably; the device's task ends with it unless the update was just out of place."""
        receipt = _rejected(offer, why)
        ends_task = why.reason not in NOT_THE_TASKS_END
        of_this_run = offer.run == self._store.run and self._store.has_round(offer.round)
        number = offer.round if of_this_run else 0
        self._store.reject(device, offer, number, receipt, ends_task=ends_task)
        self._link.send(device, receipt)
        if ends_task:
            self._uploads.end(device)
        return Rejected(why, number, ends_task)


def _rejected(offer: Offer, why: Rejection) -> Receipt:
    return Receipt(offer.blob.digest, offer.task, "rejected", why.reason, why.detail[:500])
