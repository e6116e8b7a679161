"""How far the task in hand is, on this disk: a checkpoint now and then, so that a restart costs little training.

The file lies with the blobs, under the name of the model that the task starts from: it counts against the same limit,
and goes when the task's model goes, at the latest. It is of one task on one runtime (`checkpoint.Run`), so that an
update made with it has the bits of one made in one go; whatever else is found is passed over, and training begins anew.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_agent import checkpoint
from edge_agent.checkpoint import CheckpointError, Run, run_of
from edge_agent.datasets.pinning import release
from edge_agent.runtimes.backends import runtime_name
from edge_agent.training import LocalTraining, Recipe, TrainingState
from edge_agent.workshop import Bench
from protocol.blobs import BlobStore
from protocol.bundle import Bundle
from protocol.disk import Disk, exists
from protocol.errors import SparsefleetError
from protocol.failpoints import reached
from protocol.layout import layout_of
from protocol.messages import Task
from sparse.codecs import Shared, ballot_bytes, max_update_bytes, parse_codec

log = logging.getLogger("edge-agent")

# Flash wears by what is written. Large states are kept less often, so that no more than this is written in a second of
# training: 22 GB in a day of nothing else, less than one rewrite of a 32 GB card.
MOST_BYTES_PER_S = 256 << 10
# What names and shapes take in the file, beside the values.
_HEADER_BYTES = 4096
_SUFFIX = ".checkpoint"

Because = Literal["due", "waiting", "pausing", "stopping"]


@dataclass(slots=True)
class Progress:
    """The checkpoint of one task, written at most every `every_s` seconds of training; never where that is 0.

    bytes_written: of all its checkpoints, since this object was made.
    """

    blobs: BlobStore
    task: Task
    bundle: Bundle
    bench: Bench
    recipe: Recipe
    shared: Shared | None
    every_s: float
    threads: int
    bytes_written: int = 0
    _kept_s: float = 0.0
    _kept_steps: int = 0
    _run: Run | None = None

    def found(self) -> TrainingState | None:
        """Where training was when this task was last worked on, if that is known and all is as it was."""
        if self.every_s <= 0 or not exists(self._disk, self.path):
            return None
        manifest = self.bench.manifest
        n = layout_of(manifest, self.bench.variant).n_parameters
        try:
            state = checkpoint.load(self.path, self._identity(), manifest.total, n, self._disk)
        except CheckpointError as error:
            log.warning("task=%s begins anew, its checkpoint is passed over: %s", self.task.name, error)
            self._disk.remove(self.path)
            return None
        log.info("task=%s goes on after step=%d train_s=%.1f", self.task.name, state.done, state.seconds)
        self._kept_s, self._kept_steps = state.seconds, state.done
        return state

    def keep(self, training: LocalTraining, because: Because) -> None:
        """Writes a checkpoint if it is worth it: `due` while training goes on, `waiting` when it is done and the update
        before it has no receipt yet, `pausing` while the device may not train, `stopping` before an orderly end."""
        if self.every_s <= 0 or training.done == self._kept_steps or not self._worth_it(training, because):
            return
        # Also when it fails: a disk that is full is not asked again after every slice.
        self._kept_s = training.seconds
        size = training.state_bytes + _HEADER_BYTES
        if not self._room(size):
            log.warning("task=%s no checkpoint: limits.disk_mib has no room for %d bytes", self.task.name, size)
            return
        try:
            checkpoint.save(self.path, self._identity(), training.live_state(), self._disk)
        except SparsefleetError as error:
            # Training goes on without: only a restart would miss it.
            log.warning("task=%s no checkpoint: %s", self.task.name, error)
            self._disk.remove(self._temporary)
            return
        reached("agent.checkpoint-written")
        self._kept_steps, written = training.done, self._disk.size(self.path)
        self.bytes_written += written
        log.info("task=%s checkpoint step=%d bytes=%d", self.task.name, training.done, written)

    def drop(self) -> None:
        """The task is over, and so is its checkpoint."""
        self._disk.remove(self.path)
        if self.bytes_written:
            log.info("task=%s checkpoints wrote bytes=%d", self.task.name, self.bytes_written)

    @property
    def path(self) -> Path:
        return self.blobs.path(self.task.model.digest).with_suffix(_SUFFIX)

    @property
    def _disk(self) -> Disk:
        return self.blobs.disk

    @property
    def _temporary(self) -> Path:
        return self.path.with_name(self.path.name + ".tmp")

    def _worth_it(self, training: LocalTraining, because: Because) -> bool:
        since_s = training.seconds - self._kept_s
        if because in ("waiting", "pausing"):
            # However short the work was, nobody knows how long the wait will be.
            return since_s > 0
        if because == "stopping":
            return since_s >= self.every_s / 10
        interval_s = max(self.every_s, training.state_bytes / MOST_BYTES_PER_S)
        left_s = training.seconds / max(1, training.done) * (training.total_steps - training.done)
        # What is nearly done costs no more to do again than a checkpoint is there to save.
        return since_s >= interval_s <= left_s

    def _room(self, size: int) -> bool:
        """Whether the limit holds the checkpoint, the one before it, which goes only then, and the update."""
        return self.blobs.used_bytes() + size + self._most_update() <= self.blobs.limit_bytes

    def _most_update(self) -> int:
        """The bytes that the update may have."""
        if self.task.chances is not None:
            return ballot_bytes(self.task.chances.size)
        layout = layout_of(self.bench.manifest, self.bench.variant)
        spec = parse_codec(self.task.codec)
        return max_update_bytes(layout.n_parameters, layout.n_buffers, spec, self.shared, layout.shapes)

    def _identity(self) -> Run:
        """Made when it is first needed: the data are hashed for it."""
        if self._run is None:
            task, bench = self.task, self.bench
            run = run_of(self.bundle, bench.variant, bench.choice.engine.name, bench.dataset, self.recipe)
            self._run = Run(
                {
                    **run.facts,
                    "task": task.name,
                    "steps": task.local_steps,
                    "model": task.model.digest.hex(),
                    "layout": layout_of(bench.manifest, bench.variant).digest.hex(),
                    "channels": (task.channels or b"").hex(),
                    "mask": "" if task.mask is None else task.mask.digest.hex(),
                    "threads": self.threads,
                    "runtime": runtime_name(),
                }
            )
        return self._run


def is_begun(blobs: BlobStore, task: Task) -> bool:
    """Whether work done on a task may be on this disk."""
    return exists(blobs.disk, blobs.path(task.model.digest).with_suffix(_SUFFIX))


def clear(blobs: BlobStore) -> None:
    """Removes every checkpoint, as of an agent that was killed between a task's end and its checkpoint's."""
    for name in blobs.disk.names(blobs.root):
        if name.endswith(_SUFFIX):
            blobs.disk.remove(blobs.root / name)
    release(blobs.root, blobs.disk)
