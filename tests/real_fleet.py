"""A fleet of real processes for tests: one coordinator and agents by their command lines, on the tiny bundle."""

import json
import os
import re
import signal
import sqlite3
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from devices.processes import Child, start, stop
from protocol.failpoints import VARIABLE
from protocol.mqtt import free_port
from tests.tiny import FEATURES, write_bundle, write_shard
from tests.waiting import until

ROOT = Path(__file__).parent.parent

Event = Mapping[str, Any]


@dataclass
class RealFleet:
    """Processes of one fleet in one folder. `events` are what the coordinator printed, over all its lives.

    broker: of the coordinator's settings. With a URL, and its `port`, the broker is somebody else's and stays as it is.
    """

    folder: Path
    broker: str
    rounds: int
    devices: int = 3
    training: str = 'local_steps = 5\ncodec = "topk:0.5/float32/bitmap"'
    deadline_s: float = 20.0
    # More lines of [rounds].
    rounding: str = ""
    # The model's inputs: with 80000 it is 10 chunks of 64 KiB, and so is an update that holds all of it.
    features: int = FEATURES
    make_bundle: Callable[..., object] = write_bundle
    make_shard: Callable[..., object] = write_shard
    port: int = field(default_factory=free_port)
    agents: dict[str, Child] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)
    coordinator: Child | None = None
    # A command that every process is started by, such as strace's.
    wrapped: tuple[str, ...] = ()
    # One for each, because a broker may have several.
    name: str = field(default_factory=lambda: f"test-{uuid.uuid4().hex[:12]}")
    # With identities, over mTLS; else plain, on this machine.
    enrols: bool = False
    certificate_days: float = 30.0
    # Sources of another version, by package; this tree's otherwise.
    trees: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sized = {} if self.features == FEATURES else {"features": self.features}
        self.make_bundle(self.folder / "bundle", **sized)
        self.make_shard(self.folder / "test.npz", seed=99, **sized)
        (self.folder / "coordinator.toml").write_text(
            f"""
fleet = "{self.name}"
state = "coordinator"
bundle = "bundle"
[broker]
url = "{self.broker}"
port = {self.port}
plain = "{"no" if self.enrols else "loopback"}"
[trust]
port = 0
certificate_days = {self.certificate_days}
[rounds]
count = {self.rounds}
devices = {self.devices}
deadline_s = {self.deadline_s}
{self.rounding}
[training]
batch_size = 8
learning_rate = 0.1
{self.training}
[evaluation]
data = "test.npz"
[fold]
clip = "none"
[limits]
weight = 0.0
keep_rounds = 1000
"""
        )
        for index in range(self.devices):
            folder = self.folder / f"device-{index:02d}"
            folder.mkdir()
            self.make_shard(folder / "shard.npz", seed=index, examples=30 + index, **sized)
            (folder / "agent.toml").write_text(
                f"""
device = "device-{index:02d}"
fleet = "{self.name}"
state = "state"
[broker]
url = "{"mqtts" if self.enrols else "mqtt"}://127.0.0.1:{self.port}"
longest_retry_s = 1.0
keepalive_s = 5
[data]
path = "shard.npz"
[training]
checkpoint_s = 0.01
"""
            )

    def start(self) -> None:
        self.start_coordinator()
        for index in range(self.devices):
            if self.enrols:
                self.enrol(f"device-{index:02d}")
            self.start_agent(f"device-{index:02d}")

    def token(self, *options: str) -> str:
        """A token, as the operator gets it."""
        (found,) = self.ask("token", *options)["tokens"]
        return str(found)

    def enrol(self, device: str, token: str | None = None) -> Child:
        """Runs `edge-agent enroll` to its end, well or not."""
        self.until(lambda: any(event["event"] == "listening" for event in self.events))
        (port, *_) = (event["enrolment"] for event in reversed(self.events) if event["event"] == "listening")
        secret = self.folder / device / "token"
        secret.write_text(token or self.token())
        config = str(self.folder / device / "agent.toml")
        command = ("enroll", "--url", f"127.0.0.1:{port}", "--token-file", str(secret), "--config", config)
        child = self._start(f"enrol-{device}", "edge_agent", *command)
        child.process.wait(30)
        secret.unlink()
        return child

    def start_coordinator(self, *, exit_when_finished: bool = True, failpoint: str | None = None) -> None:
        """failpoint: as `SPARSEFLEET_FAILPOINT` says it, the durable step at which the process kills itself."""
        config = str(self.folder / "coordinator.toml")
        command = ("run", "--config", config, "--json", *(["--exit-when-finished"] if exit_when_finished else []))
        # Its private broker is its child: told to end, it ends that too.
        self.coordinator = self._start(
            "coordinator", "coordinator", *command, orphaned=signal.SIGTERM, failpoint=failpoint
        )

    def start_agent(self, device: str, *, failpoint: str | None = None) -> None:
        """failpoint: as of `start_coordinator`."""
        config = str(self.folder / device / "agent.toml")
        self.agents[device] = self._start(device, "edge_agent", "run", "--config", config, failpoint=failpoint)

    def connect_through(self, device: str, port: int) -> None:
        """Has an agent that is not started yet go to another port than the broker's, such as a proxy's."""
        config = self.folder / device / "agent.toml"
        config.write_text(config.read_text().replace(f"127.0.0.1:{self.port}", f"127.0.0.1:{port}"))

    def end_after(self, more: int) -> None:
        """Kills the coordinator, and starts it again with so many rounds to go."""
        assert self.coordinator is not None
        self.kill(self.coordinator)
        count = self.version() + more
        config = self.folder / "coordinator.toml"
        config.write_text(re.sub(r"(?m)^count = .*$", f"count = {count}", config.read_text()))
        self.start_coordinator()

    def version(self) -> int:
        """The newest committed version, from the store."""
        found = self._rows("coordinator", "SELECT max(version) FROM models")
        return int(found or 0)

    def settle(self) -> None:
        """Has every device end what it still has, by one more start of the coordinator if need be."""
        # The last goodbye may have been too quick for the last receipt.
        if any(self.pending(device) for device in self.agents):
            self.start_coordinator(exit_when_finished=False)
        self.until(lambda: not any(self.pending(device) for device in self.agents))
        self.stop()

    def pending(self, device: str) -> bool:
        """Whether a device still has an update to settle or a task to end."""
        return bool(self._rows(device, "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM task)"))

    def _rows(self, part: str, question: str) -> Any:
        path = "coordinator/coordinator.sqlite" if part == "coordinator" else f"{part}/state/agent.sqlite"
        store = sqlite3.connect(f"file:{self.folder / path}?mode=ro", uri=True)
        try:
            return store.execute(question).fetchone()[0]
        finally:
            store.close()

    def start_agent_elsewhere(self, device: str, command: Sequence[str]) -> None:
        """An agent by a command of the caller's, which runs it with the settings in its device's folder."""
        self.agents[device] = self._launch(device, command)

    def kill(self, child: Child) -> None:
        """SIGKILL, as a power cut of one process."""
        child.process.kill()
        child.process.wait()

    def stop(self) -> None:
        stop(self.children)

    @property
    def events(self) -> list[Event]:
        log = self.folder / "logs" / "coordinator.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line) for line in lines if line.startswith('{"event"')]

    def committed(self) -> list[int]:
        return [event["round"] for event in self.events if event["event"] == "round-committed"]

    def until(self, reached: Callable[[], object]) -> None:
        """Waits for a condition; fails with the logs when it does not come."""
        try:
            until(reached)
        except AssertionError as error:
            logs = [f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted((self.folder / "logs").iterdir())]
            raise AssertionError(f"{error}\n" + "\n".join(logs)) from None

    def finish(self) -> None:
        """Waits for the coordinator to say that all rounds are done, and to end well."""
        self.until(lambda: any(event["event"] == "finished" for event in self.events))
        assert self.coordinator is not None
        assert self.coordinator.process.wait(10) == 0

    def ask(self, *question: str) -> Any:
        """What one fleet-coordinator command prints as JSON."""
        child = self._start(
            "ask", "coordinator", *question, "--config", str(self.folder / "coordinator.toml"), "--json"
        )
        child.process.wait(30)
        text = child.log.read_text()
        child.log.unlink()
        assert child.exit_code == 0, text
        return json.loads(text)

    def _start(
        self,
        name: str,
        module: str,
        *arguments: str,
        orphaned: signal.Signals = signal.SIGKILL,
        failpoint: str | None = None,
    ) -> Child:
        command = (sys.executable, "-m", module, *arguments)
        return self._launch(name, command, orphaned, failpoint, self.trees.get(module, ROOT))

    def _launch(
        self,
        name: str,
        command: Sequence[str],
        orphaned: signal.Signals = signal.SIGKILL,
        failpoint: str | None = None,
        tree: Path = ROOT,
    ) -> Child:
        log = self.folder / "logs" / f"{name}.log"
        more = {VARIABLE: failpoint or ""}
        child = start(name, (*self.wrapped, *command), log, folder=tree, orphaned=orphaned, more=more)
        self.children.append(child)
        return child


def broker_pid(fleet: RealFleet) -> int | None:
    """The private broker: the coordinator's one child process."""
    assert fleet.coordinator is not None
    pid = fleet.coordinator.process.pid
    path = Path(f"/proc/{pid}/task/{pid}/children")
    found = path.read_text().split() if path.exists() else []
    return int(found[0]) if found else None


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def accuracy(rows: list[Event]) -> float:
    return float(np.max([row["accuracy"] for row in rows]))
