"""The training process: started by the agent, does what it is told over a socket, and never outlives it.

    python -m edge_agent.training_process SOCKET MEMORY PARENT

It knows the task and its files, and no credentials: it opens no connection.
"""

import logging
import os
import signal
import socket
import sqlite3
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_agent import child_wire as wire
from edge_agent import confinement
from edge_agent.assets import Assets
from edge_agent.differences import CatchUp
from edge_agent.masks import MaskShelf
from edge_agent.runtimes.backends import Selection
from edge_agent.same_process import SameProcess
from edge_agent.trainer import Broken, Died, Finished, Leg, News, Proven, Ready
from edge_agent.workshop import Workshop
from protocol.blobs import BlobStore
from protocol.disk import LOCAL, is_disk_trouble
from protocol.errors import SparsefleetError

log = logging.getLogger("edge-agent")

# Between two looks at the socket; a withdrawal waits no longer, or a step.
SLICE_S = 0.05
# How often the agent hears how far training is: each time wakes it.
REPORT_S = 10.0
# What reading data and opening graphs may take of a processor, and what the steps between two reports may: generous,
# and bounded. The agent's own watch (child.py) is on the clock.
PREPARE_CPU_S = 1800.0
STEP_CPU_S, STEP_CPU_TIMES = 300.0, 40
# Of what goes wrong so much is told, in a packet.
MAX_TEXT = 4000
# What the messages of onnxruntime, of Python and of the system say where an allocation failed.
_OUT_OF_MEMORY = ("bad_alloc", "Failed to allocate memory", "MemoryError", "Cannot allocate memory")


def main(arguments: list[str]) -> int:
    """Serves until the agent ends it, or ends itself."""
    descriptor, memory, parent = map(int, arguments)
    if not confinement.die_with(parent):
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):
        # They are sent to all of a terminal or a service at once; the agent says when to end, and what to keep.
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    with socket.socket(fileno=descriptor) as connection:
        start = wire.read_message(connection.recv(wire.MAX_BYTES))
        assert isinstance(start, wire.Start)
        confinement.stand_back(start.training.nice)
        confinement.confine(start.memory_mib, start.disk_mib)
        try:
            Server(start, connection, memory).serve()
        except (BrokenPipeError, ConnectionResetError):
            # The agent is gone; the kernel's signal is on its way.
            return 1
    return 0


class Server:
    """A `SameProcess` behind a socket."""

    def __init__(self, start: wire.Start, connection: socket.socket, memory: int) -> None:
        self._start, self._connection, self._memory = start, connection, memory
        state, training = Path(start.state), start.training
        workshop = Workshop(start.data, Path(start.base), state, training, personal=start.personal)
        self._trainer = SameProcess(workshop, self._assets(Selection("", "")), training)
        self._reported, self._bytes_kept = time.monotonic(), 0

    def serve(self) -> None:
        """Until End, or until the agent is gone."""
        facts = self._trainer.facts()
        self._say(wire.Awake(facts.runtime, dict(facts.refused)))
        while True:
            order = self._heard()
            if isinstance(order, wire.End):
                self._trainer.close()
                return
            if order is not None:
                self._obey(order)
            self._work()

    def _heard(self) -> wire.Order | wire.Answer | None:
        """The next order; None where there is none and steps are to be taken."""
        try:
            data = self._connection.recv(wire.MAX_BYTES, socket.MSG_DONTWAIT if self._trainer.busy else 0)
        except BlockingIOError:
            return None
        return wire.read_message(data) if data else wire.End()

    def _obey(self, order: wire.Order | wire.Answer) -> None:
        match order:
            case wire.Begin(task, backend, why, trial_steps):
                confinement.allow_cpu(PREPARE_CPU_S * self._start.training.threads)
                # The first steps are told of at once: by them the agent knows how long a step takes.
                self._reported, self._bytes_kept = float("-inf"), 0
                selected = Selection(backend, why)
                self._trainer.assets = self._assets(selected)
                self._trainer.begin(task, selected, trial_steps)
            case wire.Leg():
                self._set_out(order)
            case wire.Keep(because):
                self._trainer.keep(because)
                self._report()
            case wire.Drop():
                self._trainer.drop()
                self._say(wire.Dropped())
            case _:
                raise AssertionError(f"{type(order).__name__} is no order")

    def _set_out(self, said: wire.Leg) -> None:
        values = wire.taken(self._memory, said.values + said.momentum)
        assert values is not None, "a leg without its model"
        model, momentum = np.split(values, [said.values])
        confinement.allow_cpu(max(STEP_CPU_S, PREPARE_CPU_S) * self._start.training.threads)
        self._trainer.again(Leg(said.steps, said.seed, model, momentum if said.momentum else None))

    def _assets(self, selected: Selection) -> Assets:
        """The task's files, which the agent fetched. Counted anew for each task: the agent goes on filling the folder,
        and what it has half written is its own."""
        state = Path(self._start.state)
        blobs = BlobStore(state / "blobs", self._start.disk_mib << 20, LOCAL, sweep=False)
        catch_up = CatchUp(blobs, set)
        masks, variant = MaskShelf(state / "masks", LOCAL), self._start.training.variant
        deployable = self._start.personal.deployed
        return Assets(state / "bundles", blobs, masks, catch_up, variant, lambda *_: selected, deployable=deployable)

    def _work(self) -> None:
        """Steps for a moment, and says what came of them."""
        try:
            for news in self._trainer.work(SLICE_S):
                self._tell(news)
            progress, training = self._trainer.progress, self._trainer.training
            if progress is None or training is None or not self._trainer.busy:
                return
            due = training.done > 0 and time.monotonic() - self._reported >= REPORT_S
            if due or progress.bytes_written > self._bytes_kept:
                self._report()
        except SparsefleetError as error:
            self._give_up(getattr(error, "reason", "failed"), str(error))
        except MemoryError:
            self._give_up("memory", "memory")
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:
            disk = isinstance(error, OSError | sqlite3.Error) and is_disk_trouble(error)
            if not disk:
                log.exception("internal fault; the task in hand is given back")
            self._give_up("disk" if disk else "internal", f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str, detail: str) -> None:
        self._trainer.drop()
        if reason == "memory" or _ran_out_of_memory(detail):
            reason = "memory"
            detail = (
                f"training needs more memory than the limit of {self._start.memory_mib} MiB ({detail}); raise "
                "limits.memory_mib, or have this device train a smaller variant or batch"
            )
        self._say(Broken(reason, detail[:MAX_TEXT]))

    def _report(self) -> None:
        """How far training is; and from here on there is processor time for as much again, and more."""
        training, progress = self._trainer.training, self._trainer.progress
        if training is None or progress is None:
            return
        each_s = training.seconds / max(1, training.done)
        confinement.allow_cpu(max(STEP_CPU_S, STEP_CPU_TIMES * each_s) * self._start.training.threads)
        kept = progress.bytes_written > self._bytes_kept
        self._reported, self._bytes_kept = time.monotonic(), progress.bytes_written
        self._say(wire.Stepped(training.done, training.seconds, kept))

    def _tell(self, news: News) -> None:
        if isinstance(news, Finished):
            self._hand_over(news)
        elif isinstance(news, Ready | Proven):
            self._say(news)
        elif isinstance(news, Died):
            # Of this process, which its agent sees by itself.
            pass
        elif _ran_out_of_memory(news.detail):
            # Whoever met it, of the data or of a graph, took it for a fault of those.
            self._give_up("memory", news.detail)
        else:
            self._say(replace(news, detail=news.detail[:MAX_TEXT]))

    def _hand_over(self, news: Finished) -> None:
        """The result, in the memory file: it is there until the next one."""
        trained = news.trained
        none = np.zeros(0, np.float32)
        vectors = [trained.model, *(none if v is None else v for v in (trained.gradient, trained.momentum))]
        with os.fdopen(self._memory, "wb", closefd=False) as file:
            file.seek(0)
            for vector in vectors:
                file.write(vector.astype("<f4", copy=False).data)
        values, gradient, momentum = map(len, vectors)
        measured = trained.loss, trained.steps, trained.seconds, news.peak_mib
        self._say(wire.Trained(values, gradient, *measured, momentum, news.held_out, news.own))

    def _say(self, message: wire.Answer) -> None:
        self._connection.sendall(wire.pack_message(message))


def _ran_out_of_memory(detail: str) -> bool:
    return any(said in detail for said in _OUT_OF_MEMORY)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
