"""The checks every update passes, in one order, each with its own reason: see `check_offer` and `check_payload`.

identity, freshness (run, round, task), declared codec, variant and size, base model, examples, figures; then, once
its blob is whole and its digest right: bounded decode, layout and shape, finite; and last its norm (norms.py). What is
taken then has its weight clamped. A rejection is a value and changes nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coordinator.fold import Decoded
from coordinator.round import OPEN, Phase
from coordinator.views import View
from coordinator.vote import ballot_delta
from edge_agent.runtimes.engine import Vector
from protocol.errors import Rejection
from protocol.layout import Layout, take
from protocol.manifest import Manifest
from protocol.messages import Offer, Task
from sparse.codecs import PayloadError, Shared, ballot_bytes, decode_update, max_update_bytes, parse_codec

# What these say is of the moment, not of the device's work on its task, which goes on.
NOT_THE_TASKS_END = frozenset(
    {
        "unknown-device",
        "other-run",
        "unknown-round",
        "round-closed",
        "too-late",
        "no-task",
        "task-over",
        "duplicate",
        "name-reused",
    }
)


@dataclass(frozen=True, slots=True)
class Seat:
    """What the coordinator knows of a device's place in the offered round. `task` is None where it has none.

    open_round: updates of this round are taken from this device, because it is open or the device is carried from it.
    closed: why not, where there is more to say of it than that.
    """

    known_device: bool
    known_round: bool
    open_round: bool
    phase: Phase | None
    task: Task | None
    closed: Rejection | None = None


def check_offer(
    offer: Offer, run: str, seat: Seat, manifest: Manifest, view: Callable[[Task, str], View | Rejection]
) -> Rejection | None:
    """Whether an offered update may be asked for. Nothing of it was received yet. view: of what a
    task is to be done on, by a variant of the bundle, or why that is not known."""
    stale = _check_freshness(offer, run, seat)
    if stale is not None:
        return stale
    task = seat.task
    assert task is not None
    if offer.codec != task.codec:
        return Rejection("codec", f"{offer.codec[:60]!r} where the task says {task.codec!r}")
    if all(offer.variant != known.name for known in manifest.variants):
        names = ", ".join(known.name for known in manifest.variants)
        return Rejection("variant", f"{offer.variant[:60]!r} is not in this bundle, which holds {names}")
    asked = task.variant
    if offer.variant != asked if asked is not None else manifest.variant(offer.variant).keep:
        return Rejection(
            "variant", f"an update of {offer.variant!r} where the task says {asked or 'any whole model'!r}"
        )
    seen = view(task, offer.variant)
    if isinstance(seen, Rejection):
        return seen
    wrong = _check_size(offer.blob.size, task.codec, seen, seen.shared(task))
    if wrong is not None:
        return wrong
    if offer.base != task.model.digest:
        said = offer.base.hex()[:12]
        return Rejection("base-model", f"trained from model {said}, the task gave {task.model.digest.hex()[:12]}")
    if offer.examples <= 0:
        return Rejection("examples", f"{offer.examples} examples; an update is of at least one")
    if offer.peak_mib is not None and not 0.0 <= offer.peak_mib < 1e9:
        return Rejection("figures", f"a peak of {offer.peak_mib} MiB cannot be true")
    for told in (offer.held_out, offer.own):
        if told is not None and not math.isfinite(told.loss):
            return Rejection("figures", f"a loss of {told.loss} on what is held out is no number")
    # Without a hub a device may have joined too late to train for its first collection.
    least = 1 if task.until is None else 0
    if not (math.isfinite(offer.loss) and 0.0 <= offer.train_s < 1e9 and offer.steps >= least):
        return Rejection("figures", f"loss {offer.loss}, {offer.steps} steps and {offer.train_s} s cannot all be true")
    return None


def _check_size(size: int, codec: str, seen: View, shared: Shared | None) -> Rejection | None:
    layout = seen.layout
    if seen.chances is not None:
        # Every ballot over these weights has the same size.
        due = ballot_bytes(layout.n_parameters)
        return None if size == due else Rejection("size", f"{size} bytes where a ballot has {due}")
    limit = max_update_bytes(layout.n_parameters, layout.n_buffers, parse_codec(codec), shared, layout.shapes)
    if size > limit:
        return Rejection("too-large", f"{size} bytes are over the limit of {limit} for {codec}")
    return None


def _check_freshness(offer: Offer, run: str, seat: Seat) -> Rejection | None:
    if not seat.known_device:
        return Rejection("unknown-device", "this device never said hello")
    if offer.run != run:
        return Rejection("other-run", f"for run {offer.run[:40]!r}, this is {run}")
    if not seat.known_round:
        return Rejection("unknown-round", f"there is no round {offer.round}")
    if not seat.open_round:
        return seat.closed or Rejection("round-closed", f"round {offer.round} is closed")
    if seat.task is None:
        return Rejection("no-task", f"this device was not asked in round {offer.round}")
    if seat.phase == "done":
        return Rejection("duplicate", f"round {offer.round} already has an update of this device")
    if seat.phase not in OPEN and seat.phase != "carried":
        return Rejection("task-over", f"this device's task of round {offer.round} is over")
    return None


def check_payload(
    payload: bytes,
    codec: str,
    layout: Layout,
    base: Vector,
    shared: Shared | None = None,
    chances: Vector | None = None,
) -> Decoded | Rejection:
    """The decoded deltas of a payload whose digest was right. base: float32[total], the model trained from. shared: of
    a task under a mask. chances: as for `decode_payload`."""
    try:
        decoded = decode_payload(payload, codec, layout, shared, chances)
    except PayloadError as error:
        return Rejection(error.reason, error.detail)
    with np.errstate(over="ignore", invalid="ignore"):
        sums = [take(base, parts) + d for parts, d in zip((layout.parameters, layout.buffers), decoded, strict=True)]
    if not all(np.isfinite(values).all() for values in sums):
        return Rejection("nonfinite", "the update has values that are not finite, or make the model so")
    return decoded


def decode_payload(
    payload: bytes, codec: str, layout: Layout, shared: Shared | None = None, chances: Vector | None = None
) -> Decoded:
    """The deltas of a payload: of what its variant trains, and of the buffers it moves. A report that the task asked
    for must be there too. chances: float32[n_parameters], of which the payload is a ballot. Raises PayloadError."""
    if chances is not None:
        return ballot_delta(payload, layout.digest, chances)
    spec = parse_codec(codec)
    return decode_update(payload, layout.n_parameters, layout.n_buffers, layout.digest, spec, shared, layout.shapes)


def weigh(examples: int, most: int) -> int:
    """What an update counts for: its examples, which nobody can verify, up to the limit of one device."""
    return min(examples, most)
