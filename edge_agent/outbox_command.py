"""`edge-agent outbox list|show|retry|export|purge`: the updates that wait for their receipt, and what to do about them.

An update is this device's until its receipt: nothing here lets go of one but `purge`, which is asked twice and counted.
"""

import argparse
import io
import logging
import os
import sys
import tarfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.options import add_config, add_json
from protocol.command import Parser
from protocol.errors import ConfigurationError, NothingToDoError, SparsefleetError
from protocol.ownership import as_owner

if TYPE_CHECKING:
    from edge_agent.state_view import Waiting

EPILOG = """\
examples:
  edge-agent outbox list
  edge-agent outbox retry                                # offer now what waits
  edge-agent outbox export RUN/12 -o update.tar          # the update and what it says of itself, in a file
  edge-agent outbox purge --older 30d --yes              # let go of it for ever; the agent must be stopped
exit codes: 0 ok, 1 failure, 2 nothing waits, 3 configuration"""

PURGED = "purged-by-operator"
# The folder is the service's user's, and this may be root: neither a link nor a pipe that was put there is followed.
_ASKS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

log = logging.getLogger("edge-agent")


def add_parser(commands: "argparse._SubParsersAction[Parser]") -> None:
    outbox = commands.add_parser(
        "outbox",
        help="list, show, offer, export or purge the updates that wait",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = outbox.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, text: str, example: str = "") -> Parser:
        return actions.add_parser(name, help=text, epilog=f"example: edge-agent outbox {name}{example}")

    listing = add("list", "what waits, oldest first", " --json")
    show = add("show", "all that is known of one update", " 12")
    retry = add("retry", "offer everything now: in a running agent within seconds, or as it starts")
    export = add("export", "write an update and what it says of itself to a .tar file", " 12 -o update.tar")
    purge = add(
        "purge", "let go of updates for ever; counted, never folded; the agent is stopped", " --older 30d --yes"
    )
    for action, command in ((listing, _list), (show, _show), (retry, _retry), (export, _export), (purge, _purge)):
        add_config(action)
        add_json(action)
        action.set_defaults(command=command)
    for action in (show, export):
        action.add_argument("task", help="as list shows it: RUN/ROUND, or ROUND alone")
    purge.add_argument("task", nargs="?", help="of one update alone (default: all)")
    export.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="must not be there yet")
    purge.add_argument("--older", metavar="AGE", help="only what waits for longer, as 12h or 30d")
    purge.add_argument("--yes", action="store_true", help="do it: without it, it is only said what would go")


def facts(one: "Waiting", offered_s: float | None) -> dict[str, Any]:
    """What --json says of an update."""
    offer = one.offer
    return {
        "task": offer.task,
        "round": offer.round,
        "bytes": offer.blob.size,
        "since_s": one.since_s,
        "codec": offer.codec,
        "offered_s": offered_s,
        "digest": offer.blob.digest.hex(),
        "base": offer.base.hex(),
        "variant": offer.variant,
        "examples": offer.examples,
        "steps": offer.steps,
        "loss": offer.loss,
        "train_s": offer.train_s,
    }


def _list(options: argparse.Namespace) -> int:
    from edge_agent.state_view import as_json

    rows = [facts(one, offered) for one, offered in waiting(_state(options))]
    if options.json:
        print(as_json({"updates": rows}))
    elif rows:
        print(f"{'task':28}{'bytes':>12}  {'since':22}{'offered last':22}codec")
        for row in rows:
            times = f"{_when(row['since_s']):22}{_when(row['offered_s']):22}"
            print(f"{row['task']:28}{row['bytes']:>12,}  {times}{row['codec']}")
    else:
        print("nothing waits")
    return 0 if rows else NothingToDoError.exit_code


def _show(options: argparse.Namespace) -> int:
    from edge_agent.state_view import as_json

    row = facts(*_named(_state(options), options.task))
    print(as_json(row) if options.json else "\n".join(f"{name:12}{value}" for name, value in row.items()))
    return 0


def _retry(options: argparse.Namespace) -> int:
    from edge_agent.state_view import as_json, running
    from edge_agent.status import RETRY_FILE

    state = _state(options)
    count = len(waiting(state))
    if not count:
        raise NothingToDoError(f"{state}: nothing waits in the outbox")
    pid = running(state)
    if pid is not None:
        try:
            with as_owner(state):
                os.close(os.open(state / RETRY_FILE, _ASKS, 0o600))
        except OSError as error:
            raise SparsefleetError(f"{state}: {error.strerror}; ask as the user that the agent runs as") from None
    when = "when the agent starts" if pid is None else "by the running agent, within seconds, if it is connected"
    print(as_json({"updates": count, "running": pid is not None}) if options.json else f"{count} are offered {when}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from edge_agent.state_view import as_json, payload

    state = _state(options)
    one, offered = _named(state, options.task)
    files = {"offer.json": as_json(facts(one, offered)).encode() + b"\n", "payload": payload(state, one.offer)}
    write_archive(options.out, files, "w")
    said = {"out": str(options.out), "task": one.offer.task, "bytes": one.offer.blob.size}
    print(as_json(said) if options.json else f"{options.out}: update of {one.offer.task}; it also stays in the outbox")
    return 0


def _purge(options: argparse.Namespace) -> int:
    from edge_agent.settings import load
    from edge_agent.state_view import as_json
    from edge_agent.store import AgentStore

    older_s = None if options.older is None else _age(options.older)
    state = _state(options)
    chosen = [_named(state, options.task)] if options.task else waiting(state)
    # An age that nobody knows is not over any limit.
    going = [w for w, _ in chosen if older_s is None or (w.since_s is not None and time.time() - w.since_s > older_s)]
    if not going:
        waits = "nothing waits in the outbox" if older_s is None else f"no update has waited for {options.older}"
        raise NothingToDoError(f"{state}: {waits}")
    tasks = [one.offer.task for one in going]
    if not options.yes:
        train_s = sum(one.offer.train_s for one in going)
        raise SparsefleetError(
            f"{', '.join(tasks)}: would be let go of for ever: the work of {train_s:.0f} s of training, "
            "which no model will hold. Say so with --yes; edge-agent outbox export keeps a copy"
        )
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = load(options.config)
    # Refused while an agent has the folder, which would go on offering what is gone.
    with as_owner(state), closing(AgentStore(state, settings.limits.disk_mib << 20)) as store:
        for one in going:
            if store.settle(one.offer.blob.digest, one.offer.task, accepted=False, reason=PURGED) is not None:
                log.warning("update discarded task=%s %s bytes=%d", one.offer.task, PURGED, one.offer.blob.size)
    print(as_json({"purged": tasks}) if options.json else f"{len(tasks)} let go of, and counted as {PURGED}")
    return 0


def write_archive(path: Path, files: dict[str, bytes], mode: str) -> None:
    """A tar file of mode 0600 that was not there before; "w" or "w:gz". Raises ConfigurationError."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(data))
    try:
        with open(path, "xb", opener=_private) as file:
            file.write(buffer.getvalue())
    except OSError as error:
        raise ConfigurationError(f"-o: {path} cannot be written ({error.strerror}); name another file") from None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _state(options: argparse.Namespace) -> Path:
    from edge_agent.settings import load, state_folder
    from edge_agent.state_view import open_to_us

    return open_to_us(state_folder(load(options.config), options.config))


def waiting(state: Path) -> "list[tuple[Waiting, float | None]]":
    """What waits, with when it was offered last."""
    from edge_agent.state_view import kept
    from edge_agent.status import read_status

    found, said = kept(state), read_status(state)
    offered = said.offered_s if said else None
    # What was kept after the last offer was made was not in it.
    return [
        (one, offered if offered and one.since_s and offered > one.since_s else None)
        for one in (found.outbox if found else ())
    ]


def _named(state: Path, task: str) -> "tuple[Waiting, float | None]":
    there = waiting(state)
    found = [one for one in there if task in (one[0].offer.task, str(one[0].offer.round))]
    if len(found) != 1:
        names = ", ".join(one.offer.task for one, _ in there) or "nothing"
        said = "no update of that task waits" if not found else "several updates are of that round; give RUN/ROUND"
        raise ConfigurationError(f"{task}: {said}; waiting: {names}")
    return found[0]


def _age(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    if not number.isdigit() or unit not in _UNITS:
        raise ConfigurationError(f"--older: {text!r} must be a number and one of {', '.join(_UNITS)}, as 30d")
    return int(number) * _UNITS[unit]


def _when(at_s: float | None) -> str:
    return "-" if at_s is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s))
