"""What goes on from one update to the next: what a task begins with, and the update that is made of it and kept.

A disk that is full is waited for, since the work is done.
"""

import logging
import sqlite3

from edge_agent import job as jobs
from edge_agent.assets import Assets
from edge_agent.momentum import carried, lay_out, settings_of, unpack_memory
from edge_agent.runtimes.engine import Vector
from edge_agent.store import AgentStore
from edge_agent.trainer import Finished, Ready
from edge_agent.update import Work, kept_under, pack
from protocol.disk import REMEDY, is_disk_trouble
from protocol.errors import DamagedError, SparsefleetError
from protocol.layout import layout_of, take
from protocol.messages import Task
from protocol.restraint import Restraint

log = logging.getLogger("edge-agent")

# A disk that was full is tried again so often, with a finished update in hand.
PACK_AGAIN_S = 10.0


class Packing:
    """at: when to try next. residual_rounds: after more missed ones an update begins without what earlier ones left."""

    def __init__(self, store: AgentStore, assets: Assets, residual_rounds: int) -> None:
        self._store, self._assets, self._residual_rounds = store, assets, residual_rounds
        self._restraint = Restraint()
        self.at = 0.0

    def lay_out(self, task: Task) -> None:
        """Puts what the task's optimiser begins with in the state folder. Raises ValueError of an unknown one."""
        if task.until is not None:
            # Without a hub it is carried from exchange to exchange (edge_agent/gossip/carry.py).
            settings_of(task.optimizer)
            return
        store, assets = self._store, self._assets
        n = layout_of(assets.manifest(task), assets.variant_of(task)).n_parameters
        lay_out(store.blobs.root.parent, task, n, lambda: self._momentum(task), store.blobs.disk)

    def _momentum(self, task: Task) -> Vector:
        assets, manifest = self._assets, self._assets.manifest(task)
        layout, shared = layout_of(manifest, assets.variant_of(task)), assets.shared(task, manifest)
        kept = self._store.momentum(kept_under(layout, task))
        memory = None if kept is None else unpack_memory(kept)
        if kept is not None and memory is None:
            log.error("momentum let go: it was altered on this disk since it was kept; check the disk")
        base, mask = take(assets.model(task, manifest), layout.parameters), None if shared is None else shared.mask
        return carried(memory, task, settings_of(task.optimizer), base, mask, self._residual_rounds)

    def pack(self, task: Task, ready: Ready, finished: Finished, now: float) -> jobs.Event | None:
        """What became of it: None where the disk has no room yet."""
        assets = self._assets
        try:
            manifest = assets.manifest(task)
            base, shared = assets.model(task, manifest), assets.shared(task, manifest)
            measured = finished.peak_mib, finished.held_out, finished.own
            work = Work(manifest, assets.variant_of(task), ready.examples, base, shared, *measured)
            offer = pack(self._store, task, work, finished.trained, self._residual_rounds)
        except (OSError, sqlite3.Error) as error:
            if not is_disk_trouble(error):
                raise
            self.at = now + PACK_AGAIN_S
            if self._restraint.unsaid("pack", now) is not None:
                log.error("update of task=%s cannot be kept yet: %s; %s", task.name, error, REMEDY)
            return None
        except DamagedError:
            raise
        except SparsefleetError as error:
            log.error("update of task=%s cannot be kept: %s", task.name, error)
            return jobs.Stopped("failed", getattr(error, "reason", "disk"), str(error))
        log.info("update kept task=%s loss=%.4f train_s=%.3f", offer.task, offer.loss, offer.train_s)
        return jobs.Packed()
