"""Who watches a simulated run from outside and says what is wrong with it.

It believes what is on the wire and on the disks, and works out again what must follow: folds, models and residuals. It
shares no code with the coordinator's fold or the agent's packing, but for the codec's decoder and local training.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from coordinator.events import Event, RoundCommitted
from coordinator.store import Store
from edge_agent.data import load
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model
from edge_agent.store import AgentStore
from edge_agent.training import LocalTraining, Recipe
from protocol.envelope import Envelope, decode
from protocol.layout import Layout, layout_of
from protocol.messages import Offer, Receipt, Task
from protocol.records import write_record
from protocol.topics import Topics
from sparse.codecs import decode_update, parse_codec
from tests.simulator.faults import COORDINATOR, Schedule, device_names
from tests.simulator.fleet import (
    COORDINATOR_LIMIT_MIB,
    DEVICE_LIMIT_BYTES,
    FLEET,
    device_settings,
    material,
)
from tests.simulator.host import STATE, Host

# Of the server's settings, where they say nothing else.
MOMENTUM = 0.9

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Accepted:
    """A row of the coordinator's updates. fold: the version that took it; None while it waits. discarded: why it will
    be in none."""

    round: int
    device: str
    boot: int
    sequence: int
    digest: bytes
    weight: int
    codec: str
    fold: int | None
    discarded: str | None


@dataclass(slots=True)
class Verdict:
    """wrong: sentences. lost: receipted updates that are neither folded nor discarded. doubled: folded twice."""

    wrong: list[str]
    receipted: int
    lost: int
    doubled: int
    bit_identical: bool


@dataclass(slots=True)
class Oracle:
    """What was heard and seen so far."""

    schedule: Schedule
    hosts: Mapping[str, Host]
    wrong: list[str] = field(default_factory=list)
    offers: dict[tuple[str, int, int], bytes] = field(default_factory=dict)
    payloads: dict[bytes, bytes] = field(default_factory=dict)
    tasks: dict[tuple[str, str], Task] = field(default_factory=dict)
    models: dict[bytes, bytes] = field(default_factory=dict)
    receipts: dict[tuple[str, str], bytes] = field(default_factory=dict)
    versions: dict[int, bytes] = field(default_factory=dict)
    committed: int = 0

    # What is heard

    def heard(self, client: str, topic: str, payload: bytes) -> None:
        """A message that a client sends, whether it arrives or not."""
        parsed = Topics(FLEET).parse(topic)
        said = decode(payload) if parsed is not None and parsed.channel in ("up", "down") else None
        if parsed is None or not isinstance(said, Envelope):
            return
        match said.body:
            case Offer():
                self._offered(parsed.device, said.body)
            case Task():
                self._told(parsed.device, said.body)
            case Receipt(digest, task, "accepted"):
                self._receipted(parsed.device, task, digest)
            case _:
                pass

    def said(self, event: Event) -> None:
        if isinstance(event, RoundCommitted):
            self._check(event.round == self.committed + 1, f"round {event.round} ends after round {self.committed}")
            self.committed = event.round

    def coordinator_started(self, store: Store) -> None:
        """Whatever it said before, it must still know."""
        current = store.current()
        number = 0 if current is None else current.version
        self._check(number >= self.committed, f"version {self.committed} was announced, and {number} is the newest")
        # A round may have been committed by a process that did not live to say so.
        self.committed = max(self.committed, number)
        for version, digest in _versions(store):
            before = self.versions.setdefault(version, digest)
            self._check(before == digest, f"version {version} is another one than it was")
        known = {(row.device, row.digest) for row in read_accepted(store)}
        for (device, task), digest in self.receipts.items():
            self._check((device, digest) in known, f"the receipted update of {device} for {task} is gone")

    def _offered(self, device: str, offer: Offer) -> None:
        name = (device, offer.update_boot, offer.update_sequence)
        digest = self.offers.setdefault(name, offer.blob.digest)
        self._check(digest == offer.blob.digest, f"two updates are called {name}")
        if digest not in self.payloads:
            file = self.hosts[device].platter.find(STATE / "blobs" / digest.hex())
            if file is not None and hashlib.sha256(file.data).digest() == digest:
                self.payloads[digest] = bytes(file.data)

    def _told(self, device: str, task: Task) -> None:
        # Who was asked in time may be late; nobody is asked anew.
        known = (device, task.name) in self.tasks
        self._check(known or task.round > self.committed, f"round {task.round} is over, and {device} is asked for it")
        self.tasks[device, task.name] = task
        if task.model.digest not in self.models:
            file = self.hosts[COORDINATOR].platter.find(STATE / "models" / task.model.digest.hex())
            if file is not None:
                self.models[task.model.digest] = bytes(file.data)

    def _receipted(self, device: str, task: str, digest: bytes) -> None:
        before = self.receipts.setdefault((device, task), digest)
        self._check(before == digest, f"two updates of {device} for {task} were accepted")

    # What must be

    def judge(self, *, finished: bool) -> Verdict:
        """At the end of a run. finished: whether everything came to its end, so that all of it can be judged."""
        store = self._store()
        if store is None:
            if self.hosts[COORDINATOR].damage is None:
                self.wrong.append("there is no coordinator at the end")
            return Verdict(self.wrong, len(self.receipts), 0, 0, not self.wrong)
        rows = read_accepted(store)
        lost, doubled = self._check_fates(store, rows, finished)
        identical = self._check_models(store, rows)
        if finished:
            for device in device_names(self.schedule.devices):
                self._check_device(device, store.run, [row for row in rows if row.device == device])
        self._check_limits()
        return Verdict(self.wrong, len(self.receipts), lost, doubled, identical)

    def _store(self) -> Store | None:
        process = self.hosts[COORDINATOR].process
        return process.store if process is not None and isinstance(process.store, Store) else None

    def _check_fates(self, store: Store, rows: list[Accepted], finished: bool) -> tuple[int, int]:
        """Every receipted update is in one fold or was discarded with a reason; returns the lost and the doubled."""
        fates: dict[tuple[str, bytes, str], list[Accepted]] = defaultdict(list)
        for row in rows:
            fates[row.device, row.digest, self._task_name(store, row)].append(row)
        lost = doubled = 0
        for (device, task), digest in self.receipts.items():
            found = fates.get((device, digest, task), [])
            settled = [row for row in found if (row.fold is None) != (row.discarded is None)]
            waits = [row for row in found if row.fold is None and row.discarded is None]
            if len(settled) + (0 if finished else len(waits)) == 0:
                lost += 1
                self.wrong.append(f"the update of {device} for {task} was receipted, and is in no fold")
            if len(settled) > 1:
                doubled += 1
                self.wrong.append(f"the update of {device} for {task} is in {len(settled)} folds")
        names = [(row.device, row.boot, row.sequence) for row in rows]
        self._check(len(set(names)) == len(names), "an update was accepted twice")
        return lost, doubled

    def _task_name(self, store: Store, row: Accepted) -> str:
        return f"{store.run}/{row.round}"

    def _check_models(self, store: Store, rows: list[Accepted]) -> bool:
        """Refolds every version from the payloads that devices offered, in the order of rounds and devices."""
        bundle = material(self.schedule.large).bundle
        manifest, model = bundle.manifest, initial_model(bundle)
        layout = layout_of(manifest, "full")
        momentum, identical = np.zeros(manifest.parameters, np.float32), True
        for number, digest in _versions(store):
            taken = [row for row in rows if row.fold == number]
            if number > 0:
                total, weights = np.zeros(manifest.parameters), 0
                for row in taken:
                    decoded = self._decoded(row, layout)
                    # A task of round n starts from version n - 1; the step from there on is as much smaller.
                    late = (1.0 + (number - row.round)) ** -self.schedule.staleness
                    total += float(row.weight) * late * decoded.astype(np.float64)
                    weights += row.weight
                step = total / weights
                if self.schedule.momentum:
                    step = MOMENTUM * momentum.astype(np.float64) + step
                    momentum = step.astype(np.float32)
                model = (model.astype(np.float64) + step).astype(np.float32)
            if hashlib.sha256(model.astype("<f4").tobytes()).digest() != digest:
                identical = False
                self.wrong.append(f"version {number} is not the fold of {[row.device for row in taken]}")
        return identical

    def _decoded(self, row: Accepted, layout: Layout) -> Vector:
        payload, spec = self.payloads[row.digest], parse_codec(row.codec)
        decoded, _ = decode_update(payload, layout.n_parameters, 0, layout.digest, spec, None, layout.shapes)
        return decoded

    def _check_device(self, device: str, run: str, rows: list[Accepted]) -> None:
        """The residual is what the accepted updates left unsent, bit for bit."""
        process = self.hosts[device].process
        assert process is not None
        assert isinstance(process.store, AgentStore)
        store = process.store
        counted = store.database.execute("SELECT coalesce(sum(count), 0) FROM settled WHERE verdict = 'accepted'")
        settled = int(counted.fetchone()[0])
        self._check(settled == len(rows), f"{device} counts {settled} accepted updates, the coordinator {len(rows)}")
        bundle = material(self.schedule.large).bundle
        layout = layout_of(bundle.manifest, "full")
        n = layout.n_parameters
        residual = np.zeros(n, np.float32)
        for row in sorted(rows, key=lambda row: (row.boot, row.sequence)):
            task = self.tasks.get((device, f"{run}/{row.round}"))
            if task is None:
                self.wrong.append(f"{device} was never asked for round {row.round} of run {run}")
                return
            corrected = self._delta(device, task)[:n] + residual
            residual = corrected - self._decoded(row, layout)
            if parse_codec(row.codec).unbiased and not _energy(residual) <= _energy(corrected):
                residual = np.zeros(n, np.float32)
        kept = store.residual(layout.digest, n)
        self._check(kept.tobytes() == residual.tobytes(), f"the residual of {device} does not balance")

    def _delta(self, device: str, task: Task) -> Vector:
        """What the device must have trained: trained minus base model, float32[total]."""
        found = material(self.schedule.large)
        manifest = found.bundle.manifest
        base = np.frombuffer(self.models[task.model.digest], "<f4").astype(np.float32)
        recipe = Recipe(
            steps=task.local_steps,
            epochs=task.local_epochs,
            batch_size=task.batch_size,
            learning_rate=task.learning_rate,
            optimizer=OptimizerSettings(**write_record(task.optimizer)),
            seed=task.seed,
        )
        data = load(device_settings(device, self.schedule).data, manifest)
        training = LocalTraining(NumpyEngine(found.bundle), manifest, data, recipe, base)
        while not training.finished:
            training.step()
        delta: Vector = training.result().model - base
        return delta

    def _check_limits(self) -> None:
        half = COORDINATOR_LIMIT_MIB * (1 << 20) // 2
        for name, host in self.hosts.items():
            folders = {"updates": half, "models": half} if name == COORDINATOR else {"blobs": DEVICE_LIMIT_BYTES}
            for folder, limit in folders.items():
                used = host.platter.used_bytes(STATE / folder)
                self._check(used <= limit, f"{name} holds {used} bytes in {folder}, the limit is {limit}")

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds and otherwise not in self.wrong:
            self.wrong.append(otherwise)


def read_accepted(store: Store) -> list[Accepted]:
    """The coordinator's updates, with their fates, in the order in which folds take them."""
    rows = store._sql.execute(
        "SELECT round, device, update_boot, update_sequence, digest, weight, codec, fold, discarded FROM updates "
        "ORDER BY round, device"
    )
    return [
        Accepted(n, device, boot, sequence, bytes(digest), weight, codec, fold, discarded)
        for n, device, boot, sequence, digest, weight, codec, fold, discarded in rows
    ]


def _versions(store: Store) -> list[tuple[int, bytes]]:
    found: Any = store._sql.execute("SELECT version, digest FROM models ORDER BY version")
    return [(int(number), bytes(digest)) for number, digest in found]


def _energy(vector: Vector) -> float:
    return float(np.square(vector, dtype=np.float64).sum())
