"""`edge-agent model`: the bundles in this device's slots, and an operator's word on them, agent running or not."""

import argparse
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent import settings as agent_settings
from edge_agent.probes import forget
from edge_agent.slots import FEWEST, SAID, Slot, Slots, folder_of
from edge_agent.store import FILE, LOST
from edge_agent.trial import software
from protocol.database import check_before_writing, damage_named
from protocol.disk import LOCAL, folder_bytes
from protocol.errors import BundleError, ConfigurationError, NothingToDoError
from protocol.manifest import MANIFEST_FILE, Manifest, parse_manifest
from protocol.ownership import as_owner

_TAKES_EFFECT = "a running agent follows when its trial's steps are done, or with its next task"


@dataclass(frozen=True, slots=True)
class Seen:
    """A slot as it is shown. standing: its state, and of a committed one whether it is in use or held for rollback."""

    slot: Slot
    standing: str
    bytes: int
    folder: Path

    @property
    def facts(self) -> dict[str, Any]:
        slot = self.slot
        return {
            "digest": slot.digest.hex(),
            "version": slot.version,
            "state": slot.state,
            "current": self.standing == "committed",
            "since": _time(slot.since_s),
            "bytes": self.bytes,
            "trials": slot.begun,
            "failure": slot.failure,
            "detail": slot.detail,
            "software": slot.software,
        }


def list_slots(options: argparse.Namespace) -> int:
    """Prints every slot, the newest first."""
    with _opened(options.config) as (slots, folder):
        seen = _all(slots, folder)
        highest = slots.highest
    if options.json:
        print(json.dumps({"highest_version": highest, "slots": [one.facts for one in seen]}))
    else:
        print(f"{'DIGEST':14}{'VERSION':>8}  {'STATE':10}{'SINCE':22}{'BYTES':>12}  WHY")
        print("\n".join(_row(one) for one in seen))
    return 0


def show(options: argparse.Namespace) -> int:
    """Prints what is known of one slot, and of its bundle."""
    with _opened(options.config) as (slots, folder):
        seen = _named(_all(slots, folder), options.name)
    facts = {**seen.facts, "bundle": _bundle_facts(seen.folder)}
    if options.json:
        print(json.dumps(facts))
        return 0
    bundle = facts.pop("bundle")
    lines = [f"{key:12}{'-' if value in (None, '') else value}" for key, value in facts.items()]
    if bundle is None:
        lines.append("bundle      its files are not on this disk")
    else:
        lines += [f"{key:12}{_said(value)}" for key, value in bundle.items()]
    print("\n".join(lines))
    return 0


def commit(options: argparse.Namespace) -> int:
    """Ends a trial well, by hand."""
    with _opened(options.config) as (slots, folder):
        seen = _all(slots, folder)
        trials = [one for one in seen if one.slot.state == "trial"]
        chosen = _named(seen, options.name) if options.name else trials[0] if trials else None
        if chosen is None or not slots.commit(chosen.slot.digest):
            what = "no bundle is" if chosen is None else f"bundle {chosen.slot.name} is {chosen.standing} and not"
            raise NothingToDoError(f"{what} on trial; see: edge-agent model list")
    print(f"committed {chosen.slot.name} by hand; {_TAKES_EFFECT}")
    return 0


def rollback(options: argparse.Namespace) -> int:
    """Goes back to the slot before, and marks the present one as failed."""
    with _opened(options.config) as (slots, _):
        held = slots.all()
        trials, committed = [slot for slot in held if slot.state == "trial"], slots.committed()
        if not trials and len(committed) < 2:
            raise NothingToDoError("there is no earlier bundle to go back to; see: edge-agent model list")
        present = trials[-1] if trials else committed[0]
        slots.fail(present.digest, "by hand", "rolled back with edge-agent model rollback")
        left = slots.committed()
    to = f"back on {left[0].name}" if left else "this device has no earlier one"
    print(f"rolled back {present.name}: {to}; {_TAKES_EFFECT}")
    return 0


def retry(options: argparse.Namespace) -> int:
    """Forgets that a bundle failed, so that it is tried again when it is offered."""
    with _opened(options.config) as (slots, folder):
        chosen = _named(_all(slots, folder), options.name)
        if not slots.retry(chosen.slot.digest):
            raise NothingToDoError(f"bundle {chosen.slot.name} is {chosen.standing}; only failed ones are tried again")
        forget(folder.parent, chosen.slot.digest)
    print(f"{chosen.slot.name} is tried again with the next task on it")
    return 0


@contextmanager
def _opened(config: Path) -> Iterator[tuple[Slots, Path]]:
    """The slots of a configuration's state folder, and the folder of its bundles."""
    state = agent_settings.state_folder(agent_settings.load(config), config)
    path = state / FILE
    nothing = f"{state}: no agent has run here yet; start one with edge-agent run"
    if not path.is_file() or path.stat().st_size == 0:
        raise NothingToDoError(nothing)
    with as_owner(state):
        check_before_writing(path, LOST, lambda _: None)
        try:
            # Not "rwc": what is not there is not made.
            database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise ConfigurationError(
                f"{path}: {error}; run this as the user that edge-agent runs as, or as root"
            ) from None
        with closing(database), damage_named(path, LOST):
            yield Slots(database, software()), state / "bundles"


def _all(slots: Slots, folder: Path) -> list[Seen]:
    """Every slot, the newest change first. Raises NothingToDoError where there is none."""
    found, current = slots.all(), {slot.digest for slot in slots.committed()[:1]}
    if not found:
        raise NothingToDoError("no bundle has been tried on this device yet: the coordinator's first task brings one")
    seen = []
    for slot in reversed(found):
        earlier = slot.state == "committed" and slot.digest not in current
        place = folder / folder_of(slot.digest)
        seen.append(Seen(slot, "earlier" if earlier else slot.state, folder_bytes(LOCAL, place), place))
    return seen


def _named(seen: list[Seen], name: str) -> Seen:
    """The slot of a version, or of a digest that begins so. Raises NothingToDoError."""
    found = [one for one in seen if str(one.slot.version) == name]
    if not found and len(name) >= FEWEST:
        found = [one for one in seen if one.slot.digest.hex().startswith(name.lower())]
    if len(found) != 1:
        what = "no slot is" if not found else f"{len(found)} slots are"
        raise NothingToDoError(
            f"{what} called {name!r}: give a version, or {FEWEST} or more digits of a digest of edge-agent model list"
        )
    return found[0]


def _bundle_facts(folder: Path) -> dict[str, Any] | None:
    """What the manifest on this disk says; None where there is none that can be read."""
    try:
        manifest = parse_manifest((folder / MANIFEST_FILE).read_bytes())
    except (OSError, BundleError):
        return None
    return {
        "line": manifest.line,
        "line_version": manifest.version,
        "parameters": manifest.parameters,
        "variants": [variant.name for variant in manifest.variants],
        "backends": _backends(manifest),
        "record": manifest.reference is not None,
    }


def _backends(manifest: Manifest) -> dict[str, str]:
    """Each with the runtime that it requires."""
    return {name: one.requires for variant in manifest.variants for name, one in variant.backends.items()}


def _row(seen: Seen) -> str:
    slot = seen.slot
    version = "-" if slot.version is None else slot.version
    why = f"{slot.failure}: {slot.detail}"[:60] if slot.failure else ""
    since = _time(slot.since_s)
    return f"{slot.digest.hex()[:SAID]:14}{version:>8}  {seen.standing:10}{since:22}{seen.bytes:>12,}  {why}".rstrip()


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} ({needs})" for name, needs in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


ACTIONS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "list": list_slots,
    "show": show,
    "commit": commit,
    "rollback": rollback,
    "retry": retry,
}
