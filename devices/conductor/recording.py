"""The record of a run, from what the conductor saw of its devices and what the coordinator keeps of their updates."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from devices.conductor.answers import Answers, DeviceAnswer
from devices.conductor.members import Member
from devices.conductor.telling import Telling
from devices.fleet.energy import board_cpu_s, watt_hours
from devices.fleet.plan import FleetPlan
from devices.fleet.record import DeviceRecord, FleetRecord
from devices.links import Profile


@dataclass(frozen=True, slots=True)
class Run:
    """What is one for the whole run. began: its first moment, seconds: how long it took, both of this machine's."""

    plan: FleetPlan
    engine: str
    clock: float
    began: datetime
    seconds: float
    outcome: str
    notes: tuple[str, ...] = ()


def record_of(run: Run, members: Mapping[str, Member], telling: Telling, answers: Answers) -> FleetRecord:
    committed = tuple(
        replace(one, devices=answers.rounds[one.round.round].folded()) if one.round.round in answers.rounds else one
        for one in telling.committed
    )
    return FleetRecord(
        fleet=run.plan.name,
        engine=run.engine,
        machine=machine_text(),
        started=run.began.isoformat(timespec="seconds"),
        data=run.plan.data,
        seed=run.plan.seed,
        clock=run.clock,
        cores=len(os.sched_getaffinity(0)),
        seconds=round(run.seconds, 2),
        outcome=run.outcome,
        rounds=committed,
        devices=tuple(_device(member, run.clock, answers) for member in members.values()),
        happenings=tuple(sorted(telling.happenings, key=lambda one: one.at_s)),
        notes=run.notes,
    )


def _device(member: Member, clock: float, answers: Answers) -> DeviceRecord:
    said = answers.devices.get(member.name) or DeviceAnswer(member.name)
    board, start = member.device.board, member.start
    busy_s = core_seconds(member, clock)
    on_s = sum(span.end_s - span.begin_s for span in member.spans if span.presence != "off")
    return DeviceRecord(
        device=member.name,
        board=board.name,
        architecture=start.architecture,
        native=member.device.native,
        asked=start.limits,
        in_force=member.in_force,
        calibration=member.calibration,
        presence=tuple(member.spans),
        enrolled_s=member.enrolled_s,
        step_ms=None if said.step_ms is None else said.step_ms / clock,
        peak_mib=member.peak_mib,
        cpu_s=round(busy_s, 2),
        bytes_up=said.bytes_up,
        bytes_down=said.bytes_down,
        energy_wh=watt_hours(board.power, on_s, busy_s),
        accepted=said.accepted,
        discarded=said.discarded,
        rejected=said.rejected,
        staleness=answers.staleness(member.name),
        restarts=member.restarts,
        out_of_memory=member.out_of_memory,
        memory=tuple(member.memory),
        tier=said.variant,
        link=link_text(board.link),
    )


def core_seconds(member: Member, clock: float) -> float:
    """Seconds of the emulated clock that a core of the board was busy. A plain process is as fast as this machine."""
    return board_cpu_s(member.cpu_s, member.core or 1.0, clock)


def link_text(profile: Profile) -> str:
    """A board's link in words."""
    link = profile.link
    words: Sequence[str | None] = (
        None if link.up_kbit_s is None else f"{link.up_kbit_s:g} kbit/s up",
        None if link.down_kbit_s is None else f"{link.down_kbit_s:g} down",
        f"{link.latency_ms:g} ms" + (f" ± {link.jitter_ms:g}" if link.jitter_ms else "") if link.latency_ms else None,
        f"stalls of {link.stall_s:g} s every {link.stall_every_s:g} s" if link.stall_every_s and link.stall_s else None,
    )
    return ", ".join(word for word in words if word) or "without limits"


def machine_text() -> str:
    """The processor and its kernel; whose machine it is does not belong into a report."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {platform.system()} {platform.release()}"
