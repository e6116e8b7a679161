"""The operator's commands about who belongs to the fleet: tokens, revocation, and identities in the list of devices."""

import json
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from coordinator.reports import DeviceRow
from coordinator.settings import Settings
from coordinator.trust import DATABASE, MAX_TOKENS, Trust, authority_and_trust
from protocol.errors import ConfigurationError, NothingToDoError
from protocol.ownership import as_owner
from protocol.topics import check_name

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST_TTL_S = 30 * 86400.0


def token(settings: Settings, count: int, ttl: str, device: str | None, *, as_json: bool) -> int:
    """Prints tokens, one a line, and nothing else to standard output; makes the CA if there is none yet."""
    if not 1 <= count <= MAX_TOKENS:
        raise ConfigurationError(f"--count: {count} is outside 1..{MAX_TOKENS}")
    ttl_s = _seconds(ttl)
    if device is not None:
        if count != 1:
            raise ConfigurationError(f"--count: {count} tokens for one device are {count - 1} too many; leave it out")
        try:
            check_name("device", device)
        except ValueError as error:
            raise ConfigurationError(f"--{error}") from None
    now_s = time.time()
    folder = Path(settings.trust.folder)
    with as_owner(folder):
        authority, trust = authority_and_trust(folder, now_s)
        tokens = trust.make_tokens(authority.fingerprint, count, ttl_s, now_s, device)
    if as_json:
        said = {"tokens": [t.text for t in tokens], "ends_s": now_s + ttl_s, "port": settings.trust.port}
        print(json.dumps(said | {"fingerprint": authority.fingerprint.hex()}))
        return 0
    for made in tokens:
        print(made.text)
    ends = time.strftime("%Y-%m-%d %H:%M", time.localtime(now_s + ttl_s))
    print(
        f"each enrols one device until {ends}, while the coordinator runs: edge-agent enroll "
        f"--url THIS-HOST:{settings.trust.port} --device {device or 'NAME'} --token TOKEN",
        file=sys.stderr,
    )
    return 0


def revoke(settings: Settings, device: str, *, as_json: bool) -> int:
    """Revokes all that a device was issued. Raises NothingToDoError for one that has nothing that stands."""
    folder = Path(settings.trust.folder)
    with as_owner(folder):
        count = Trust(folder).revoke(device, time.time()) if (folder / DATABASE).exists() else 0
    if not count:
        raise NothingToDoError(f"{device}: has no identity that could be revoked; fleet-coordinator devices lists them")
    if as_json:
        print(json.dumps({"device": device, "revoked": count}))
    else:
        print(
            f"{device}: revoked, from its next message on; to take it in again: fleet-coordinator token "
            f"--device {device}"
        )
    return 0


def with_identities(rows: Iterable[DeviceRow], folder: Path) -> tuple[DeviceRow, ...]:
    """The rows, each with the device's identity, and one for each device that was enrolled and never came."""
    with as_owner(folder):
        if not (folder / DATABASE).exists():
            return tuple(rows)
        known = {identity.device: identity for identity in Trust(folder).identities()}
    now_s = time.time()
    found = {row.device: row for row in rows}
    for device, identity in known.items():
        row = found.get(device) or _stranger(device)
        found[device] = replace(row, identity=identity.state(now_s), identity_ends_s=identity.ends_s)
    return tuple(found[device] for device in sorted(found))


def _stranger(device: str) -> DeviceRow:
    return DeviceRow(
        device=device,
        present=False,
        examples=None,
        backend="",
        variant=None,
        rounds=0,
        accepted=0,
        rejected=0,
        bytes_up=0,
        bytes_down=0,
        codec=None,
        bytes_today=0,
        rests=None,
        last_loss=None,
        step_ms=None,
        last_seen_s=None,
        late=0,
        discarded=0,
        warning=None,
    )


def _seconds(ttl: str) -> float:
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", ttl)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 1.0 <= seconds <= LONGEST_TTL_S:
        raise ConfigurationError(f"--ttl: {ttl!r} must be a number with s, m, h or d behind it, at most 30d, as in 1h")
    return seconds
