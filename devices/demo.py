"""One command, a whole fleet: data and bundle, a broker, a coordinator and agents as processes, a report."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

import numpy as np
from rich.console import Console

from devices.datasets import PROJECT_ROOT, load_dataset
from devices.facts import (
    DeviceFacts,
    Evaluation,
    Finished,
    Listening,
    RoundCommitted,
    parse_devices,
    parse_evaluation,
    parse_event,
    parse_tokens,
)
from devices.links import PROFILES, named_profile
from devices.live import Screen
from devices.partition import split, write_shards
from devices.presets import CODEC, PRESETS, WHOLE
from devices.processes import Child, PartFailedError, output_lines, start, stop, wait
from devices.report import Report, render_report
from devices.workspace import (
    BUNDLE,
    MODEL,
    REPORT,
    Plan,
    agent_config,
    ensure_bundle,
    own_folder,
    write_agents,
    write_settings,
)
from protocol.bundle import open_bundle
from protocol.errors import ConfigurationError
from protocol.mqtt import free_port
from protocol.private_files import write_private

FLEET = "demo"
# What every device here runs; without the training runtime's artifacts the export takes half as long.
EXPORTED = ("--backends", "portable")
# The same split every time, so that two runs differ in nothing but the options.
_SPLIT_SEED = 5
# A round is given up after a minute; a fleet that is silent for longer than a few is stuck.
_STALL_S = 180.0


@dataclass(frozen=True, slots=True)
class Parts:
    """The commands the demo starts."""

    export: tuple[str, ...] = (sys.executable, "-m", "export")
    coordinator: tuple[str, ...] = (sys.executable, "-m", "coordinator")
    proxy: tuple[str, ...] = (sys.executable, "-m", "devices", "proxy")
    agent: tuple[str, ...] = (sys.executable, "-m", "edge_agent")


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chose; None is the data set's preset."""

    data: str = "digits"
    agents: int = 5
    rounds: int | None = None
    target_accuracy: float | None = None
    codec: str = CODEC
    downlink: str = WHOLE
    link: str | None = None
    out: Path = Path("demo")

    def __post_init__(self) -> None:
        if self.data not in PRESETS:
            raise ConfigurationError(f"data: {self.data!r} is unknown; known: {', '.join(PRESETS)}")
        if self.link is not None:
            named_profile(self.link)
        if not 1 <= self.agents <= 64:
            raise ConfigurationError(f"agents: {self.agents} is outside 1..64 processes on one machine")
        if self.rounds is not None and not 1 <= self.rounds <= 10_000:
            raise ConfigurationError(f"rounds: {self.rounds} is outside 1..10000")
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 1:
            raise ConfigurationError(f"target-accuracy: {self.target_accuracy} is outside 0..1; 0.95 means 95 %")


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: what was chosen, and the list of processes started so far."""

    folder: Path
    plan: Plan
    parts: Parts
    screen: Screen
    children: list[Child] = field(default_factory=list)

    @property
    def config(self) -> str:
        return str(self.folder / "coordinator.toml")

    def start(self, name: str, *command: str, pipe: bool = False, orphaned: Signals = SIGKILL) -> Child:
        log = self.folder / "logs" / f"{name}.log"
        child = start(name, command, log, folder=PROJECT_ROOT, pipe=pipe, orphaned=orphaned)
        self.children.append(child)
        return child

    def begin_to_ask(self, *question: str) -> Child:
        """Starts one command of the coordinator."""
        return self.start(question[0], *self.parts.coordinator, *question, "--config", self.config, "--json", pipe=True)

    def answer(self, asked: Child) -> bytes:
        """What a command that was started prints."""
        return b"\n".join(output_lines(asked, (), self.screen.tick, _STALL_S))

    def ask(self, *question: str) -> bytes:
        """What one command of the coordinator prints."""
        return self.answer(self.begin_to_ask(*question))


def run_demo(options: Options, console: Console, parts: Parts | None = None) -> Report:
    """Runs the whole demo in its folder and returns its report, which is also saved there.

    However it ends, no process is left. Raises ConfigurationError, and PartFailedError when a process ends early.
    """
    began, started = time.monotonic(), datetime.now().astimezone()
    plan = _plan(options)
    folder = options.out.resolve()
    with own_folder(folder):
        run = _Run(folder, plan, parts or Parts(), Screen(console, plan.rounds))
        try:
            _prepare_data(run)
            _prepare_bundle(run)
            broker, rounds, reason = _train(run)
            devices, evaluation = _conclude(run)
        finally:
            stop(run.children)
        manifest = open_bundle(folder / BUNDLE, only=frozenset()).manifest
        report = Report(
            fleet=plan.fleet,
            data=plan.data,
            model=f"{manifest.line} {manifest.version}",
            parameters=manifest.parameters,
            codec=plan.codec,
            downlink=plan.downlink,
            broker=broker,
            started=started.strftime("%Y-%m-%d %H:%M"),
            seconds=time.monotonic() - began,
            reason=reason,
            target_accuracy=plan.target_accuracy,
            rounds=rounds,
            devices=devices,
            evaluation=evaluation,
            dense_update_bytes=4 * (manifest.parameters + manifest.buffers),
        )
        (folder / REPORT).write_text(render_report(report), encoding="utf-8")
    run.screen.conclude(report, str(options.out / REPORT), str(options.out / MODEL))
    return report


def _plan(options: Options) -> Plan:
    preset = PRESETS[options.data]
    devices = tuple(f"device-{i:02d}" for i in range(1, options.agents + 1))
    link = options.link if options.link is None or options.link in PROFILES else str(Path(options.link).resolve())
    return Plan(
        fleet=FLEET,
        data=options.data,
        devices=devices,
        rounds=options.rounds or preset.rounds,
        target_accuracy=options.target_accuracy or preset.target_accuracy,
        codec=options.codec,
        downlink=options.downlink,
        port=free_port(),
        preset=preset,
        link=link,
        ports={} if link is None else {device: free_port() for device in devices},
    )


def _prepare_data(run: _Run) -> None:
    plan = run.plan
    with run.screen.stage("data", f"loading {plan.data}") as said:
        dataset = load_dataset(plan.data)
        shares = split(dataset, plan.devices, plan.preset.alpha, np.random.default_rng(_SPLIT_SEED))
        shards = write_shards(dataset, shares, run.folder)
        write_settings(run.folder, plan)
        sizes = [shard.examples for shard in shards]
        kind = "whole people" if plan.preset.alpha is None else f"label skew, alpha {plan.preset.alpha}"
        said.append(
            f"{plan.data}: {sum(sizes)} examples on {len(shards)} devices ({kind}; {min(sizes)} to {max(sizes)} each),"
            f" {len(dataset.test_indices)} held out"
        )


def _prepare_bundle(run: _Run) -> None:
    model = run.plan.preset.model

    def begin(source: Path, out: Path) -> Child:
        return run.start("export", *run.parts.export, str(source), "--out", str(out), "--force", *EXPORTED)

    with run.screen.stage("bundle", f"exporting {model} and proving it against torch") as said:
        kept = ensure_bundle(run.folder, model, begin, run.screen.tick)
        said.append(f"{model}, {'kept from the last run' if kept else 'exported, parity with torch proven'}")


def _train(run: _Run) -> tuple[str, tuple[RoundCommitted, ...], str]:
    """Starts coordinator and agents and follows them to the end: the broker, the rounds, why it ended."""
    broker, reason = "", ""
    rounds: list[RoundCommitted] = []
    agents: list[Child] = []
    command = (*run.parts.coordinator, "run", "--config", run.config, "--json", "--exit-when-finished")
    with run.screen.stage("fleet", "starting the coordinator"):
        # Meanwhile, so that it costs no time: where there is no mosquitto nobody needs them.
        tokens = run.begin_to_ask("token", "--count", str(len(run.plan.devices)))
        # It may have a broker to end before it ends itself.
        coordinator = run.start("coordinator", *command, pipe=True, orphaned=SIGTERM)
        # `agents` fills up while the lines are read.
        for line in output_lines(coordinator, agents, run.screen.tick, _STALL_S):
            event = parse_event(line)
            if isinstance(event, Listening):
                broker = event.broker
                write_agents(run.folder, run.plan, tls=event.enrolment is not None)
                enrolling: dict[str, Child] = {}
                if event.enrolment is not None:
                    enrolling = _begin_to_enrol(run, event.enrolment, parse_tokens(run.answer(tokens)))
                agents += _start_agents(run, enrolling)
            elif isinstance(event, RoundCommitted):
                rounds.append(event)
            elif isinstance(event, Finished):
                reason = event.reason
                # From here on they may go: their broker does.
                agents.clear()
            if event is not None:
                run.screen.show(event)
    if not reason:
        raise PartFailedError(coordinator, "ended before the run was finished")
    stop(run.children)
    return broker, tuple(rounds), reason


def _begin_to_enrol(run: _Run, port: int, tokens: tuple[str, ...]) -> dict[str, Child]:
    """Has every device get its identity, all at once, as an operator would one by one."""
    enrolling = {}
    for device, token in zip(run.plan.devices, tokens, strict=True):
        config = agent_config(run.folder, device)
        secret = config.with_name("token")
        write_private(secret, token.encode("ascii"))
        command = ("enroll", "--url", f"127.0.0.1:{port}", "--token-file", str(secret), "--config", str(config))
        enrolling[device] = run.start(f"enrol-{device}", *run.parts.agent, *command)
    return enrolling


def _start_agents(run: _Run, enrolling: Mapping[str, Child]) -> list[Child]:
    """Starts each agent as soon as it has its identity."""
    broker = f"127.0.0.1:{run.plan.port}"
    links = [
        run.start(
            f"link-{device}",
            *run.parts.proxy,
            *("--listen", f"127.0.0.1:{port}", "--to", broker, "--profile", str(run.plan.link), "--seed", str(number)),
        )
        for number, (device, port) in enumerate(run.plan.ports.items())
    ]
    agents = []
    for device in run.plan.devices:
        config = agent_config(run.folder, device)
        if device in enrolling:
            wait(enrolling[device], run.screen.tick)
            config.with_name("token").unlink()
        agents.append(run.start(device, *run.parts.agent, "run", "--config", str(config)))
    return links + agents


def _conclude(run: _Run) -> tuple[tuple[DeviceFacts, ...], Evaluation]:
    """Writes the trained model, tries it on the held-out examples, and asks how each device did."""
    model = str(run.folder / MODEL)
    with run.screen.stage("model", "writing and evaluating the trained model"):
        devices = parse_devices(run.ask("devices"))
        command = (*run.parts.coordinator, "export-model", "--config", run.config, "--out", model)
        wait(run.start("export-model", *command), run.screen.tick)
        evaluation = parse_evaluation(run.ask("evaluate-model", "--model", model))
    return devices, evaluation
