"""The coordinator as a process: the one place that reads the clock, signals, files of settings and the network."""

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np

from coordinator.broker import Broker
from coordinator.daemon import Coordinator
from coordinator.distiller import Distiller, open_distiller
from coordinator.evaluate import Examine, examiner, load_data
from coordinator.events import Emit, Listening
from coordinator.gate import Gate, open_gate
from coordinator.link import last_will
from coordinator.schema import DATABASE, LOST
from coordinator.settings import Settings
from coordinator.store import Store
from edge_agent.runtimes.backends import load_evaluator
from protocol.bundle import Bundle, open_bundle
from protocol.database import damage_named, is_damage
from protocol.disk import REMEDY, disk_named, is_disk_trouble
from protocol.errors import ConfigurationError, SparsefleetError
from protocol.failpoints import install_from
from protocol.mqtt import MqttSettings, MqttTransport, parse_url
from protocol.notify import Notifier
from protocol.restraint import Restraint
from protocol.topics import Topics
from protocol.transport import Transport

log = logging.getLogger("coordinator")

# No wait is longer, so that a signal is heeded and a broker that died is noticed within half a second.
LONGEST_WAIT_S = 0.5
# And so long what arrives may keep coming, before what came so far is committed and answered.
LONGEST_DRAIN_S = 0.05
# A fault of our own is logged and everything taken from the store again; this many in a row are no accident.
MAX_FAULTS = 5
PAUSE_AFTER_FAULT_S = 0.5
EVALUATION_THREADS = 1


class Signals:
    """Notes SIGINT and SIGTERM; the loop ends after the work in hand."""

    def __init__(self) -> None:
        self.received: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def _take(self, number: int, _: FrameType | None) -> None:
        self.received = number


def run(settings: Settings, emit: Emit, *, exit_when_finished: bool) -> int:
    """Runs the coordinator until it is told to stop. Raises ConfigurationError when it cannot start."""
    install_from(os.environ)
    signals, notifier = Signals(), Notifier(os.environ)
    bundle = open_bundle(Path(settings.bundle))
    examine, distiller = open_examination(settings, bundle), open_distiller(settings, bundle, notifier.alive)
    state = Path(settings.state)
    with disk_named(state), damage_named(state / DATABASE, LOST):
        try:
            return _run(settings, bundle, state, examine, distiller, emit, signals, notifier, exit_when_finished)
        finally:
            notifier.stopping()


def _run(
    settings: Settings,
    bundle: Bundle,
    state: Path,
    examine: Examine | None,
    distiller: Distiller | None,
    emit: Emit,
    signals: Signals,
    notifier: Notifier,
    exit_when_finished: bool,
) -> int:
    store = Store(state, settings.limits)
    try:
        store.belongs_to(bundle.digest, settings.bundle, settings.fleet)
        with open_gate(settings, state / "broker") as gate:
            if gate.seals is not None:
                gate.seals.take_bundle(bundle)
            emit(Listening(gate.broker.description, gate.broker.url, store.run, gate.enrolment_port))
            _serve(settings, bundle, store, gate, examine, distiller, emit, signals, notifier, exit_when_finished)
    finally:
        store.close()
    log.info("stop")
    return 130 if signals.received == signal.SIGINT else 0


def open_examination(settings: Settings, bundle: Bundle) -> Examine | None:
    """How models are tried on held-out data, if there is any. Raises DataError or ConfigurationError."""
    if settings.evaluation.data is None:
        return None
    metrics = bundle.manifest.metrics
    if settings.rounds.target_accuracy is not None and not {"accuracy", "binary_accuracy"} & set(metrics):
        raise ConfigurationError(
            f"rounds.target_accuracy: this bundle's metrics are {', '.join(metrics) or 'none'}; leave it out, or "
            "export the model with an accuracy"
        )
    data = load_data(Path(settings.evaluation.data), bundle.manifest)
    return examiner(load_evaluator(bundle, EVALUATION_THREADS), data, settings.evaluation.batch_size)


def _serve(
    settings: Settings,
    bundle: Bundle,
    store: Store,
    gate: Gate,
    examine: Examine | None,
    distiller: Distiller | None,
    emit: Emit,
    signals: Signals,
    notifier: Notifier,
    exit_when_finished: bool,
) -> None:
    topics = Topics(settings.fleet)
    # Each start has a name of its own, so that one that runs on a copy of this state folder is heard, not thrown out.
    client = f"{settings.fleet}-coordinator-{store.run}-{store.instance:x}"
    transport = MqttTransport(
        MqttSettings(
            parse_url(gate.broker.url),
            client_id=client,
            longest_retry_s=5.0,
            credentials=gate.credentials,
        ),
        topics.of_coordinator(),
        lambda: last_will(topics, store.run, store.epoch, store.instance, gate.seals),
        rng=np.random.default_rng(),
    )
    try:
        coordinator = Coordinator(
            *(settings, bundle, store, transport, time.monotonic, emit, examine),
            admit=gate.admit,
            seals=gate.seals,
            distiller=distiller,
            allow=gate.broker.allow,
        )
        _loop(coordinator, transport, gate, signals, exit_when_finished, notifier)
        coordinator.stop()
    finally:
        transport.close()


def _loop(
    coordinator: Coordinator,
    transport: Transport,
    gate: Gate | Broker,
    signals: Signals,
    exit_when_finished: bool,
    notifier: Notifier | None = None,
) -> None:
    notifier = notifier or Notifier({})
    notifier.ready()
    faults, recovering = 0, False
    restraint = Restraint()

    def went_well() -> None:
        nonlocal faults
        faults = 0

    while signals.received is None and not (coordinator.finished and exit_when_finished):
        try:
            if recovering:
                coordinator.recover(time.monotonic())
                recovering = False
            gate.check(time.monotonic())
            take_turn(coordinator, transport, time.monotonic, min(LONGEST_WAIT_S, notifier.wait_s), went_well)
            went_well()
            # A turn that broke is no progress.
            notifier.alive()
        except ConfigurationError:
            raise
        except Exception as error:
            if is_damage(error):
                raise
            disk = is_disk_trouble(error)
            # A disk that is full is waited for: everything accepted is on it, and it is not ours to give up.
            faults = 0 if disk else faults + 1
            _log_fault(error, faults, restraint, disk=disk)
            if faults >= MAX_FAULTS:
                raise SparsefleetError(f"{faults} faults in a row, the last: {error}") from error
            time.sleep(PAUSE_AFTER_FAULT_S)
            recovering = True


def take_turn(
    coordinator: Coordinator,
    transport: Transport,
    clock: Callable[[], float],
    longest_wait_s: float,
    went_well: Callable[[], None],
) -> float:
    """Does what is due, and takes in all that has arrived, so that one commit of the next turn makes all of it durable.
    Says in how many seconds something will be due; 0 where something arrived. went_well: told after each event."""
    wait_s = coordinator.advance(clock())
    event = transport.poll(min(wait_s, longest_wait_s))
    if event is None:
        return wait_s
    enough = clock() + LONGEST_DRAIN_S
    while event is not None:
        now = clock()
        coordinator.handle(event, now)
        went_well()
        event = transport.poll(0.0) if now < enough else None
    return 0.0


def _log_fault(fault: Exception, number: int, restraint: Restraint, *, disk: bool) -> None:
    if restraint.unsaid(disk, time.monotonic()) is None:
        return
    if disk:
        log.error("the disk failed us: %s; %s; trying again until it works", fault, REMEDY)
    else:
        log.exception("internal fault %d; going on from the store", number, exc_info=fault)
