"""`edge-agent diag collect`: what somebody who helps must see of a device, in one archive, with secrets removed.

Never in it: keys, tokens, certificates, payloads, models and training data. What is taken from files of the operator's
and from logs goes through `redacted`; all else is made here, of names, numbers and times.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edge_agent.options import add_config, add_json
from protocol.command import Parser
from protocol.errors import ConfigurationError, SparsefleetError

EPILOG = """\
example: edge-agent diag collect -o kitchen-pi.tar.gz
It holds configuration, status, checks, versions, the outbox's list, the store's table counts, EDGE_AGENT_* variables
and the service's last log lines; never keys, tokens, certificates, updates or training data. Look before you send it.
exit codes: 0 ok, 3 the file cannot be written"""

UNIT = "edge-agent"
LOG_LINES = 2000
LOG_S = 20.0
_PACKAGES = ("sparsefleet", "numpy", "paho-mqtt", "cbor2", "cryptography", "onnxruntime", "onnxruntime-training-cpu")
_MOST_TEXT = 1 << 20


def add_parser(commands: "argparse._SubParsersAction[Parser]") -> None:
    diag = commands.add_parser("diag", help="collect what somebody who helps must see, without secrets")
    actions = diag.add_subparsers(required=True, metavar="ACTION")
    collect = actions.add_parser(
        "collect",
        help="write a .tar.gz",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(collect)
    collect.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: edge-agent-diag-TIME.tar.gz, here")
    add_json(collect)
    collect.set_defaults(command=_collect)


def _collect(options: argparse.Namespace) -> int:
    from edge_agent.outbox_command import write_archive

    out = options.out or Path(time.strftime("edge-agent-diag-%Y%m%d-%H%M%S.tar.gz", time.gmtime()))
    if out.exists():
        raise ConfigurationError(f"-o: {out} is there already; name another file")
    files = collected(options.config, os.environ)
    write_archive(out, {name: text.encode() for name, text in files.items()}, "w:gz")
    size = out.stat().st_size
    said = {"out": str(out), "bytes": size, "files": sorted(files)}
    print(json.dumps(said) if options.json else f"{out}: {len(files)} files, {size:,} bytes, secrets removed")
    return 0


def collected(config: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The archive's files. What cannot be had says why in its place: a broken device is what this is for."""
    from edge_agent.redaction import redacted

    files = {
        "versions.json": _json(_versions()),
        "environment.json": _json(_environment(environ)),
        "log.txt": _log(),
        "check.json": _json(_checks(config)),
        "config.json": _or_why(lambda: _config(config)),
    }
    for path in (config, *sorted(config.with_suffix(".d").glob("*.toml"))):
        name = path.name if path == config else f"{config.with_suffix('.d').name}/{path.name}"
        files[f"config/{name}"] = _text(path)
    files |= _of_state(config)
    return {name: redacted(text) for name, text in files.items()}


def _of_state(config: Path) -> dict[str, str]:
    from edge_agent.settings import load, state_folder
    from edge_agent.state_view import soundness
    from edge_agent.status_command import report

    try:
        settings = load(config)
        state = state_folder(settings, config)
    except SparsefleetError as error:
        return {"status.json": _json({"error": str(error)})}
    return {
        "status.json": _or_why(lambda: report(state, settings.broker.url, settings.limits.disk_mib).facts),
        "outbox.json": _or_why(lambda: _outbox(state)),
        "database.json": _or_why(lambda: soundness(state)),
        "folder.json": _json(_listing(state)),
    }


def _outbox(state: Path) -> list[dict[str, Any]]:
    from edge_agent.outbox_command import facts, waiting

    return [facts(one, offered) for one, offered in waiting(state)]


def _config(config: Path) -> dict[str, Any]:
    from edge_agent.config_command import shown

    found = shown(argparse.Namespace(config=config))
    return {key: {"value": one.value, "source": one.source} for key, one in found.items()}


def _checks(config: Path) -> dict[str, Any]:
    from edge_agent.findings import as_json
    from edge_agent.self_check import every_check

    return as_json(every_check(config))


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {
        "python": sys.version,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "libc": " ".join(platform.libc_ver()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _environment(environ: Mapping[str, str]) -> dict[str, object]:
    from edge_agent.redaction import redacted_value

    return {
        name: redacted_value(name, value) for name, value in sorted(environ.items()) if name.startswith("EDGE_AGENT_")
    }


def _listing(state: Path) -> list[dict[str, Any]]:
    """Names, sizes, modes and owners in the state folder; never what is in the files."""
    found = []
    for path in sorted(state.rglob("*")) if state.is_dir() else []:
        try:
            said = path.lstat()
        except OSError:
            continue
        name = str(path.relative_to(state))
        found.append({"name": name, "bytes": said.st_size, "mode": f"{said.st_mode:o}", "owner": said.st_uid})
    return found


def _log() -> str:
    """The last lines of the service's log, where systemd keeps one and lets this user read it."""
    if shutil.which("journalctl") is None:
        return "no journalctl here\n"
    command = ["journalctl", "--no-pager", "--quiet", "-u", UNIT, "-n", str(LOG_LINES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=LOG_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}\n"
    return done.stdout[-_MOST_TEXT:] or done.stderr[-_MOST_TEXT:] or "no lines\n"


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_TEXT).decode(errors="replace")
    except OSError as error:
        return f"cannot be read ({error.strerror})\n"


def _or_why(make: Any) -> str:
    try:
        return _json(make())
    except SparsefleetError as error:
        return _json({"error": str(error)})


def _json(value: object) -> str:
    from edge_agent.state_view import as_json

    return json.dumps(json.loads(as_json(value)), indent=1) + "\n"
