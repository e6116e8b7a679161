"""`edge-agent check`: is this device fit to work, and if not, what is to be done; nothing is changed by looking.

A check is a function of what is given to one finding; the table below the types names them, in the order in which later
ones follow from earlier ones. What may take the process down with it is tried in another one.
"""

import argparse
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edge_agent import state_view, trying
from edge_agent.doubts import day, is_plausible
from edge_agent.findings import Finding, as_json, exit_code, lines
from edge_agent.identity import Identity, credentials, load_identity
from edge_agent.memory import available_mib
from edge_agent.settings import AgentSettings, load, state_folder
from edge_agent.status import Status, read_status
from protocol.broker_check import try_broker
from protocol.envelope import Envelope, encode
from protocol.errors import ConfigurationError, NotEnrolledError, SparsefleetError
from protocol.messages import DeviceState
from protocol.mqtt import MqttSettings, parse_url
from protocol.sealed import sealed
from protocol.signing import load_signer
from protocol.topics import Topics

# Certificates begin so long before they are made, for clocks that are late.
EARLY_S = 86_400.0
# Below this a small model and its runtime do not fit.
LEAST_MEMORY_MIB, GOOD_MEMORY_MIB = 64, 128
# Certificates are renewed long before.
RENEWAL_LATE_S = 3 * 86_400.0
# An agent that started less long ago may not have come to the broker yet, or not have written down that it did.
JUST_STARTED_S = 15.0


@dataclass(frozen=True, slots=True)
class Given:
    """What is looked at. pid: of the agent that has the state folder, 0 where it is not visible, None where none has.
    now_s: Unix seconds by this device's clock. said: what the agent said of itself last."""

    config: Path
    settings: AgentSettings
    state: Path
    pid: int | None
    now_s: float
    said: Status | None


def run(options: argparse.Namespace) -> int:
    """Does every check and prints what was found; returns the exit code."""
    found = every_check(options.config, options.backend)
    print(json.dumps(as_json(found)) if options.json else "\n".join(lines(found)))
    return exit_code(found)


def every_check(config: Path, backend: str | None = None) -> dict[str, Finding]:
    """What is found, by check, in order."""
    try:
        settings = load(config, backend)
        state = state_folder(settings, config)
    except SparsefleetError as error:
        said = Finding("error", str(error), "edge-agent config sample shows every key", exit_code=error.exit_code)
        return _unconfigured(said, backend)
    closed = state_view.closed(state)
    if closed:
        found = {
            "configuration": _good(config),
            "state folder": Finding("error", closed, "run this as that user, or root"),
        }
        skipped = Finding("skipped", "not without the state folder")
        return {name: found.get(name, skipped) for name in ("configuration", *CHECKS, *trying.CHECKS)}
    given = Given(config, settings, state, state_view.running(state), time.time(), read_status(state))
    found = {"configuration": _good(config)}
    found |= {name: check(given) for name, check in CHECKS.items()}
    return found | trying.tried(config, backend)


def _unconfigured(said: Finding, backend: str | None) -> dict[str, Finding]:
    """What is seen of the device alone, where its configuration cannot be read: whether it would do at all."""
    found = {"configuration": said, "clock": _clock(time.time(), []), "memory": _memory(0)}
    found["runtime"] = trying.tried(None, backend)["runtime"]
    skipped = Finding("skipped", "not without a configuration")
    return {name: found.get(name, skipped) for name in ("configuration", *CHECKS, *trying.CHECKS)}


def _good(config: Path) -> Finding:
    return Finding("ok", f"{config}: no mistake found")


def clock(given: Given) -> Finding:
    """Whether the time can be right: certificates go by it."""
    seen = [given.said.written_s] if given.said else []
    # Who this device is, is another check's business.
    with suppress(SparsefleetError):
        seen.append(load_identity(given.state).issued_s - EARLY_S)
    return _clock(given.now_s, seen)


def _clock(now: float, seen: list[float]) -> Finding:
    """seen: times that have been already."""
    remedy = "set the clock: timedatectl set-ntp true, or a real-time clock; agents wait for it by themselves"
    if not is_plausible(now):
        return Finding("error", f"it is {day(now)} by this clock, which cannot be", remedy)
    if seen and now < max(seen):
        return Finding("error", f"it is {day(now)} by this clock, and has been {day(max(seen))} before", remedy)
    return Finding("ok", day(now))


def agent(given: Given) -> Finding:
    """Whether an agent runs on this state folder; a second one could not."""
    if given.pid is None:
        return Finding("ok", "none runs on this state folder", facts={"running": False})
    who = f"pid {given.pid}" if given.pid else "a process that is not visible from here"
    return Finding("ok", f"runs, {who}; it is not disturbed", facts={"running": True, "pid": given.pid or None})


def state(given: Given) -> Finding:
    """Whether the state folder can be used, and by nobody else."""
    folder = given.state
    if not folder.exists():
        above = next(one for one in folder.parents if one.exists())
        if os.access(above, os.W_OK):
            return Finding("ok", f"{folder} is not there yet; the first start makes it")
        return Finding("error", f"{folder} cannot be made in {above}", f"make it, and give it to {_user()}: chown")
    owner = folder.stat().st_uid
    wrong = _foreign(folder, owner)
    if wrong:
        return Finding("error", f"{wrong} does not belong to the folder's owner {owner}", f"chown -R {owner} {folder}")
    refused = _write_refused(folder)
    if refused:
        remedy = "free disk space, or mount it for writing: dmesg says why a disk became read-only"
        return Finding("error", f"{folder} cannot be written ({refused})", remedy)
    try:
        state_view.kept(folder)
    except SparsefleetError as error:
        return Finding("error", str(error), "see docs/operating.md, A damaged store", exit_code=error.exit_code)
    return Finding("ok", f"{folder} is writable, and its store is readable")


def disk(given: Given) -> Finding:
    """Whether what the settings grant is there."""
    folder = next(one for one in (given.state, *given.state.parents) if one.exists())
    free, used = shutil.disk_usage(folder).free, state_view.used_bytes(given.state)
    wanted = (given.settings.limits.disk_mib << 20) - used
    facts = {"free_bytes": free, "used_bytes": used, "limit_bytes": given.settings.limits.disk_mib << 20}
    said = f"{free / 2**20:,.0f} MiB free, {used / 2**20:,.1f} of {given.settings.limits.disk_mib} MiB used"
    if free < 1 << 20:
        return Finding("error", said + ": the disk is full", "free disk space; nothing is lost meanwhile", facts=facts)
    if free < wanted:
        return Finding(
            "warning", f"{said}: less is free than disk_mib grants", "free disk space, or lower it", (), facts
        )
    return Finding("ok", said, facts=facts)


def memory(given: Given) -> Finding:
    """Whether there is memory to train in."""
    return _memory(given.settings.limits.memory_mib)


def _memory(granted: int) -> Finding:
    free = available_mib(0)
    if free is None:
        return Finding("skipped", "this system does not say how much is free")
    facts = {"available_mib": free, "memory_mib": granted}
    if free < LEAST_MEMORY_MIB:
        return Finding("error", f"{free} MiB are available", "end other programs, or raise MemoryMax", facts=facts)
    if granted > free:
        return Finding("warning", f"{free} MiB are available, memory_mib says {granted}", "lower it", facts=facts)
    if free < GOOD_MEMORY_MIB:
        return Finding("warning", f"{free} MiB are available", "narrow tiers or --train-last may fit", facts=facts)
    return Finding("ok", f"{free} MiB are available", facts=facts)


def identity(given: Given) -> Finding:
    """Whether this device is who its configuration says, until when, and whether its key is its own."""
    if not parse_url(given.settings.broker.url).tls:
        return Finding("skipped", "broker.url is without TLS, where nobody is asked who they are")
    try:
        own = load_identity(given.state)
    except NotEnrolledError as error:
        return Finding("error", str(error), "fleet-coordinator token makes a token", exit_code=error.exit_code)
    except ConfigurationError as error:
        return Finding("error", str(error), "chmod 600 it; who may have read it may be this device", exit_code=3)
    names, wanted = (own.device, own.fleet), (given.settings.device, given.settings.fleet)
    if names != wanted:
        said = f"the identity is {names[0]} of {names[1]}, the configuration's {wanted[0]} of {wanted[1]}"
        return Finding("error", said, "set device and fleet to the identity's, or enrol again", exit_code=3)
    folder = credentials(given.state).key.parent
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        return Finding("error", f"{folder} is open to others", f"chmod 700 {folder}", exit_code=3)
    return _until(own, given.now_s)


def broker(given: Given) -> Finding:
    """Whether the broker takes this device and lets it read and write its own topics. A running agent is asked
    instead: a second connection under its name would throw it out."""
    url = parse_url(given.settings.broker.url).url
    if given.pid is not None:
        if given.said is not None and given.said.connected:
            return Finding("ok", f"{url}: the running agent is connected", facts={"asked": "agent"})
        why = given.said.why_not if given.said is not None else ""
        if not why and (given.said is None or given.now_s - given.said.started_s < JUST_STARTED_S):
            return Finding(
                "warning", f"{url}: the running agent has not said yet whether it is connected", "check again"
            )
        remedy = "it goes on trying; a device that was revoked, or whose certificate is over, enrols again"
        said = f"the running agent is not connected: {why or 'it has not said why'}"
        return Finding("error", said if url in said else f"{url}: {said}", remedy, exit_code=4)
    try:
        return _try(given, url)
    except NotEnrolledError:
        return Finding("skipped", "there is no identity to connect with")
    except ValueError as error:
        return Finding("error", f"the key cannot be read: {error}", "enrol again with a new token", exit_code=5)
    except SparsefleetError as error:
        remedy = "is the broker up, is the address right, is the port open (8883)?"
        return Finding("error", str(error), remedy, exit_code=error.exit_code)


CHECKS: Mapping[str, Callable[[Given], Finding]] = {
    "clock": clock,
    "agent": agent,
    "state folder": state,
    "disk": disk,
    "memory": memory,
    "identity": identity,
    "broker": broker,
}


def _try(given: Given, url: str) -> Finding:
    settings, topics = given.settings, Topics(given.settings.fleet)
    address = parse_url(settings.broker.url)
    own = None
    if address.tls:
        load_identity(given.state)
        own = credentials(given.state)
    client = MqttSettings(address, f"{settings.fleet}-{settings.device}", settings.broker.keepalive_s, credentials=own)
    kept = state_view.kept(given.state)
    # What is true, and was said when it last stopped.
    gone = encode(Envelope(kept.boot if kept else 0, 0, 0, DeviceState("gone")))
    topic = topics.device(settings.device, "state")
    if own is not None:
        gone = sealed(topic, gone, load_signer(own.key.read_bytes()))
    tried = try_broker(client, topics.of_agent(settings.device), topic, gone)
    facts = {"asked": "broker", "stage": tried.stage}
    if tried.stage == "done":
        said = "reads and writes its own topics" if tried.told else "reads its own topics"
        return Finding("ok", f"{url}: connects, {said}", facts=facts)
    if tried.stage == "connect":
        remedy = "has this device been revoked, is its certificate over? fleet-coordinator devices tells"
        return Finding("error", f"{url}: {tried.problem}", remedy, facts=facts, exit_code=4)
    remedy = "the broker's ACL must let it: see docs/enrolment.md, A broker of your own"
    return Finding("error", f"{url}: {tried.problem}", remedy, facts=facts)


def _until(own: Identity, now_s: float) -> Finding:
    facts = {"ends_s": own.ends_s, "device": own.device, "fleet": own.fleet}
    if now_s >= own.ends_s:
        said = f"the certificate of {own.device} ended {day(own.ends_s)}, and it is {day(now_s)} by this clock"
        remedy = f"fleet-coordinator token --device {own.device}, then edge-agent enroll with it here"
        return Finding("error", said, remedy, facts=facts, exit_code=5)
    said = f"{own.device} of fleet {own.fleet}, until {day(own.ends_s)}"
    if now_s > own.renew_at_s + RENEWAL_LATE_S:
        return Finding("warning", said + ", and not renewed in time", "edge-agent renew says why", facts=facts)
    return Finding("ok", said, facts=facts)


def _foreign(folder: Path, owner: int) -> Path | None:
    """Something in the folder, not deep down, that is somebody else's."""
    for path in (*folder.iterdir(), *(folder / "identity").glob("*")):
        try:
            if path.lstat().st_uid != owner:
                return path
        except OSError:
            continue
    return None


def _write_refused(folder: Path) -> str:
    """Why a small file cannot be written there; it is removed again."""
    path = folder / f".check-{os.getpid()}"
    try:
        with path.open("xb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    finally:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            # A disk that became read-only in between keeps it; a start passes it over.
            print(f"{path} could not be removed", file=sys.stderr)
    return ""


def _user() -> str:
    return f"user {os.geteuid()}"
