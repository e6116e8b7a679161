"""A device from its folder to a running agent: disk, loopback, links, enrolment by token, start, limits read back."""

import asyncio
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from devices.conductor.acts import Acts
from devices.conductor.fleet_settings import agent_toml
from devices.conductor.members import Member
from devices.conductor.shaping import shaped
from devices.datasets import PROJECT_ROOT
from devices.engines.engine import Engine, EngineError, Inside, Limits, Start
from devices.fleet.clock import runs
from devices.fleet.plan import Device, FleetPlan
from devices.images.clock import clock_environment, set_clock
from devices.images.needs import here
from protocol.errors import ConfigurationError, UnreachableError
from protocol.mqtt import BrokerAddress
from protocol.private_files import write_private

T = TypeVar("T")

# An emulated processor is slow, and a board of a twentieth of a core slower still.
_ENROL_S = 300.0
_TRIES = 5
# An agent under emulation needs half a minute to start; one that never comes must not keep the others.
_UP_S = 120.0
_LOOK_S = 0.1
_AGAIN_S = 1.0
CONFIG = "agent.toml"
_TOKEN = "token"
# As the package's unit has them.
_MQTT, _ENROLMENT = 8883, 8884


@dataclass(frozen=True, slots=True)
class Ports:
    """Where devices' links lead to: the broker, and where they enrol. tls: whether there is enrolment at all."""

    broker: BrokerAddress
    enrolment: BrokerAddress | None


def device_folder(folder: Path, device: str) -> Path:
    return folder / "devices" / device


def start_of(
    plan: FleetPlan, device: Device, folder: Path, engine: Engine, image: str | None, cores: float | None
) -> Start:
    """What a device is started with; a plain process has no limits, and this machine's clock.

    Only a device whose clock is ever off gets one of its own: what shifts it stands before every reading.
    """
    own = device_folder(folder, device.name)
    contained = engine.name != "processes"
    board = device.board
    jumps = any(fault.do == "clock-jump" and device.name in fault.devices for fault in plan.faults)
    shifted = contained and (jumps or board.clock_offset_s != 0.0)
    start = Start(
        fleet=plan.name,
        device=device.name,
        architecture=runs(device, here()),
        limits=Limits(cores, board.memory_mib, board.disk_mib) if contained else Limits(),
        etc=own / "etc",
        state=own / "state",
        data=own / "data",
        image=image if contained else None,
        clock=own / "clock" if shifted else None,
        environment={} if contained else {"PYTHONPATH": str(PROJECT_ROOT)},
    )
    inside = engine.inside(start)
    return start if inside.clock is None else replace(start, environment=clock_environment(str(inside.clock)))


def agent_words(engine: Engine) -> tuple[str, ...]:
    """How `edge-agent` is called in a device: installed in an image, and from these sources as a plain process."""
    return (sys.executable, "-m", "edge_agent") if engine.name == "processes" else ("edge-agent",)


async def prepare(acts: Acts, plan: FleetPlan, member: Member, ports: Ports, seed: int) -> Inside:
    """Folders, disk, loopback and links; the configuration says which ports they have become."""
    start, engine = member.start, member.engine
    for path in (start.etc, start.state, start.data):
        path.mkdir(parents=True, exist_ok=True)
    if start.clock is not None:
        set_clock(start.clock, member.device.board.clock_offset_s)
    await acts.by_hand(member, engine.prepare, start)
    inside = engine.inside(start)
    ends = [(await acts.by_hand(member, engine.listen, plan.name, member.name, _MQTT), ports.broker)]
    if ports.enrolment is not None:
        ends.append((await acts.by_hand(member, engine.listen, plan.name, member.name, _ENROLMENT), ports.enrolment))
    profile = await shaped(acts, member, acts.clock.link(member.device.board.link))
    member.cable.lay(ends, profile, seed)
    url = f"{'mqtts' if ports.enrolment else 'mqtt'}://127.0.0.1:{ends[0][0].getsockname()[1]}"
    (start.etc / CONFIG).write_text(agent_toml(plan, member.device, inside, url, acts.clock), encoding="utf-8")
    (start.etc / CONFIG).chmod(0o644)
    if ports.enrolment is not None:
        member.enrolment_port = ends[1][0].getsockname()[1]
    return inside


async def enrol(acts: Acts, member: Member, inside: Inside, token: str) -> None:
    """`edge-agent enroll` in the device, through its link. Raises EngineError with what it said.

    At full speed: a device is set up before its emulated time begins.
    """
    secret = member.start.etc / _TOKEN
    write_private(secret, token.encode("ascii"))
    words = (
        *(*agent_words(member.engine), "enroll", "--url", f"127.0.0.1:{member.enrolment_port}"),
        *("--token-file", str(Path(inside.etc) / _TOKEN), "--config", str(Path(inside.etc) / CONFIG)),
    )
    began = asyncio.get_running_loop().time()
    unlimited = replace(member.start, limits=replace(member.start.limits, cores=None))
    for _ in range(_TRIES):
        done = await acts.by_hand(member, member.engine.run, unlimited, words, _ENROL_S)
        # A bad link, or a crowd at the door: an operator would call the same again.
        if done.returncode != UnreachableError.exit_code:
            break
        await asyncio.sleep(acts.clock.real(_AGAIN_S))
    secret.unlink(missing_ok=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise EngineError(f"{member.name}: edge-agent enroll ended with {done.returncode}: {said}")
    member.enrolled_s = acts.clock.emulated(asyncio.get_running_loop().time() - began)


async def start(acts: Acts, member: Member, inside: Inside, *, wanted: bool) -> None:
    """Starts the agent and reads its limits back. Raises ConfigurationError where one is not in force.

    One that is not there at the beginning is started and stopped again, so that it may come later.
    """
    words = (*agent_words(member.engine), "run", "--config", str(Path(inside.etc) / CONFIG))
    engine, fleet = member.engine, member.start.fleet
    await acts.by_hand(member, engine.start, member.start, words)
    member.in_force = await acts.by_hand(member, engine.in_force, fleet, member.name)
    if member.in_force.why:
        why = "; ".join(f"{name}: {reason}" for name, reason in member.in_force.why.items())
        raise ConfigurationError(
            f"{member.name}: limits are not in force ({why}); fleet-emulate doctor says what this machine can do, "
            'and engine = "processes" runs devices without limits'
        )
    member.wanted = wanted
    if not wanted:
        await acts.by_hand(member, engine.stop, fleet, member.name, 0.0)
    member.now = await acts.by_hand(member, engine.condition, fleet, member.name)


async def raise_all(
    acts: Acts,
    plan: FleetPlan,
    members: Sequence[Member],
    ports: Ports,
    tokens: Sequence[str],
    absent: frozenset[str],
) -> None:
    """All devices, as many at once as there are hands. The first error ends it.

    Links are held from the first agent's start on, until the emulated clock begins: no round may begin, let alone end,
    while others are still being set up.
    """
    slots = asyncio.Semaphore(acts.parallel)

    async def set_up(number: int, member: Member) -> Inside:
        async with slots:
            inside = await prepare(acts, plan, member, ports, plan.seed + 2 * number)
            if tokens:
                await enrol(acts, member, inside, tokens[number])
                acts.telling.event("device-enrolled", device=member.name, enrolled_s=member.enrolled_s)
            return inside

    async def begin(member: Member, inside: Inside) -> None:
        async with slots:
            await start(acts, member, inside, wanted=member.name not in absent)
            acts.telling.event("device-started", device=member.name)

    found = await _together([set_up(number, member) for number, member in enumerate(members)])
    for member in members:
        member.cable.hold(cut=True)
    await _together([begin(member, inside) for member, inside in zip(members, found, strict=True)])
    await _until_up([member for member in members if member.wanted])


async def _until_up(members: Sequence[Member]) -> None:
    """Until every agent is up, so that the emulated clock begins with all of them; for the slowest only so long."""
    end = asyncio.get_running_loop().time() + _UP_S
    while not all(member.cable.tried for member in members) and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(_LOOK_S)


async def _together(doing: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all come to; where one fails the others are ended first."""
    tasks = [asyncio.get_running_loop().create_task(one) for one in doing]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
