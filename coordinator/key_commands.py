"""The operator's commands about the fleet's signing keys: which there are, and the next ones."""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coordinator.authority import Authority, locked
from coordinator.fleet_keys import FleetKeys, load_keys, new_online, new_release, open_keys
from coordinator.settings import Settings
from protocol.errors import ConfigurationError, NothingToDoError
from protocol.ownership import as_owner
from protocol.private_files import check_private
from protocol.records import write_record
from protocol.signing import PUBLIC_BYTES, Signer, key_id, load_signer


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key in force. private: where its private half is. expires_s: None of what holds until it is replaced."""

    key: Literal["release", "online"]
    id: str
    ring: int
    private: Literal["here", "elsewhere"]
    expires_s: float | None


def key_rows(keys: FleetKeys) -> tuple[KeyRow, ...]:
    """All keys in force, those of releases first."""
    here = {signer.key_id for signer in (keys.online, keys.release) if signer is not None}

    def row(kind: Literal["release", "online"], public: bytes, expires_s: float | None) -> KeyRow:
        own = key_id(public)
        return KeyRow(kind, own.hex(), keys.ring.version, "here" if own in here else "elsewhere", expires_s)

    released = [row("release", public, None) for public in keys.ring.release]
    return (*released, *(row("online", online.key, float(online.expires)) for online in keys.ring.online))


def listed(settings: Settings) -> tuple[KeyRow, ...]:
    """The keys in force of a fleet that has some. Raises NothingToDoError."""
    folder = Path(settings.trust.folder)
    with as_owner(folder):
        if not (folder / "keys").exists():
            raise NothingToDoError("this fleet has no keys yet; they are made when devices first need certificates")
        return key_rows(opened(settings))


def opened(settings: Settings) -> FleetKeys:
    """The fleet's keys, made if there are none, as the CA is."""
    folder, now_s = Path(settings.trust.folder), time.time()
    Authority(folder, now_s)
    return open_keys(folder, settings.fleet, now_s)


def rotate(settings: Settings, options: argparse.Namespace) -> FleetKeys:
    """The next ring of keys. Raises ConfigurationError."""
    if options.public is not None and not options.release:
        raise ConfigurationError("--public: is of a release key; use it with --release")
    # The operator's own files, which the coordinator's user may not be able to read.
    given = None if options.key is None else _given(options.key)
    public = None if options.public is None else _public(options.public)
    folder, now_s = Path(settings.trust.folder), time.time()
    with as_owner(folder):
        opened(settings)
        with locked(folder):
            # Once more: another may have rotated them since.
            keys = load_keys(folder / "keys", settings.fleet)
            release = given or keys.release
            if release is None:
                raise ConfigurationError(f"--key: the release key is not in {keys.folder}; name the file that it is in")
            if options.release:
                return new_release(keys, release, public, now_s)
            return new_online(keys, release, now_s, options.days)


def print_rotated(keys: FleetKeys, *, as_json: bool) -> int:
    """Says what is in force now."""
    rows = key_rows(keys)
    if as_json:
        print(json.dumps({"ring": keys.ring.version, "keys": [write_record(row) for row in rows]}))
        return 0
    print(f"ring {keys.ring.version}: " + ", ".join(f"{row.key} {row.id} ({row.private})" for row in rows))
    if keys.release is None:
        print("the release key is elsewhere: sign every new bundle there, with fleet-export sign")
    return 0


def _given(path: Path) -> Signer:
    """The release key that is kept elsewhere."""
    try:
        check_private(path)
        return load_signer(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"--key: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigurationError(f"--key: {path}: {error}") from None


def _public(path: Path) -> bytes:
    """32 bytes in hex, as fleet-export release-key writes them."""
    try:
        public = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise ConfigurationError(f"--public: {path} cannot be read ({error.strerror})") from None
    except ValueError:
        public = b""
    if len(public) != PUBLIC_BYTES:
        raise ConfigurationError(f"--public: {path} is not the .pub file that fleet-export release-key wrote")
    return public
