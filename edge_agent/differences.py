"""From the model that a device holds to its task's model, by the differences between versions where they lead there.

Whether they do is seen here alone: this device has the model of one of their bases, the payloads decode, and what they
add up to has the SHA-256 of the task's model. Where any of it fails, the whole model is fetched, and the log says why.
"""

import hashlib
import logging
from collections.abc import Callable

import numpy as np

from protocol.blobs import BlobStore
from protocol.errors import SparsefleetError
from protocol.layout import Layout
from protocol.messages import BlobRef, Difference, Task
from sparse.codecs import PayloadError, apply_difference

log = logging.getLogger("edge-agent")


class CatchUp:
    """Brings the last model in a blob store up to the task's. Remembers for which model the differences did not do.

    promised: digests of what waits in the outbox, which is never removed, whatever a task may name.
    """

    def __init__(self, blobs: BlobStore, promised: Callable[[], set[bytes]]) -> None:
        self._blobs, self._promised = blobs, promised
        self._whole: bytes | None = None

    def missing(self, task: Task, layout: Layout) -> tuple[BlobRef, ...]:
        """What is still to be fetched for a task's model: nothing where it is here, which it is as soon as the
        differences are, some of these, or the whole. layout: of the bundle's whole models."""
        if self._blobs.has(task.model.digest):
            return ()
        steps = self._steps(task)
        lacking = tuple(step.blob for step in steps if not self._blobs.has(step.blob.digest))
        if lacking:
            return lacking
        return () if steps and self._put_together(task, steps, layout) else (task.model,)

    def needs(self, task: Task) -> set[bytes]:
        """Digests of what may not be removed while the task's model is not here."""
        if self._blobs.has(task.model.digest):
            return set()
        return self._named(task)

    def give_up(self, task: Task, why: str) -> bool:
        """Goes for the whole model instead, and lets go of the old one. False where nothing else was tried."""
        if not task.differences or self._whole == task.model.digest or self._blobs.has(task.model.digest):
            return False
        log.warning("task=%s the whole model is fetched, not the differences to it: %s", task.name, why)
        self._whole = task.model.digest
        self._let_go(self.needs(task))
        return True

    def _steps(self, task: Task) -> tuple[Difference, ...]:
        """The fewest of the task's differences that begin at a model that is here."""
        if not task.differences or self._whole == task.model.digest:
            return ()
        held = [i for i, step in enumerate(task.differences) if self._blobs.has(step.base)]
        if not held:
            self.give_up(task, "none of the models that they begin at is here")
            return ()
        steps = task.differences[held[-1] :]
        size = sum(step.blob.size for step in steps)
        if size >= task.model.size:
            self.give_up(task, f"they have {size} bytes, and the model {task.model.size}")
            return ()
        return steps

    def _put_together(self, task: Task, steps: tuple[Difference, ...], layout: Layout) -> bool:
        """Whether the task's model is here now."""
        try:
            data = self._result(task, steps, layout)
            if hashlib.sha256(data).digest() != task.model.digest:
                raise SparsefleetError("what they add up to is not the task's model")
            self._blobs.put(data)
        except (SparsefleetError, PayloadError) as error:
            self.give_up(task, str(error))
            return False
        size = sum(step.blob.size for step in steps)
        log.info("task=%s model from differences=%d bytes=%d of=%d", task.name, len(steps), size, task.model.size)
        self._let_go(self._named(task) - {task.model.digest})
        return True

    def _named(self, task: Task) -> set[bytes]:
        return {digest for step in task.differences for digest in (step.base, step.blob.digest)}

    def _let_go(self, digests: set[bytes]) -> None:
        for digest in sorted(digests - self._promised()):
            self._blobs.remove(digest)

    def _result(self, task: Task, steps: tuple[Difference, ...], layout: Layout) -> bytes:
        data = self._blobs.read(steps[0].base)
        if len(data) != task.model.size:
            raise SparsefleetError(f"the model that they begin at has {len(data)} bytes, not {task.model.size}")
        model = np.frombuffer(data, dtype="<f4").astype(np.float32)
        for step in steps:
            payload = self._blobs.read(step.blob.digest)
            model = apply_difference(
                model, payload, layout.n_parameters, layout.n_buffers, layout.digest, layout.shapes
            )
        return model.astype("<f4").tobytes()
