"""Who may join and who belongs to the fleet: tokens, and certificates by device, in one SQLite file beside the CA.

Its writers are short: the endpoint that enrols devices, and the operator's commands, whether a coordinator runs or not.
A token is burnt in the transaction that stores its certificate. Of its secret only the hash is kept.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from coordinator.authority import Authority, Certificate, locked
from protocol.database import transaction
from protocol.disk import disk_named
from protocol.errors import ConfigurationError, Rejection
from protocol.private_files import make_private_folder
from protocol.token import Token, new_token
from protocol.topics import NAME, RESERVED_DEVICES

SCHEMA = 1
DATABASE = "trust.sqlite"
# How long one writer waits for another; each takes milliseconds.
BUSY_S = 10.0
# What is printed at once by one command; a larger fleet runs it again.
MAX_TOKENS = 10_000

_TABLES = """
CREATE TABLE tokens (
  hash BLOB PRIMARY KEY, device TEXT, made_s REAL NOT NULL, ends_s REAL NOT NULL, used_s REAL, used_for TEXT
) WITHOUT ROWID;
CREATE TABLE certificates (
  serial TEXT PRIMARY KEY, device TEXT NOT NULL, key BLOB NOT NULL, certificate BLOB NOT NULL,
  issued_s REAL NOT NULL, ends_s REAL NOT NULL, revoked_s REAL
) WITHOUT ROWID;
CREATE INDEX certificates_of ON certificates (device);
"""

# A device's certificates are dropped from the list when they have been expired for so long.
FORGET_S = 90 * 86400.0
# A device that renews more often than this in a day has lost its mind, or wants our disk.
MAX_RENEWALS_A_DAY = 24

Issue = Callable[[str], Certificate | Rejection]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a device was issued last. revoked_s: when all of it was revoked, None while some of it stands."""

    device: str
    ends_s: float
    revoked_s: float | None

    def state(self, now_s: float) -> str:
        if self.revoked_s is not None:
            return "revoked"
        return "valid" if now_s < self.ends_s else "expired"


class Trust:
    """The file in the trust folder, made if there is none. For any number of threads and processes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / DATABASE
        make_private_folder(folder)
        # SQLite gives a file that it makes to everybody whom the umask lets. One that is there is not to be touched: to
        # close any descriptor of it lets go of all locks that this process has on it.
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with disk_named(folder), locked(folder), closing(self.connect()) as sql:
            sql.execute("PRAGMA journal_mode=WAL")
            with transaction(sql):
                version = sql.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    for statement in _TABLES.split(";"):
                        sql.execute(statement)
                    sql.execute(f"PRAGMA user_version={SCHEMA}")
            if version > SCHEMA:
                raise ConfigurationError(
                    f"{self.path}: schema version {version} was written by a newer version of sparsefleet; this one "
                    f"reads up to {SCHEMA}; upgrade it"
                )

    def connect(self) -> sqlite3.Connection:
        """A connection for one thread."""
        sql = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
        # A revocation must outlive a power cut as much as a certificate.
        sql.execute("PRAGMA synchronous=FULL")
        return sql

    def make_tokens(
        self, fingerprint: bytes, count: int, ttl_s: float, now_s: float, device: str | None = None
    ) -> tuple[Token, ...]:
        """New tokens for one use each. device: the one that they are for, which they also let in again."""
        tokens = tuple(new_token(fingerprint) for _ in range(count))
        with closing(self.connect()) as sql, transaction(sql):
            sql.execute("DELETE FROM tokens WHERE ends_s < ?", (now_s - FORGET_S,))
            rows = [(_hash(token.secret), device, now_s, now_s + ttl_s) for token in tokens]
            sql.executemany("INSERT INTO tokens (hash, device, made_s, ends_s) VALUES (?, ?, ?, ?)", rows)
        return tokens

    def redeem(self, secret: bytes, device: str, now_s: float, issue: Issue) -> Certificate | Rejection:
        """Issues a device's first certificate for a token, and burns that, in one transaction. A refused request burns
        nothing; and who asks again with the same token and the same key, for want of the answer, gets the same
        certificate."""
        with closing(self.connect()) as sql, transaction(sql):
            used_for = _check_token(sql, secret, device, now_s)
            if isinstance(used_for, Rejection):
                return used_for
            issued = issue(device)
            if isinstance(issued, Rejection):
                return issued
            if used_for is not None:
                return _issued_before(sql, used_for, issued)
            # Whoever had the name before has it no more.
            sql.execute("UPDATE certificates SET revoked_s = ? WHERE device = ? AND revoked_s IS NULL", (now_s, device))
            _insert(sql, issued)
            sql.execute(
                "UPDATE tokens SET used_s = ?, used_for = ? WHERE hash = ?",
                (now_s, str(issued.serial), _hash(secret)),
            )
        return issued

    def renew(self, serial: int, now_s: float, issue: Issue) -> Certificate | Rejection:
        """Issues the next certificate to whoever holds this one."""
        with closing(self.connect()) as sql, transaction(sql):
            device = _check_holder(sql, serial, now_s)
            if isinstance(device, Rejection):
                return device
            issued = issue(device)
            if isinstance(issued, Certificate):
                sql.execute("DELETE FROM certificates WHERE ends_s < ?", (now_s - FORGET_S,))
                _insert(sql, issued)
        return issued

    def revoke(self, device: str, now_s: float) -> int:
        """Revokes all that a device was issued, and returns how many certificates that were."""
        with closing(self.connect()) as sql, transaction(sql):
            return sql.execute(
                "UPDATE certificates SET revoked_s = ? WHERE device = ? AND revoked_s IS NULL", (now_s, device)
            ).rowcount

    def identities(self) -> tuple[Identity, ...]:
        """Of every device that was ever enrolled, by name."""
        with closing(self.connect()) as sql:
            return read_identities(sql)

    def revoked(self) -> tuple[tuple[int, float], ...]:
        """Serial numbers of what was revoked, each with when."""
        with closing(self.connect()) as sql:
            rows = sql.execute("SELECT serial, revoked_s FROM certificates WHERE revoked_s IS NOT NULL").fetchall()
        return tuple((int(serial), at_s) for serial, at_s in rows)


class Admission:
    """Whether a message of a device is heard: at each, with what the file says now. For one thread.

    A look at whether another has written takes microseconds; only then is anything read again.
    """

    def __init__(self, trust: Trust, wall: Callable[[], float]) -> None:
        self._sql, self._wall = trust.connect(), wall
        self._version = -1
        self._known: dict[str, Identity] = {}

    def close(self) -> None:
        self._sql.close()

    def changed(self) -> bool:
        """Whether identities were written since the last look; takes them in."""
        version = self._sql.execute("PRAGMA data_version").fetchone()[0]
        if version == self._version:
            return False
        self._version = version
        self._known = {identity.device: identity for identity in read_identities(self._sql)}
        return True

    def revoked(self) -> frozenset[str]:
        """Devices that have nothing left that stands."""
        return frozenset(device for device, identity in self._known.items() if identity.revoked_s is not None)

    def __call__(self, device: str) -> Rejection | None:
        self.changed()
        identity = self._known.get(device)
        if identity is None:
            return Rejection("not-enrolled", "this device has no identity in this fleet")
        state = identity.state(self._wall())
        if state == "revoked":
            return Rejection("revoked", "this device's identity was revoked")
        return Rejection("expired", "this device's certificate has expired") if state == "expired" else None


def authority_and_trust(folder: Path, now_s: float) -> tuple[Authority, Trust]:
    """The CA and its file, made if there are none."""
    return Authority(folder, now_s), Trust(folder)


def read_identities(sql: sqlite3.Connection) -> tuple[Identity, ...]:
    """One row a device: of what still stands the one that ends last, else what was revoked last."""
    rows = sql.execute(
        "SELECT device, max(CASE WHEN revoked_s IS NULL THEN ends_s END), max(ends_s), max(revoked_s) "
        "FROM certificates GROUP BY device ORDER BY device"
    )
    return tuple(
        Identity(device, last_s if stands_s is None else stands_s, revoked_s if stands_s is None else None)
        for device, stands_s, last_s, revoked_s in rows
    )


def _check_token(sql: sqlite3.Connection, secret: bytes, device: str, now_s: float) -> str | Rejection | None:
    """None for a token that may be used now, or the serial number that it was used for."""
    row = sql.execute("SELECT device, ends_s, used_for FROM tokens WHERE hash = ?", (_hash(secret),)).fetchone()
    if row is None:
        return Rejection("token", "there is no such token; ask for a new one")
    bound, ends_s, used_for = row
    if now_s >= ends_s:
        return Rejection("token-expired", "this token has expired; ask for a new one")
    if used_for is not None:
        return str(used_for)
    if not NAME.fullmatch(device) or device in RESERVED_DEVICES:
        return Rejection("device", "the name must be 2 to 63 characters of a-z, 0-9 and '-', and none that is reserved")
    if bound is not None and bound != device:
        return Rejection("device", "this token is for another device")
    taken = sql.execute("SELECT 1 FROM certificates WHERE device = ? LIMIT 1", (device,)).fetchone() is not None
    if bound is None and taken:
        return Rejection(
            "device-taken",
            "a device of this name was enrolled before; choose another name, or ask for a token that is for this "
            "device: fleet-coordinator token --device NAME",
        )
    return None


def _issued_before(sql: sqlite3.Connection, serial: str, asked: Certificate) -> Certificate | Rejection:
    """What a used token was used for, if it is the same device with the same key that asks again."""
    row = sql.execute(
        "SELECT device, key, certificate, issued_s, ends_s, revoked_s FROM certificates WHERE serial = ?", (serial,)
    ).fetchone()
    if row is None or row[:2] != (asked.name, asked.key) or row[5] is not None:
        return Rejection("token-used", "this token was used before; each is for one device. Ask for a new one")
    return Certificate(row[0], int(serial), row[1], row[2], row[3], row[4])


def _check_holder(sql: sqlite3.Connection, serial: int, now_s: float) -> str | Rejection:
    """The device that holds a certificate which may be renewed."""
    row = sql.execute("SELECT device, ends_s, revoked_s FROM certificates WHERE serial = ?", (str(serial),)).fetchone()
    if row is None:
        return Rejection("unknown-certificate", "it was not issued here, or long ago; enrol with a new token")
    device, ends_s, revoked_s = row
    if revoked_s is not None:
        return Rejection("revoked", "this certificate was revoked; ask for a token")
    if now_s >= ends_s:
        return Rejection("expired", "this certificate has expired; enrol with a new token")
    recent = sql.execute(
        "SELECT count(*) FROM certificates WHERE device = ? AND issued_s > ?", (device, now_s - 86400.0)
    ).fetchone()[0]
    if recent >= MAX_RENEWALS_A_DAY:
        return Rejection("too-often", f"{recent} certificates in a day are enough; come back tomorrow")
    return str(device)


def _insert(sql: sqlite3.Connection, issued: Certificate) -> None:
    sql.execute(
        "INSERT INTO certificates (serial, device, key, certificate, issued_s, ends_s) VALUES (?, ?, ?, ?, ?, ?)",
        (str(issued.serial), issued.name, issued.key, issued.der, issued.issued_s, issued.ends_s),
    )


def _hash(secret: bytes) -> bytes:
    # 128 random bits need no slow hash.
    return hashlib.sha256(secret).digest()
