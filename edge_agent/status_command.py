"""`edge-agent status`: what the agent is doing, from its state folder alone, whether it runs or not."""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_agent.options import add_config, add_json
from protocol.command import Parser

EPILOG = """\
examples:
  edge-agent status
  edge-agent status --config agent.toml --json
exit codes: 0 running and connected, 1 not running, 3 configuration, 4 running and not connected, 5 not enrolled"""

NOT_RUNNING, NOT_CONNECTED, NOT_ENROLLED = 1, 4, 5


@dataclass(frozen=True, slots=True)
class Report:
    """Facts for --json, and the exit code that follows."""

    facts: dict[str, Any]
    exit_code: int


def add_parser(commands: "argparse._SubParsersAction[Parser]") -> None:
    status = commands.add_parser(
        "status",
        help="what the agent does and what waits; reads its state folder, and disturbs nothing",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(status)
    add_json(status)
    status.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    # Imported here so that --help and mistakes answer at once.
    from edge_agent.settings import load, state_folder
    from edge_agent.state_view import as_json

    settings = load(options.config)
    found = report(state_folder(settings, options.config), settings.broker.url, settings.limits.disk_mib)
    facts = {"device": settings.device, "fleet": settings.fleet, **found.facts}
    print(as_json(facts) if options.json else "\n".join(_lines(facts)))
    return found.exit_code


def report(state: Path, broker: str, disk_mib: int) -> Report:
    """What a state folder tells. Raises SparsefleetError where it cannot be read."""
    from edge_agent import state_view
    from edge_agent.status import read_status

    state_view.open_to_us(state)
    pid, said, kept = state_view.running(state), read_status(state), state_view.kept(state)
    identity = _identity(state, broker)
    connected = pid is not None and said is not None and said.connected and not said.stopped
    facts: dict[str, Any] = {
        "running": pid is not None,
        "pid": pid or None,
        "connected": connected,
        "broker": broker,
        "why_not_connected": said.why_not if said and pid is not None and not connected else "",
        "last_contact_s": said.heard_s if said else None,
        "started_s": said.started_s if said else None,
        "written_s": said.written_s if said else None,
        "version": said.version if said else None,
        "phase": (said.phase if said and pid is not None else "idle") if kept and kept.task else "idle",
        "task": kept.task.name if kept and kept.task else None,
        "round": kept.task.round if kept and kept.task else None,
        "steps_done": said.done if said else 0,
        "steps": said.total if said else 0,
        "gossip": asdict(said.gossip) if said and said.gossip else None,
        "backend": said.backend if said else "",
        "outbox": len(kept.outbox) if kept else 0,
        "outbox_bytes": sum(one.offer.blob.size for one in kept.outbox) if kept else 0,
        "last_accepted": _verdict(said, "accepted"),
        "last_rejected": _verdict(said, "rejected"),
        "last_refused": _verdict(said, "refused"),
        "settled": kept.settled if kept else {},
        "bundles": [f"{one.line} version {one.version}" for one in state_view.held_bundles(state)],
        "disk_bytes": state_view.used_bytes(state),
        "disk_limit_bytes": disk_mib << 20,
        **identity,
    }
    # One that is over by a clock that is ahead may still be good.
    enrolled = identity["certificate"] not in ("none", "expired") or connected
    code = NOT_ENROLLED if not enrolled else NOT_RUNNING if pid is None else 0 if connected else NOT_CONNECTED
    return Report(facts, code)


def _identity(state: Path, broker: str) -> dict[str, Any]:
    from edge_agent.identity import load_identity
    from protocol.errors import SparsefleetError

    if not broker.startswith("mqtts://"):
        return {"certificate": "not needed", "certificate_ends_s": None}
    try:
        ends_s = load_identity(state).ends_s
    except SparsefleetError:
        return {"certificate": "none", "certificate_ends_s": None}
    return {"certificate": "valid" if time.time() < ends_s else "expired", "certificate_ends_s": ends_s}


def _verdict(said: Any, name: str) -> dict[str, Any] | None:
    found = getattr(said, name, None)
    return None if found is None else {n: getattr(found, n) for n in ("task", "reason", "detail", "at_s")}


def _lines(facts: dict[str, Any]) -> list[str]:
    agent = f"runs, pid {facts['pid'] or 'not visible'}" if facts["running"] else "does not run"
    link = "connected to" if facts["connected"] else "not connected to"
    rows = [
        ("device", f"{facts['device']} of fleet {facts['fleet']}"),
        ("agent", f"{agent}{', started ' + _when(facts['started_s']) if facts['running'] else ''}"),
        ("broker", f"{link} {facts['broker']}" + _because(facts["why_not_connected"])),
        ("last contact", _when(facts["last_contact_s"])),
        ("task", _task(facts)),
        *([("gossip", _gossip(facts["gossip"]))] if facts["gossip"] else []),
        ("backend", facts["backend"] or "none chosen yet"),
        ("outbox", f"{facts['outbox']} updates, {facts['outbox_bytes']:,} bytes"),
        ("accepted last", _said(facts["last_accepted"])),
        ("rejected last", _said(facts["last_rejected"])),
        ("refused last", _said(facts["last_refused"])),
        ("settled", ", ".join(f"{v} {r} {n}" for v, rows in facts["settled"].items() for r, n in rows.items()) or "-"),
        ("bundle", ", ".join(facts["bundles"]) or "none held"),
        ("disk", f"{facts['disk_bytes'] / 2**20:.1f} of {facts['disk_limit_bytes'] / 2**20:.0f} MiB"),
        ("certificate", facts["certificate"] + _until(facts["certificate_ends_s"])),
    ]
    return [f"{name:15}{said}" for name, said in rows]


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _until(at_s: float | None) -> str:
    return f", ends {_when(at_s)}" if at_s else ""


def _task(facts: dict[str, Any]) -> str:
    if facts["task"] is None:
        return "none in hand"
    steps = f", {facts['steps_done']} of {facts['steps']} steps" if facts["steps"] else ""
    return f"{facts['task']} (round {facts['round']}), {facts['phase']}{steps}"


def _gossip(said: dict[str, Any]) -> str:
    if not said["epoch"]:
        return f"waits: {said['why']}"
    near = f"epoch {said['epoch']}, exchange {said['position']}, {said['estimate']:.4g} from its neighbours"
    waits = f", waits for {', '.join(said['waits_for'])}" if said["waits_for"] else ""
    return near + waits + (f", {said['why']}" if said["why"] else "") + _refused(said["refused"])


def _refused(messages: int) -> str:
    return f", {messages} messages refused" if messages else ""


def _said(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    words = ": ".join(word for word in (found["reason"], found["detail"]) if word)
    return f"{found['task']}, {_when(found['at_s'])}{_because(words)}"


def _when(at_s: float | None) -> str:
    return "never" if not at_s else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_s))
