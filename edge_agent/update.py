"""From local result to update: difference, error feedback, codec, and into the outbox in one transaction."""

import logging
from dataclasses import dataclass

import numpy as np

from edge_agent.momentum import memory_of, pack_memory, settings_of
from edge_agent.runtimes.engine import Vector
from edge_agent.scores import ballot_of
from edge_agent.store import AgentStore
from edge_agent.training import Trained
from protocol.failpoints import reached
from protocol.layout import Layout, layout_of, maskable_layout, take
from protocol.manifest import Manifest
from protocol.messages import HeldOut, Offer, Task
from sparse.codecs import Shared, encode_update, parse_codec

log = logging.getLogger("edge-agent")


@dataclass(frozen=True, slots=True)
class Work:
    """What an update was trained with. manifest: as the variant sees it. base: float32[total], the model that the task
    started from. shared: of a task under a mask. peak_mib: MiB that training took at the most, where it is known.
    held_out: of the base; own: of the device's own model, without a hub."""

    manifest: Manifest
    variant: str
    examples: int
    base: Vector
    shared: Shared | None = None
    peak_mib: float | None = None
    held_out: HeldOut | None = None
    own: HeldOut | None = None


def pack(store: AgentStore, task: Task, work: Work, trained: Trained, most_missed: int) -> Offer:
    """Puts the update of a finished task in the outbox, whose residual must be settled before.

    The payload is on disk before the outbox names it; a kill in between leaves a blob that nothing names and the next
    task clears away. most_missed: as in `carried_on`.
    """
    if task.chances is None:
        key, payload, residual = _compressed(store, task, work, trained, most_missed)
    else:
        # A mask that is drawn leaves nothing unsent: its mean is what was learnt.
        key, residual = maskable_layout(work.manifest).digest, np.zeros(0, np.float32)
        payload = ballot_of(work.manifest, task, trained)
    blob = store.blobs.put(payload)
    reached("agent.payload-put")
    offer = Offer(
        blob=blob,
        run=task.run,
        round=task.round,
        update_boot=store.boot,
        update_sequence=store.next_sequence(),
        base=task.model.digest,
        examples=work.examples,
        steps=trained.steps,
        loss=trained.loss,
        train_s=trained.seconds,
        codec=task.codec,
        variant=work.variant,
        peak_mib=work.peak_mib,
        held_out=work.held_out,
        own=work.own,
    )
    if task.until is not None:
        residual = residual[:0]
    store.keep_update(offer, key, residual, _momentum(task, work, trained))
    return offer


def _compressed(
    store: AgentStore, task: Task, work: Work, trained: Trained, most_missed: int
) -> tuple[bytes, bytes, Vector]:
    """The name under which a residual is kept, the payload under the task's codec, and what is left unsent of it."""
    layout = layout_of(work.manifest, work.variant)
    # What was left unsent of a tier's update belongs to the channels that its model was cut from.
    key = kept_under(layout, task)
    delta = np.subtract(trained.model, work.base)
    parameters, buffers = take(delta, layout.parameters), take(delta, layout.buffers)
    residual = carried_on(store, key, layout.n_parameters, task, most_missed)
    if task.channels is not None and store.has_other_residual(key):
        log.info(
            "task=%s residual of other channels is not carried on, and goes once this update is accepted", task.name
        )
    spec = parse_codec(task.codec)
    payload, left = encode_update(
        parameters,
        buffers,
        residual,
        spec,
        layout.digest,
        work.shared,
        trained.gradient,
        layout.shapes,
        task.seed % (1 << 32),  # the coordinator's, of this round and device
    )
    return key, payload, left


def kept_under(layout: Layout, task: Task) -> bytes:
    """What is left of a task's update is of these parameters, and of these channels where they were chosen."""
    return layout.digest + (task.channels or b"")


def _momentum(task: Task, work: Work, trained: Trained) -> bytes | None:
    if trained.momentum is None:
        return None
    layout = layout_of(work.manifest, work.variant)
    mask, base = None if work.shared is None else work.shared.mask, take(work.base, layout.parameters)
    settings = settings_of(task.optimizer)
    return pack_memory(memory_of(task, settings, trained.steps, trained.momentum, base, mask))


def carried_on(store: AgentStore, key: bytes, n: int, task: Task, most_missed: int) -> Vector:
    """What of earlier updates goes into this one: float32[n].

    All of it, whatever codec left it, unless it is stale: of another run, which has a model of its own, or of an update
    after which more than `most_missed` rounds were missed. It was a step from a model that the fleet has long left
    then; such errors, compensated late, are what slows error feedback down under partial participation (Li and Li 2023,
    Fed-EF). A stale residual stays in the store until the update that does without it is accepted.
    """
    if task.until is not None:
        # A device's own model, whole, as a difference: what a codec leaves out of it is in the next one again, and
        # would be counted twice.
        return np.zeros(n, dtype=np.float32)
    left = store.residual_from(key)
    if left is not None and left[0] != task.run:
        log.info("task=%s residual of run=%s is not carried on", task.name, left[0])
        return np.zeros(n, dtype=np.float32)
    missed = 0 if left is None else task.round - left[1] - 1
    if missed > most_missed:
        log.info("task=%s residual is not carried on: missed=%d, residual_rounds=%d", task.name, missed, most_missed)
        return np.zeros(n, dtype=np.float32)
    return store.residual(key, n)
