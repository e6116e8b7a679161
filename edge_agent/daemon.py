"""The agent as a process: the one place that reads the clock, signals and the network."""

import logging
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path
from types import FrameType

import numpy as np

from edge_agent import settings as agent_settings
from edge_agent.agent import Agent
from edge_agent.child import ChildTrainer
from edge_agent.child_process import launcher
from edge_agent.doubts import say_doubts
from edge_agent.greeting import agent_version
from edge_agent.identity import Identity, credentials, load_identity
from edge_agent.link import last_will
from edge_agent.memory import available_mib
from edge_agent.renewal import Renewal, renew_command
from edge_agent.settings import AgentSettings
from edge_agent.status import Status, StatusKeeper
from edge_agent.store import FILE, LOST, AgentStore
from edge_agent.trusted import Trusted
from protocol.database import damage_named, is_damage
from protocol.disk import REMEDY, disk_named, is_disk_trouble
from protocol.errors import ConfigurationError, DamagedError
from protocol.failpoints import install_from
from protocol.mqtt import MqttSettings, MqttTransport, parse_url
from protocol.notify import Notifier
from protocol.restraint import Restraint
from protocol.topics import Topics
from protocol.transport import Transport

log = logging.getLogger("edge-agent")

# No wait is longer, so that a clock that jumps or a timer that was missed costs at most this.
LONGEST_WAIT_S = 60.0
# How long an operator who asks for what waits to be offered is not seen. Without updates nobody asks.
RETRY_SEEN_S = 5.0
# After a fault of our own the loop goes on, but never as a busy loop of tracebacks.
PAUSE_AFTER_FAULT_S = 1.0


class _Stop(BaseException):
    """Ends a wait early when a signal asks the agent to stop."""


class _Signals:
    """Turns SIGINT and SIGTERM into an orderly end: at once while waiting, otherwise after the work in hand."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.waiting = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take)

    def received(self) -> bool:
        return self.number is not None

    def _take(self, number: int, _: FrameType | None) -> None:
        self.number = number
        if self.waiting:
            self.waiting = False
            raise _Stop


def run(config: Path, backend: str | None = None) -> int:
    """Runs the agent until it is told to stop. backend: in place of the configuration's. Raises ConfigurationError when
    it cannot start."""
    install_from(os.environ)
    settings = agent_settings.load(config, backend)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    signals, notifier = _Signals(), Notifier(os.environ)
    folder = agent_settings.state_folder(settings, config)
    with damage_named(folder / FILE, LOST):
        return _run(settings, config, folder, signals, notifier)


def _run(settings: AgentSettings, config: Path, folder: Path, signals: _Signals, notifier: Notifier) -> int:
    rng = np.random.default_rng()
    address = parse_url(settings.broker.url)
    identity = _identity(settings, folder) if address.tls else None
    if address.exposed:
        log.warning('broker.plain = "trusted-network": %s is not encrypted, and nobody is who they say', address.url)
    say_doubts(settings, config.parent, identity, time.time())
    with disk_named(folder):
        store = AgentStore(folder, settings.limits.disk_mib << 20)
    topics = Topics(settings.fleet)
    trusted = None if identity is None else Trusted(folder, settings.fleet, store, time.time)
    log.info(
        "start device=%s fleet=%s boot=%d outbox=%d", settings.device, settings.fleet, store.boot, len(store.outbox())
    )
    transport = MqttTransport(
        MqttSettings(
            address,
            client_id=f"{settings.fleet}-{settings.device}",
            keepalive_s=settings.broker.keepalive_s,
            longest_retry_s=settings.broker.longest_retry_s,
            credentials=None if identity is None else credentials(folder),
            dispensable=topics.of_gossip(settings.device),
        ),
        (*topics.of_agent(settings.device), *topics.of_gossip(settings.device)),
        lambda: last_will(topics, settings.device, store.boot, trusted),
        rng=rng,
    )
    # Once: what the agent takes itself while it trains must not count against it.
    memory_mib = available_mib(settings.limits.memory_mib)
    launch = launcher(settings, config.parent, folder, transport.wake)
    child = None if settings.training.process == "same" else lambda assets: ChildTrainer(assets, launch)
    agent = Agent(settings, config.parent, store, transport, rng, memory_mib, trainer=child, trusted=trusted)
    renewal = None if identity is None else Renewal(identity, folder, rng, renew_command(config))
    status = StatusKeeper(folder, _first(settings, store.boot))
    try:
        _loop(agent, transport, signals, renewal, notifier, status)
    finally:
        notifier.stopping()
        if renewal is not None:
            renewal.close()
        agent.stop()
        transport.close()
        status.end(time.time(), time.monotonic())
        store.close()
    log.info("stop")
    return 130 if signals.number == signal.SIGINT else 0


def _identity(settings: AgentSettings, state: Path) -> Identity:
    """Who this device is, which must be who its configuration says. Raises NotEnrolledError."""
    identity = load_identity(state)
    if (identity.device, identity.fleet) != (settings.device, settings.fleet):
        raise ConfigurationError(
            f"device: this is {settings.device!r} of fleet {settings.fleet!r}, and the identity in {state} is of "
            f"{identity.device!r} of fleet {identity.fleet!r}; set both names to those, or enrol again"
        )
    return identity


def _first(settings: AgentSettings, boot: int) -> Status:
    names, broker = (settings.device, settings.fleet), parse_url(settings.broker.url).url
    return Status(0, boot, agent_version(), *names, broker, started_s=time.time())


def _loop(
    agent: Agent,
    transport: Transport,
    signals: _Signals,
    renewal: Renewal | None = None,
    notifier: Notifier | None = None,
    status: StatusKeeper | None = None,
) -> None:
    restraint, notifier = Restraint(), notifier or Notifier({})
    notifier.ready()
    while not signals.received():
        try:
            if renewal is not None:
                renewal.check(time.time(), time.monotonic())
            wait = min(agent.advance(time.monotonic()), LONGEST_WAIT_S if renewal is None else renewal.wait_s)
            # Here alone: a turn that broke is no progress. Of a child that trains, the agent itself sees whether it is.
            notifier.alive()
            notifier.status(agent.status)
            if status is not None:
                if status.asked_to_retry():
                    agent.offer_now(time.monotonic())
                status.note(agent.standing(), time.time(), time.monotonic())
                wait = min(wait, status.wait_s(time.monotonic()), RETRY_SEEN_S if agent.offers else LONGEST_WAIT_S)
            signals.waiting = wait > 0
            event = None if signals.received() else transport.poll(min(wait, LONGEST_WAIT_S, notifier.wait_s))
            signals.waiting = False
            if event is not None:
                agent.handle(event, time.monotonic())
        except _Stop:
            break
        except DamagedError:
            raise
        except Exception as error:
            signals.waiting = False
            if is_damage(error):
                raise
            disk = is_disk_trouble(error)
            if restraint.unsaid(disk, time.monotonic()) is None:
                log.debug("another fault of the same kind: %s", error)
            elif disk:
                log.error("the disk failed us: %s; %s; the task in hand is given back", error, REMEDY)
            else:
                log.exception("internal fault; the task in hand is given back")
            give_back(agent, error)
            time.sleep(PAUSE_AFTER_FAULT_S)


def give_back(agent: Agent, fault: Exception) -> None:
    """Ends the task in hand after a fault, if the disk lets it be written down."""
    try:
        agent.fail("disk" if is_disk_trouble(fault) else "internal", f"{type(fault).__name__}: {fault}")
    except (OSError, sqlite3.Error) as error:
        # A disk that takes nothing cannot take this either; the task stays in hand and is tried again.
        log.debug("the task could not be given back: %s", error)
