"""Updates on their way out: offered until receipted, and sent from disk by the chunk as they are asked for."""

import logging

import numpy as np

from edge_agent.link import Link
from edge_agent.repeats import Repeated
from edge_agent.store import AgentStore, Settled
from protocol.failpoints import reached
from protocol.messages import Chunk, Later, Need, Receipt, Unavailable

log = logging.getLogger("edge-agent")


class Outgoing:
    """The outbox of one agent, and when it offers what is in it."""

    def __init__(self, store: AgentStore, link: Link, rng: np.random.Generator) -> None:
        self._store, self._link, self._rng = store, link, rng
        self._offers = Repeated(0.0)
        # When the outbox was last offered, by the caller's clock.
        self.offered: float | None = None

    @property
    def waiting(self) -> int:
        """How many updates wait for their receipts."""
        return len(self._store.outbox())

    @property
    def due(self) -> float:
        """When offers are to be made."""
        return self._offers.at

    def digests(self) -> set[bytes]:
        """Of the payloads that must stay on disk."""
        return {offer.blob.digest for offer in self._store.outbox()}

    def is_done(self, task: str) -> bool:
        """Whether the update of a task waits here."""
        return any(offer.task == task for offer in self._store.outbox())

    def begin(self, at: float) -> None:
        """Offers what waits at that time, and from then on ever more rarely."""
        self._offers.begin(at)

    def later(self, said: Later, now: float) -> None:
        """A little later still, and not all who were told so at once. Meanwhile a Need may come."""
        if said.digest in self.digests():
            self._offers.begin(now + said.after_s * self._rng.uniform(1.0, 1.5))

    def serve(self, need: Need) -> None:
        """Sends the chunks that are asked for."""
        if need.digest not in self.digests():
            self._link.send("up", Unavailable(need.digest, "not in the outbox"))
            return
        for index in need.indices:
            data = self._store.blobs.read_chunk(need.digest, index)
            if data is not None:
                self._link.send("up/blob", Chunk(need.digest, index, data))
                reached("agent.chunk-sent")

    def settle(self, receipt: Receipt, now: float) -> Settled | None:
        """Lets go of the update that a receipt names; None where there is none, as for a receipt that came twice."""
        accepted = receipt.verdict == "accepted"
        settled = self._store.settle(receipt.digest, receipt.task, accepted=accepted, reason=receipt.reason)
        if settled is not None:
            level = logging.INFO if accepted else logging.WARNING
            log.log(level, "update %s task=%s %s %s", receipt.verdict, receipt.task, receipt.reason, receipt.detail)
            self._offers.begin(now)
        return settled

    def offer(self, now: float) -> None:
        """Offers all that waits."""
        outbox = self._store.outbox()
        for offer in outbox:
            if self._store.blobs.whole(offer.blob):
                self._link.send("up", offer)
                reached("agent.offer-sent")
            else:
                # Somebody removed or cut the file. Waiting for ever would hold back every later update.
                log.error(
                    "update lost task=%s: its payload is gone from %s, or cut short", offer.task, self._store.blobs.root
                )
                self._store.settle(offer.blob.digest, offer.task, accepted=False, reason="payload-gone")
        if outbox:
            self.offered = now
            self._offers.said(now, self._rng)
        else:
            self._offers.rest()
