"""The command `fleet-emulate doctor`: whether a fleet can be emulated here, by which engine, and what to change."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from devices.engines import machine
from devices.engines.engine import Engine, Finding
from devices.engines.known import ENGINES, HOLD_LIMITS
from protocol.command import Parser
from protocol.errors import ConfigurationError

EPILOG = """\
examples:
  fleet-emulate doctor
  fleet-emulate doctor --engine podman --json

Starts one container for a moment, of an image that is there, to see its limits in the kernel. Nothing stays.

exit codes: 0 a fleet can be emulated (with warnings: not all of it), 3 no engine here can, or not the named one
"""
_MARKS = {"ok": "ok", "warning": "warn", "error": "ERROR"}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found of each engine and of the machine. engine: the one that fleets get; None: none can hold limits."""

    engine: str | None
    engines: Mapping[str, Sequence[Finding]]
    machine: Sequence[Finding]


def add_command(commands: "argparse._SubParsersAction[Parser]") -> None:
    doctor = commands.add_parser(
        "doctor",
        help="can a fleet be emulated here: engine, limits in force, links, arm64, room",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("--engine", choices=tuple(ENGINES), help="look at this one (default: those that hold limits)")
    doctor.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where fleets would write (default: here)"
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object with what was found")
    doctor.set_defaults(command=_doctor)


def diagnose(engines: Sequence[Engine], folder: Path) -> Diagnosis:
    """Looks at engines, in the order in which they are preferred, and at the machine."""
    found = {engine.name: engine.check() for engine in engines}
    able = (name for name, findings in found.items() if all(finding.state != "error" for finding in findings))
    return Diagnosis(next(able, None), found, machine.look(folder))


def lines(diagnosis: Diagnosis) -> list[str]:
    """For people: a finding a line, and under it what to do."""
    told = []
    for title, findings in (*diagnosis.engines.items(), ("this machine", diagnosis.machine)):
        told.append(title)
        # What another engine lacks is no error when there is one.
        spare = diagnosis.engine is not None and title in diagnosis.engines and title != diagnosis.engine
        for finding in findings:
            mark = "no" if spare and finding.state == "error" else _MARKS[finding.state]
            told.append(f"  {mark:6} {finding.name:12} {finding.detail}")
            if finding.remedy:
                told.append(f"  {'':6} {'':12} -> {finding.remedy}")
    verdict = f"fleets are emulated by {diagnosis.engine}"
    if diagnosis.engine is None:
        verdict = "no engine here can hold a board's limits; --engine processes runs devices without them"
    return [*told, "", verdict]


def _doctor(options: argparse.Namespace) -> int:
    if not options.out.is_dir():
        raise ConfigurationError(f"--out: {options.out} is no folder")
    names = (options.engine,) if options.engine else HOLD_LIMITS
    diagnosis = diagnose([ENGINES[name]() for name in names], options.out)
    if options.json:
        print(json.dumps(asdict(diagnosis)))
    else:
        print("\n".join(lines(diagnosis)))
    return ConfigurationError.exit_code if diagnosis.engine is None else 0
