"""Records of emulated fleets that never ran, made by a seed: plausible ones, and hostile ones."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from devices.engines.engine import InForce, Limits
from devices.facts import RoundCommitted
from devices.fleet.record import (
    Calibration,
    Committed,
    DeviceRecord,
    FleetRecord,
    Happening,
    Memory,
    Presence,
    Span,
)

HOSTILE = '<script>alert("1")</script>&amp;\x00\u202eevil\ud800 ]]> <!-- {0}'
LASTING = {"power-cut": "off", "cut": "cut", "throttle": "on", "disk-full": "on"}
# Name, architecture, cores of it that are asked for, the catalogue's step, memory, link. Of no real board.
BOARDS = (
    ("slow-board", "arm64", 0.12, 80.0, 512, "lte-poor"),
    ("common-board", "amd64", 0.25, 30.0, 1024, "flaky-wifi"),
    ("fast-board", "amd64", 0.6, 11.0, 4096, "lte"),
    ("gateway", "amd64", 1.0, 4.0, 8192, "open"),
)


def small() -> FleetRecord:
    """Three devices to which nothing happens."""
    return fleet(3, rounds=4, seed=1, clock=1.0, faults=())


def mixed() -> FleetRecord:
    """Eight with faults of every kind, one limit that is not in force, and a step that is far off."""
    kinds = ("kill", "power-cut", "cut", "throttle", "clock-jump", "disk-full", "out-of-memory", "refusal", "exit")
    record = fleet(8, rounds=5, seed=2, clock=2.5, faults=kinds)
    first, second, *rest = record.devices
    first = replace(
        first,
        in_force=InForce(
            replace(first.asked, memory_mib=None), {"memory_mib": "the memory controller is not mounted here"}
        ),
        calibration=Calibration(9.0, 98.0, 80.0),
    )
    second = replace(second, out_of_memory=1)
    notes = ("3 devices share each core, so that the clock is slower than real time", "tc is not there: links by proxy")
    return replace(record, devices=(first, second, *rest), notes=notes)


def crowd(count: int = 220) -> FleetRecord:
    """Hundreds of light devices over many rounds."""
    return fleet(count, rounds=30, seed=3, clock=8.0, faults=("kill", "power-cut", "cut", "throttle") * 25)


def failed() -> FleetRecord:
    """Nothing was finished: no round, no calibration, no enrolment."""
    record = fleet(4, rounds=0, seed=4, clock=1.0, faults=())
    devices = tuple(
        replace(d, calibration=None, enrolled_s=None, step_ms=None, peak_mib=None, presence=(), memory=())
        for d in record.devices
    )
    happening = Happening(0.4, None, "exit", "the coordinator ended with 3: port 8883 is taken")
    return replace(
        record, devices=devices, happenings=(happening,), outcome="the coordinator ended with 3: port 8883 is taken"
    )


def empty() -> FleetRecord:
    """A fleet of which nothing is known."""
    return FleetRecord("", "", "", "", "", 0, math.nan, 0, math.nan, "", (), (), ())


def unknown() -> FleetRecord:
    """The mixed one with NaN or None wherever the types allow it."""
    record, nan = mixed(), math.nan
    devices = tuple(
        replace(
            d,
            asked=Limits(nan, None, None),
            in_force=InForce(Limits(None, 5, None)),
            calibration=Calibration(nan, nan, nan) if i % 2 else None,
            presence=(Span(nan, nan, "on"), Span(0.0, math.inf, "cut")),
            enrolled_s=nan,
            step_ms=nan,
            peak_mib=nan,
            cpu_s=nan,
            energy_wh=nan,
            staleness=nan,
            memory=(Memory(nan, nan), Memory(1.0, nan), Memory(2.0, 3.0)),
        )
        for i, d in enumerate(record.devices)
    )
    rounds = tuple(
        replace(c, at_s=nan if i % 2 else c.at_s, round=RoundCommitted(i, 1, nan, 0, 0, None, nan, nan, nan))
        for i, c in enumerate(record.rounds)
    )
    happenings = tuple(replace(h, at_s=nan if i % 3 else h.at_s) for i, h in enumerate(record.happenings))
    return replace(record, devices=devices, rounds=rounds, happenings=happenings, clock=nan, seconds=nan)


def hostile() -> FleetRecord:
    """The mixed one with markup, controls and no end of text for every name."""
    record = mixed()
    long = "x" * 300
    devices = tuple(
        replace(
            d,
            device=f"{HOSTILE}{i}",
            board=HOSTILE if i % 2 else long,
            architecture=HOSTILE,
            tier=HOSTILE,
            link=long,
            in_force=InForce(d.in_force.limits, {"cores": HOSTILE, HOSTILE: long}),
        )
        for i, d in enumerate(record.devices)
    )
    happenings = tuple(
        replace(h, device=f"{HOSTILE}{i % 8}", what=h.what if i % 2 else HOSTILE, detail=long)
        for i, h in enumerate(record.happenings)
    )
    rounds = tuple(replace(c, devices=(HOSTILE, long)) for c in record.rounds)
    return replace(
        record,
        fleet=HOSTILE,
        engine=HOSTILE,
        machine=long,
        started=HOSTILE,
        data=HOSTILE,
        outcome=HOSTILE,
        rounds=rounds,
        devices=devices,
        happenings=happenings,
        notes=(HOSTILE, long),
    )


def fleet(count: int, rounds: int, seed: int, clock: float, faults: Sequence[str]) -> FleetRecord:
    """A fleet of the sample boards in turn, in which each of the faults befalls a device."""
    rng = np.random.default_rng(seed)
    end = 60.0 * max(1, rounds)
    names = [f"{BOARDS[i % len(BOARDS)][0]}-{i // len(BOARDS) + 1:02d}" for i in range(count)]
    happenings, broken = _faults(rng, names, faults, end)
    committed = _rounds(rng, names, rounds, end, clock)
    devices = tuple(_device(rng, i, name, end, broken.get(name, []), committed) for i, name in enumerate(names))
    return FleetRecord(
        fleet="sample",
        engine="podman",
        machine="2 cores of x86-64",
        started="2026-01-02 03:04",
        data="digits",
        seed=seed,
        clock=clock,
        cores=2,
        seconds=end * clock + 14.0,
        outcome="rounds",
        rounds=committed,
        devices=devices,
        happenings=tuple(sorted(happenings, key=lambda h: h.at_s)),
    )


def _faults(
    rng: np.random.Generator, names: list[str], faults: Sequence[str], end: float
) -> tuple[list[Happening], dict[str, list[Span]]]:
    happenings, broken = [], dict[str, list[Span]]()
    for i, what in enumerate(faults):
        device, at = names[i % len(names)], float(rng.uniform(0.1, 0.8) * end)
        happenings.append(Happening(at, device, what, f"fault {i}"))
        if what in LASTING:
            until = min(end, at + 25)
            happenings.append(Happening(until, device, f"{what} ends"))
            presence: Presence = "cut" if what == "cut" else "off" if what == "power-cut" else "on"
            broken.setdefault(device, []).append(Span(at, until, presence))
        if what in ("kill", "power-cut", "exit", "out-of-memory"):
            happenings.append(Happening(min(end, at + 27), device, "start"))
    return happenings, broken


def _rounds(rng: np.random.Generator, names: list[str], count: int, end: float, clock: float) -> tuple[Committed, ...]:
    result = []
    for i in range(count):
        chosen = [name for name in names if rng.random() < 0.8]
        size = 23_000 * len(chosen)
        took = end / count * clock * 0.97
        told = RoundCommitted(i + 1, len(chosen), took, size, 2 * size, i + 1, 1 - 0.7 ** (i + 2), 2.0 * 0.7**i, 2.1)
        result.append(Committed(end / count * (i + 1), told, tuple(chosen)))
    return tuple(result)


def _device(
    rng: np.random.Generator, i: int, name: str, end: float, broken: list[Span], rounds: tuple[Committed, ...]
) -> DeviceRecord:
    board, architecture, cores, step, memory, link = BOARDS[i % len(BOARDS)]
    accepted = sum(name in c.devices for c in rounds)
    limits = Limits(cores, memory, 2048)
    peak = float(rng.uniform(70, 140))
    times = np.linspace(2, end, 200)
    course = peak * (0.6 + 0.4 * np.abs(np.sin(times / 17 + i)))
    return DeviceRecord(
        device=name,
        board=board,
        architecture=architecture,
        native=architecture == "amd64",
        asked=limits,
        in_force=InForce(limits),
        calibration=Calibration(3.0, float(step * rng.uniform(0.95, 1.09)), step),
        presence=_presence(broken, end),
        enrolled_s=float(rng.uniform(1, 4)),
        step_ms=step * 1.3,
        peak_mib=float(course.max()),
        cpu_s=float(rng.uniform(20, 60)),
        bytes_up=23_000 * accepted,
        bytes_down=46_000 * accepted,
        energy_wh=float(rng.uniform(0.02, 0.3)),
        accepted=accepted,
        discarded=int(rng.integers(0, 2)),
        rejected=0,
        staleness=float(rng.uniform(0, 0.8)),
        restarts=len(broken),
        out_of_memory=0,
        memory=tuple(Memory(float(at), float(mib)) for at, mib in zip(times, course, strict=True)),
        tier=("narrow", "half", "whole", None)[i % 4],
        link=link,
    )


def _presence(broken: list[Span], end: float) -> tuple[Span, ...]:
    spans, at = [Span(0.0, 1.0, "off")], 1.0
    for span in sorted(broken, key=lambda s: s.begin_s):
        if span.begin_s > at and span.presence != "on":
            spans += [Span(at, span.begin_s, "on"), span]
            at = span.end_s
    return (*spans, Span(at, end, "on"))
