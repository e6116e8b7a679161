"""`fleet-emulate up`: from a plan to a fleet that runs, to its record; however it ends, what it made is taken away."""

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Iterator

from devices.conductor import control, folder, joining, raising
from devices.conductor.acts import Acts
from devices.conductor.answers import Answers, by_number, parse_device_answers, parse_round_answer
from devices.conductor.coordinating import events
from devices.conductor.course import Course
from devices.conductor.fleet_settings import coordinator_toml
from devices.conductor.members import Member
from devices.conductor.preparing import Fleet, prepare
from devices.conductor.recording import Run, record_of
from devices.engines.engine import EngineError
from devices.facts import Event, Listening
from devices.fleet.clock import runs
from devices.fleet.record import FleetRecord
from devices.fleet.timeline import deeds
from devices.fleet_report import render_fleet, write_record
from devices.images import needs
from devices.processes import Child, PartFailedError, stop
from devices.workspace import own_folder
from protocol.errors import SparsefleetError
from protocol.mqtt import BrokerAddress, free_port, parse_url

# A device has two links, each with a listener and two ends of some connections.
_FILES_A_DEVICE = 10
_FILES = 256
# An agent needs a moment to close its store, and a hundred of them more.
_GRACE_S = 5.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_fleet(fleet: Fleet) -> FleetRecord:
    """Raises fleet, follows it to its end, writes record.json and the report, and takes everything away.

    Raises ConfigurationError before anything starts, and SparsefleetError for what fails later, when all is taken away.
    """
    light = any(device.light for device in fleet.plan.devices)
    own = tuple(one for one in (folder.process(os.getpid()),) if one is not None)
    entry = folder.Entry(fleet.plan.name, str(fleet.folder), fleet.engine.name, light, own)  # type: ignore[arg-type]
    with folder.entered(entry) as index, own_folder(fleet.folder, folder.CLAIM):
        fleet.index = folder.Noted(index, entry)
        try:
            prepare(fleet)
            if fleet.plan.coordinator is None:
                settings = coordinator_toml(fleet.plan, fleet.clock, free_port())
                (fleet.folder / folder.SETTINGS).write_text(settings, encoding="utf-8")
            record = asyncio.run(_conduct(fleet))
        finally:
            _take_away(fleet)
    return record


async def _conduct(fleet: Fleet) -> FleetRecord:
    """Coordinator, devices, course and record, in one event loop with all links."""
    _allow_files(len(fleet.plan.devices))
    acts = Acts(fleet.plan.name, fleet.telling, fleet.clock)
    course = Course(fleet.plan, fleet.members, acts)
    with control.serving(fleet.folder) as listener, _interruptible(course):
        answering = asyncio.create_task(control.answer(listener, course.answer))
        try:
            await _run(fleet, acts, course)
        except asyncio.CancelledError:
            course.end("interrupted")
        except SparsefleetError as error:
            course.end(str(error).splitlines()[0])
            raise
        finally:
            answering.cancel()
            await asyncio.gather(*(member.cable.take_up() for member in fleet.members.values()))
            stop(fleet.children)
            record = _record(fleet, course.outcome)
            acts.hands.shutdown(cancel_futures=True)
    return record


async def _run(fleet: Fleet, acts: Acts, course: Course) -> None:
    """From the coordinator's start to the devices' end."""
    joined = fleet.plan.coordinator
    if joined is None:
        ports, tokens = await _begin(fleet, acts, course)
    else:
        ports = raising.Ports(parse_url(joined.broker), joining.enrolment(joined))
        tokens = joining.tokens(joined, len(fleet.plan.devices))
    with fleet.telling.stage("devices") as said:
        await _raise(fleet, acts, ports, tokens)
        said.append(f"{len(fleet.members)} in {fleet.engine.name}, enrolled and started")
    course.begin()
    await course.follow()
    for member in fleet.members.values():
        await acts.look(member, last=True)
    await asyncio.gather(*(_stop(acts, member) for member in fleet.members.values()))


async def _begin(fleet: Fleet, acts: Acts, course: Course) -> tuple[raising.Ports, tuple[str, ...]]:
    """Starts the fleet's own coordinator; where its broker listens, and a token for each device."""
    with fleet.telling.stage("coordinator") as said:
        coordinator = fleet.coordinating.begin()
        fleet.children.append(coordinator)
        fleet.note()
        course.told = events(coordinator)
        listening = await _listening(coordinator, course.told)
        said.append(f"{listening.broker}, {listening.url}")
    at = parse_url(listening.url)
    # It may listen everywhere; a device's link begins here.
    broker = BrokerAddress("127.0.0.1", at.port, at.tls)
    if listening.enrolment is None:
        return raising.Ports(broker, None), ()
    tokens = await acts.in_thread(fleet.coordinating.tokens, len(fleet.plan.devices))
    return raising.Ports(broker, BrokerAddress("127.0.0.1", listening.enrolment, True)), tokens


async def _listening(coordinator: Child, told: AsyncIterator[Event]) -> Listening:
    async for event in told:
        if isinstance(event, Listening):
            return event
    raise PartFailedError(coordinator, "ended before devices could join")


async def _raise(fleet: Fleet, acts: Acts, ports: raising.Ports, tokens: tuple[str, ...]) -> None:
    plan = fleet.plan
    for device in plan.devices:
        engine = fleet.engines[device.name]
        share = fleet.calibrated.shares.get(device.name)
        image = fleet.images.get(runs(device, needs.here()))
        start = raising.start_of(plan, device, fleet.folder, engine, image, share.cores if share else None)
        member = Member(device, engine, start)
        if share is not None:
            member.core, member.calibration = share.cores, share.calibration
        fleet.members[device.name] = member
    absent = frozenset(deed.device for deed in deeds(plan, 1e-9) if deed.do == "power-off")
    await raising.raise_all(acts, plan, tuple(fleet.members.values()), ports, tokens, absent)


async def _stop(acts: Acts, member: Member) -> None:
    """An agent closes its store; a device that cannot be asked is taken away all the same."""
    member.wanted = False
    with contextlib.suppress(EngineError):
        await acts.by_hand(member, member.engine.stop, acts.fleet, member.name, _GRACE_S)


def _record(fleet: Fleet, outcome: str) -> FleetRecord:
    """Writes what there is to be known, which after a failure is less."""
    seconds = time.monotonic() - fleet.began_at
    answers = _answers(fleet)
    run = Run(fleet.plan, fleet.engine.name, fleet.clock.real_s, fleet.began, seconds, outcome, tuple(fleet.notes))
    record = record_of(run, fleet.members, fleet.telling, answers)
    write_record(fleet.folder / folder.RECORD, record)
    (fleet.folder / folder.REPORT).write_text(render_fleet(record), encoding="utf-8")
    return record


def _answers(fleet: Fleet) -> Answers:
    """What the coordinator's store says; a record without it is better than none."""
    if not fleet.telling.committed:
        return Answers()
    ask, numbers = fleet.coordinating.ask, [str(committed.round.round) for committed in fleet.telling.committed]
    try:
        rounds = by_number(parse_round_answer(line) for line in ask("round", *numbers).splitlines())
        return Answers(parse_device_answers(ask("devices")), rounds)
    except SparsefleetError as error:
        fleet.notes.append(f"The coordinator could not say whose updates it folded: {error}")
        return Answers()


def _take_away(fleet: Fleet) -> None:
    """All that was made, but the folder with its record; the name is free again."""
    stop(fleet.children)
    if fleet.keep:
        return
    for engine in {engine.name: engine for engine in (fleet.engine, *fleet.engines.values())}.values():
        engine.remove(fleet.plan.name)
    folder.leave(fleet.plan.name)


@contextlib.contextmanager
def _interruptible(course: Course) -> Iterator[None]:
    """A signal ends the course in order; before it has begun, whatever is under way."""
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None

    def end() -> None:
        if course.began:
            course.end("interrupted")
        else:
            this.cancel()

    before = {number: signal.getsignal(number) for number in _ENDING}
    for number in _ENDING:
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])


def _allow_files(devices: int) -> None:
    """As many open files as the links need, as far as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES + _FILES_A_DEVICE * devices
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
