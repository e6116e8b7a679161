"""From local result to update: difference, error feedback, codec, and into the outbox in one transaction."""

import logging
from collections.abc import Callable

import numpy as np

from edge_agent.memory import peak_mib
from edge_agent.runtimes.engine import Vector
from edge_agent.store import AgentStore
from edge_agent.training import Trained
from edge_agent.workshop import Bench
from protocol.failpoints import reached
from protocol.layout import layout_of, take
from protocol.messages import Offer, Task
from sparse.codecs import Shared, encode_update, parse_codec

log = logging.getLogger("edge-agent")


def pack(
    store: AgentStore,
    task: Task,
    bench: Bench,
    base: Vector,
    trained: Trained,
    most_missed: int,
    shared: Shared | None = None,
    peak: Callable[[], float | None] = peak_mib,
) -> Offer:
    """Puts the update of a finished task in the outbox, whose residual must be settled before.

    base: float32[total], the model the task started from. The payload is on disk before the outbox names it; a kill
    in between leaves a blob that nothing names and the next task clears away. most_missed: as in `carried_on`.
    shared: of a task under a mask. peak: MiB that training took at the most.
    """
    layout = layout_of(bench.manifest, bench.variant)
    # What was left unsent of a tier's update belongs to the channels that its model was cut from.
    key = layout.digest + (task.channels or b"")
    delta = np.subtract(trained.model, base)
    parameters, buffers = take(delta, layout.parameters), take(delta, layout.buffers)
    residual = carried_on(store, key, layout.n_parameters, task, most_missed)
    if task.channels is not None and store.has_other_residual(key):
        log.info(
            "task=%s residual of other channels is not carried on, and goes once this update is accepted", task.name
        )
    spec = parse_codec(task.codec)
    payload, residual = encode_update(
        parameters,
        buffers,
        residual,
        spec,
        layout.digest,
        shared,
        trained.gradient,
        layout.shapes,
        task.seed % (1 << 32),  # the coordinator's, of this round and device
    )
    blob = store.blobs.put(payload)
    reached("agent.payload-put")
    offer = Offer(
        blob=blob,
        run=task.run,
        round=task.round,
        update_boot=store.boot,
        update_sequence=store.next_sequence(),
        base=task.model.digest,
        examples=len(bench.dataset),
        steps=trained.steps,
        loss=trained.loss,
        train_s=trained.seconds,
        codec=task.codec,
        variant=bench.variant,
        peak_mib=peak(),
    )
    store.keep_update(offer, key, residual)
    return offer


def carried_on(store: AgentStore, key: bytes, n: int, task: Task, most_missed: int) -> Vector:
    """What of earlier updates goes into this one: float32[n].

    All of it, whatever codec left it, unless it is stale: of another run, which has a model of its own, or of an update
    after which more than `most_missed` rounds were missed. It was a step from a model that the fleet has long left
    then; such errors, compensated late, are what slows error feedback down under partial participation (Li and Li 2023,
    Fed-EF). A stale residual stays in the store until the update that does without it is accepted.
    """
    left = store.residual_from(key)
    if left is not None and left[0] != task.run:
        log.info("task=%s residual of run=%s is not carried on", task.name, left[0])
        return np.zeros(n, dtype=np.float32)
    missed = 0 if left is None else task.round - left[1] - 1
    if missed > most_missed:
        log.info("task=%s residual is not carried on: missed=%d, residual_rounds=%d", task.name, missed, most_missed)
        return np.zeros(n, dtype=np.float32)
    return store.residual(key, n)
