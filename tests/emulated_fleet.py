"""The fleet of examples/mixed-fleet.toml in real containers: `python -m tests.emulated_fleet`, as root, minutes.

What cannot be done on a machine (no root, no engine) is said and ends well, but in CI (CI=true).
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devices.conductor import folder as places
from devices.datasets import PROJECT_ROOT
from devices.engines.containers import Containers
from devices.engines.disks import disks
from devices.engines.engine import EngineError, Limits
from devices.fleet.calibration import TOLERANCE
from devices.fleet.fleet_file import load_fleet
from devices.fleet.plan import FleetPlan
from devices.fleet.record import FleetRecord
from devices.fleet_report import read_record
from devices.fleet_report.limits import not_in_force, step_error
from devices.images.cache import cache_folder
from protocol.errors import SparsefleetError

EXAMPLE = PROJECT_ROOT / "examples" / "mixed-fleet.toml"
# The targets of a fleet in containers on two cores: from `up` to the end of its rounds, without images, which are made
# once; and from a container's start to an enrolled device.
RUN_S, ENROLLED_S = 600.0, 5.0
# With images and a root of Debian for arm64, on a machine that does something else as well.
_PATIENCE_S = 1800.0
_ENDING_S = 150.0
_NEEDS = ("podman", "mmdebstrap", "mosquitto", "mkfs.ext4")

Events = Sequence[Mapping[str, Any]]


def main() -> int:
    # One order of lines, whoever prints: this program or what it starts.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if why := _lacks():
        in_ci = os.environ.get("CI") == "true"
        print(f"emulated fleet: {'cannot run' if in_ci else 'skipped'}: {why}")
        return 1 if in_ci else 0
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="fleet-run-") as folder:
        return _run(Path(folder) / "fleet")


def _lacks() -> str:
    if os.geteuid() != 0:
        return "containers with limits need root; run it with sudo"
    missing = [name for name in _NEEDS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]
    return f"{' and '.join(missing)} must be installed; .ci/run says by which packages" if missing else ""


def _run(out: Path) -> int:
    command = (sys.executable, "-m", "devices", "up", str(EXAMPLE), "--out", str(out), "--json")
    print(f"emulated fleet: fleet-emulate up {EXAMPLE.relative_to(PROJECT_ROOT)} --json")
    with _process(command) as process:
        printed, _ = process.communicate(timeout=_PATIENCE_S)
    plan = load_fleet(EXAMPLE)
    wrong = [] if process.returncode == 0 else [f"fleet-emulate up ended with exit code {process.returncode}"]
    wrong += left_behind(plan.name, out)
    try:
        said, record = events(printed), read_record(out)
    except SparsefleetError as error:
        wrong.append(str(error))
    else:
        print("\n".join(figures(said, record)))
        wrong += problems(plan, said, record)
    for one in wrong:
        print(f"emulated fleet: FAILED: {one}")
    print(f"emulated fleet: {'failed' if wrong else 'ok'}")
    return 1 if wrong else 0


@contextmanager
def _process(command: Sequence[str]) -> "Iterator[subprocess.Popen[bytes]]":
    """Ended in order, whatever becomes of us: it has containers and disks to take away."""
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(_ENDING_S)


def events(printed: bytes) -> Events:
    """What `up --json` said: nothing but an event a line. Raises SparsefleetError for anything else."""
    found = []
    for line in printed.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise SparsefleetError(f"--json: {line[:100]!r} is no event")
        found.append(event)
    if not found or found[-1]["event"] != "ended":
        raise SparsefleetError("--json: the last line is not the result")
    return found


def problems(plan: FleetPlan, said: Events, record: FleetRecord) -> list[str]:
    """What is not as the fleet's file and its targets have it."""
    return [
        *(text for wrong, text in _of_run(plan, said, record) if wrong),
        *(text for device in plan.devices for text in _of_device(device.name, record)),
        *_faults(plan, record),
    ]


def run_s(said: Events, record: FleetRecord) -> float:
    """From its start to its end, without what is made once."""
    made = sum(float(event["seconds"]) for event in said if (event["event"], event.get("stage")) == ("stage", "images"))
    return record.seconds - made


def _of_run(plan: FleetPlan, said: Events, record: FleetRecord) -> Iterator[tuple[bool, str]]:
    result, done = said[-1], len(record.rounds)
    yield record.outcome != "rounds", f"it ended by {record.outcome!r}"
    yield done != plan.rounds, f"{done} of {plan.rounds} rounds were done"
    same = (result.get("outcome"), result.get("rounds")) == (record.outcome, done)
    yield not same, f"the result says {result}, the record {record.outcome!r} after {done} rounds"
    yield run_s(said, record) >= RUN_S, f"it took {run_s(said, record):.0f} s, and may take {RUN_S:g}"
    architectures = {device.architecture for device in record.devices}
    yield architectures != {"amd64", "arm64"}, f"its devices are of {', '.join(sorted(architectures))}"
    accepted = sum(device.accepted for device in record.devices)
    yield accepted < plan.rounds, f"{accepted} updates were accepted, as far as the record knows: {record.notes}"
    accuracy = record.rounds[-1].round.accuracy if record.rounds else None
    yield accuracy is None or not math.isfinite(accuracy), "its last round was not evaluated"


def _of_device(name: str, record: FleetRecord) -> Iterator[str]:
    device = next((device for device in record.devices if device.device == name), None)
    if device is None:
        yield f"{name} is not in the record"
        return
    if None in (device.asked.cores, device.asked.memory_mib, device.asked.disk_mib):
        yield f"{name}: not every limit was asked for: {device.asked}"
    if device.in_force.limits == Limits():
        yield f"{name}: no limit was read back"
    yield from (f"{name}: {one.limit} is not in force ({one.why})" for one in not_in_force(device))
    if device.calibration is None:
        yield f"{name}: its step was not calibrated"
    if device.enrolled_s is None:
        yield f"{name} never enrolled"


def _faults(plan: FleetPlan, record: FleetRecord) -> Iterator[str]:
    """Each of the file's, in the record at its time or after; and none that its engine refused."""
    for fault in plan.faults:
        for name in fault.devices:
            if not any(
                one.device == name and one.what == fault.do and one.at_s >= fault.at_s - 0.5
                for one in record.happenings
            ):
                yield f"{name}: the {fault.do} at {fault.at_s:g} s did not happen"
    for one in record.happenings:
        if one.what == "engine":
            yield f"{one.device}: its engine failed at {one.at_s:g} s: {one.detail}"


def left_behind(fleet: str, out: Path) -> list[str]:
    """What of the fleet is still there, but its folder."""
    entry = places.index_folder() / f"{fleet}.json"
    found = [f"{path} is still there" for path in (out / places.SOCKET, entry) if path.exists()]
    for name in ("podman", "docker"):
        try:
            found += [f"{name} still has {device}" for device in Containers(name).devices(fleet)]
        except EngineError:
            # An engine that is not here has nothing.
            continue
    found += [f"{disk.image} is still mounted" for disk in disks(fleet)]
    return found + [f"process {number} still runs: {words}" for number, words in _processes(str(out))]


def _processes(word: str) -> Iterator[tuple[int, str]]:
    """Whoever names it in a command line, but us."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            # It ended meanwhile.
            continue
        if word in words:
            yield int(entry.name), words


def figures(said: Events, record: FleetRecord) -> Iterator[str]:
    """For whoever reads the log: what was measured, and which target it missed without being wrong."""
    yield f"one emulated second lasted {record.clock:g} s; {run_s(said, record):.0f} s in all without images"
    for event in said:
        if event["event"] == "stage":
            yield f"  {event['stage']:<12} {event['seconds']:7.1f} s"
    for committed in record.rounds:
        yield f"  round {committed.round.round}: {committed.at_s:.1f} emulated s, accuracy {committed.round.accuracy}"
    for device in record.devices:
        error = step_error(device)
        step = "not calibrated" if error is None else f"step {error:+.1%}"
        step += " MISSED" if error is not None and abs(error) > TOLERANCE else ""
        enrolled = math.nan if device.enrolled_s is None else device.enrolled_s * record.clock
        late = " MISSED" if device.architecture == "amd64" and not enrolled < ENROLLED_S else ""
        yield (
            f"  {device.device:<12} {device.architecture} {step}, enrolled in {enrolled:.1f} s{late}, "
            f"peak {device.peak_mib} MiB, {device.accepted} updates, {device.restarts} restarts"
        )


if __name__ == "__main__":
    sys.exit(main())
