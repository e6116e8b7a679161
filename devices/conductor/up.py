"""`fleet-emulate up`: from a plan to a fleet that runs, to its record; however it ends, what it made is taken away."""

import asyncio
import contextlib
import os
import resource
import time
from collections.abc import AsyncIterator, Iterator

from devices.conductor import control, endings, folder, joining, raising
from devices.conductor.acts import Acts
from devices.conductor.answers import Answers, by_number, parse_device_answers, parse_round_answer
from devices.conductor.coordinating import events
from devices.conductor.course import Course
from devices.conductor.members import Member
from devices.conductor.preparing import Fleet, prepare, write_settings
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
from protocol.errors import ConfigurationError, SparsefleetError
from protocol.mqtt import BrokerAddress, parse_url

# A device has two links, each with a listener and two ends of some connections.
_FILES_A_DEVICE = 10
_FILES = 256
# An agent needs a moment to close its store, and a hundred of them more.
_GRACE_S = 5.0
_CLOSING_S = 1.0


def run_fleet(fleet: Fleet) -> FleetRecord:
    """Raises fleet, follows it to its end, writes record.json and the report, and takes everything away.

    Raises ConfigurationError before anything starts, and SparsefleetError for what fails later, when all is taken away.
    """
    light = any(device.light for device in fleet.plan.devices)
    own = tuple(one for one in (folder.process(os.getpid()),) if one is not None)
    entry = folder.Entry(fleet.plan.name, str(fleet.folder), fleet.engine.name, light, own)  # type: ignore[arg-type]
    with endings.in_order(), folder.entered(entry) as index, _claimed(fleet):
        fleet.index = folder.Noted(index, entry)
        try:
            prepare(fleet)
            if fleet.plan.coordinator is None:
                write_settings(fleet, fleet.clock)
            record = asyncio.run(_conduct(fleet))
        finally:
            with endings.undisturbed():
                _take_away(fleet)
    return record


@contextlib.contextmanager
def _claimed(fleet: Fleet) -> Iterator[None]:
    """The fleet's folder; where it cannot be had nothing was made, and the name is free again."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(own_folder(fleet.folder, folder.CLAIM))
        except ConfigurationError:
            folder.leave(fleet.plan.name)
            raise
        yield


async def _conduct(fleet: Fleet) -> FleetRecord:
    """Coordinator, devices, course and record, in one event loop with all links."""
    _allow_files(len(fleet.plan.devices))
    acts = Acts(fleet.plan.name, fleet.telling, fleet.clock)
    course = Course(fleet.plan, fleet.members, acts)
    with control.serving(fleet.folder) as listener, endings.interruptible(course):
        if fleet.at_most_s is not None:
            left_s = max(0.0, fleet.began_at + fleet.at_most_s - time.monotonic())
            why = f"not done within {fleet.at_most_s:g} s"
            asyncio.get_running_loop().call_later(left_s, course.told_to_end, why)
        answering = asyncio.create_task(control.answer(listener, course.answer))
        try:
            await _run(fleet, acts, course)
        except asyncio.CancelledError:
            course.end("interrupted")
        except SparsefleetError as error:
            course.end(cause(error))
            raise
        finally:
            answering.cancel()
            # Before its socket goes; whoever is connected and silent is not waited for.
            await asyncio.wait({answering}, timeout=_CLOSING_S)
            await asyncio.gather(*(member.cable.take_up() for member in fleet.members.values()))
            acts.hands.shutdown(cancel_futures=True)
            stop(fleet.children)
            _note_late_faults(fleet, course)
            fleet.record = record = _record(fleet, course.outcome)
    return record


def cause(error: SparsefleetError) -> str:
    """A failure in a line, for a record: what is in logs stays there."""
    return error.what if isinstance(error, PartFailedError) else str(error).splitlines()[0]


def _note_late_faults(fleet: Fleet, course: Course) -> None:
    """The file's faults that the run did not last for are said, for nobody else would miss them."""
    end_s = course.now_s()
    late = sum(fault.at_s > end_s for fault in fleet.plan.faults)
    if late:
        fleet.notes.append(
            f"{late} of the file's {len(fleet.plan.faults)} faults did not happen: the run ended before their time."
        )


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
    page = fleet.folder / folder.REPORT
    try:
        page.write_text(render_fleet(record), encoding="utf-8")
    except OSError as error:
        raise SparsefleetError(f"{page}: cannot be written ({error.strerror}); check the folder and its disk") from None
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


def _allow_files(devices: int) -> None:
    """As many open files as the links need, as far as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES + _FILES_A_DEVICE * devices
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
