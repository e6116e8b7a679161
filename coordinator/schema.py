"""The tables of the coordinator's store, and how the file is opened: for its one writer, or to read beside it."""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from protocol.database import check_before_writing, damaged
from protocol.disk import LOCAL, Disk, disk_named, exists, is_disk_trouble
from protocol.errors import ConfigurationError, NothingToDoError

VERSION = 15
DATABASE = "coordinator.sqlite"
LOCK = "lock"
# What it costs to do without a state folder.
LOST = "a new run begins, without the models and updates of this one"

# Of fleets without a hub.
_GOSSIP = """
CREATE TABLE own_held_out (
  round INTEGER NOT NULL, device TEXT NOT NULL, examples INTEGER NOT NULL, loss REAL NOT NULL, accuracy REAL,
  PRIMARY KEY (round, device)
) WITHOUT ROWID;
CREATE TABLE council (
  one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, members INTEGER NOT NULL, distance REAL,
  council BLOB NOT NULL
);
CREATE TABLE consensus (
  round INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, members INTEGER NOT NULL, distance REAL,
  gossip_rounds INTEGER NOT NULL, local_steps INTEGER NOT NULL
);
"""
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE devices (
  device TEXT PRIMARY KEY, agent TEXT NOT NULL, backend TEXT NOT NULL, present INTEGER NOT NULL DEFAULT 0,
  examples INTEGER, last_loss REAL, step_ms REAL, last_seen_s REAL NOT NULL,
  resting_day INTEGER, doubled_s REAL, left_out INTEGER, paused TEXT
) WITHOUT ROWID;
CREATE TABLE traffic (
  device TEXT NOT NULL, direction TEXT NOT NULL, boot INTEGER NOT NULL, sent_bytes INTEGER NOT NULL,
  earlier_bytes INTEGER NOT NULL, day INTEGER NOT NULL DEFAULT 0, before_bytes INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (device, direction)
) WITHOUT ROWID;
CREATE TABLE models (
  version INTEGER PRIMARY KEY, digest BLOB NOT NULL, size INTEGER NOT NULL, kept INTEGER NOT NULL DEFAULT 1,
  server_state BLOB NOT NULL, loss REAL, metrics TEXT NOT NULL, structure BLOB,
  public BLOB, difference BLOB, difference_size INTEGER, trust TEXT, folded BLOB, distilled TEXT
);
CREATE TABLE rounds (
  round INTEGER PRIMARY KEY, state TEXT NOT NULL, base_version INTEGER NOT NULL, opened_s REAL NOT NULL,
  up_before INTEGER NOT NULL, down_before INTEGER NOT NULL, extensions INTEGER NOT NULL DEFAULT 0,
  version INTEGER, devices INTEGER, accuracy REAL, loss REAL, seconds REAL, overhead_s REAL, evaluation_s REAL,
  fold_s REAL, bytes_up INTEGER, bytes_down INTEGER, opened_uptime_s REAL NOT NULL DEFAULT 0
);
CREATE TABLE tasks (
  round INTEGER NOT NULL, device TEXT NOT NULL, phase TEXT NOT NULL, task BLOB NOT NULL,
  reason TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (round, device)
) WITHOUT ROWID;
CREATE TABLE updates (
  round INTEGER NOT NULL, device TEXT NOT NULL, update_boot INTEGER NOT NULL, update_sequence INTEGER NOT NULL,
  digest BLOB NOT NULL, size INTEGER NOT NULL, kept INTEGER NOT NULL DEFAULT 1, examples INTEGER NOT NULL,
  weight INTEGER NOT NULL, steps INTEGER NOT NULL, loss REAL NOT NULL, train_s REAL NOT NULL, codec TEXT NOT NULL,
  variant TEXT NOT NULL DEFAULT 'full', peak_mib REAL, fold INTEGER, discount REAL, discarded TEXT,
  norm REAL, buffers_norm REAL,
  UNIQUE (round, device), UNIQUE (device, update_boot, update_sequence)
);
CREATE TABLE held_out (
  round INTEGER NOT NULL, device TEXT NOT NULL, examples INTEGER NOT NULL, loss REAL NOT NULL, accuracy REAL,
  PRIMARY KEY (round, device)
) WITHOUT ROWID;
CREATE TABLE local_heads (
  round INTEGER NOT NULL, device TEXT NOT NULL, personal REAL NOT NULL, mixed REAL NOT NULL,
  PRIMARY KEY (round, device)
) WITHOUT ROWID;
CREATE TABLE receipts (
  device TEXT NOT NULL, update_boot INTEGER NOT NULL, update_sequence INTEGER NOT NULL, digest BLOB NOT NULL,
  round INTEGER NOT NULL, receipt BLOB NOT NULL,
  PRIMARY KEY (device, update_boot, update_sequence)
) WITHOUT ROWID;
CREATE TABLE rejections (
  round INTEGER NOT NULL, device TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL, detail TEXT NOT NULL,
  PRIMARY KEY (round, device, reason)
) WITHOUT ROWID;
CREATE TABLE decisions (round INTEGER NOT NULL, at_s REAL NOT NULL, what TEXT NOT NULL);
"""
# Of few rows among very many: what no fold has taken yet, and who still works for a closed round.
_INDEXES = """
CREATE INDEX waiting_updates ON updates (round) WHERE fold IS NULL AND discarded IS NULL;
CREATE INDEX folded_updates ON updates (fold);
CREATE INDEX carried_tasks ON tasks (round) WHERE phase = 'carried';
"""


# What brings a store of the version before up to each version.
_STEPS = {
    2: "ALTER TABLE updates ADD COLUMN variant TEXT NOT NULL DEFAULT 'full';",
    3: "ALTER TABLE models ADD COLUMN structure BLOB;",
    4: "ALTER TABLE updates ADD COLUMN peak_mib REAL;",
    5: (
        "ALTER TABLE models ADD COLUMN public BLOB; ALTER TABLE models ADD COLUMN difference BLOB; "
        "ALTER TABLE models ADD COLUMN difference_size INTEGER;"
    ),
    6: (
        "ALTER TABLE traffic ADD COLUMN day INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE traffic ADD COLUMN before_bytes INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE devices ADD COLUMN resting_day INTEGER;"
    ),
    # Until now a round's updates were those of its fold, which made the version of its number.
    7: (
        "ALTER TABLE updates ADD COLUMN fold INTEGER; ALTER TABLE updates ADD COLUMN discount REAL;"
        "ALTER TABLE updates ADD COLUMN discarded TEXT;"
        "ALTER TABLE rounds ADD COLUMN opened_uptime_s REAL NOT NULL DEFAULT 0;"
        "UPDATE updates SET fold = round, discount = 1.0 "
        "WHERE round IN (SELECT round FROM rounds WHERE state = 'committed');" + _INDEXES
    ),
    8: "ALTER TABLE devices ADD COLUMN doubled_s REAL;",
    9: (
        "ALTER TABLE updates ADD COLUMN norm REAL; ALTER TABLE updates ADD COLUMN buffers_norm REAL;"
        "ALTER TABLE models ADD COLUMN trust TEXT;"
    ),
    10: "ALTER TABLE devices ADD COLUMN left_out INTEGER; ALTER TABLE devices ADD COLUMN paused TEXT;",
    11: (
        "CREATE TABLE held_out (round INTEGER NOT NULL, device TEXT NOT NULL, examples INTEGER NOT NULL, "
        "loss REAL NOT NULL, accuracy REAL, PRIMARY KEY (round, device)) WITHOUT ROWID;"
    ),
    12: "ALTER TABLE models ADD COLUMN folded BLOB;",
    13: "ALTER TABLE models ADD COLUMN distilled TEXT;",
    14: _GOSSIP,
    15: (
        "CREATE TABLE local_heads (round INTEGER NOT NULL, device TEXT NOT NULL, personal REAL NOT NULL, "
        "mixed REAL NOT NULL, PRIMARY KEY (round, device)) WITHOUT ROWID;"
    ),
}


def lock_folder(state: Path, disk: Disk = LOCAL) -> Callable[[], None]:
    """Takes the folder for this process, until the returned function is called. Raises ConfigurationError."""
    try:
        disk.make_folder(state)
        # A predecessor may be on its last breath, and `locked` holds it for an instant.
        for _ in range(10):
            unlock = disk.lock(state / LOCK)
            if unlock is not None:
                return unlock
            time.sleep(0.05)
    except OSError as error:
        raise ConfigurationError(f"state: {state} cannot be used ({error.strerror}); name another folder") from None
    raise ConfigurationError(
        f"state: {state} is in use by another coordinator; stop it, or give this one a folder of its own"
    )


def locked(state: Path) -> bool:
    """Whether a coordinator runs on this folder."""
    try:
        descriptor = os.open(state / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _take(descriptor)
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def open_writer(state: Path, disk: Disk = LOCAL) -> sqlite3.Connection:
    """The store's file for its one writer, made if there is none. Raises DamagedError."""
    path = state / DATABASE
    if not (exists(disk, path) and disk.size(path)) and disk.names(state / "models"):
        raise damaged(path, "it is empty or gone, and models/ holds what it named", LOST)
    check_before_writing(path, LOST, lambda sql: _check_newer(_read_version(sql), path))
    connection = disk.database(state / DATABASE, None)
    version = _version(connection, state)
    connection.execute("PRAGMA journal_mode=WAL")
    # NORMAL may lose committed transactions at a power cut, and receipts were sent for them.
    connection.execute("PRAGMA synchronous=FULL")
    if version == 0:
        connection.executescript(f"BEGIN;{_TABLES}{_GOSSIP}{_INDEXES}PRAGMA user_version={VERSION};COMMIT;")
        disk.sync(state)
    elif version < VERSION:
        steps = "".join(_STEPS[number] for number in range(version + 1, VERSION + 1))
        connection.executescript(f"BEGIN;{steps}PRAGMA user_version={VERSION};COMMIT;")
    return connection


def open_reader(state: Path) -> sqlite3.Connection:
    """The store's file to read, while a coordinator runs or not. Raises NothingToDoError when there is none."""
    path = state / DATABASE
    if not path.exists():
        raise NothingToDoError(f"{state}: no coordinator has run here yet; start one with fleet-coordinator run")
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)
    with disk_named(state):
        version = _version(connection, state)
    if version == 0:
        connection.close()
        raise NothingToDoError(f"{state}: no coordinator has run here yet; start one with fleet-coordinator run")
    if version < VERSION:
        connection.close()
        raise ConfigurationError(
            f"{path}: schema version {version} was written by an older version of sparsefleet; fleet-coordinator run "
            f"brings it up to version {VERSION}"
        )
    return connection


def _version(connection: sqlite3.Connection, state: Path) -> int:
    try:
        version = _read_version(connection)
        _check_newer(version, state / DATABASE)
    except sqlite3.DatabaseError as error:
        connection.close()
        if is_disk_trouble(error):
            raise
        raise damaged(state / DATABASE, error, LOST) from None
    except ConfigurationError:
        connection.close()
        raise
    return version


def _read_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _check_newer(version: int, path: Path) -> None:
    if version > VERSION:
        raise ConfigurationError(
            f"{path}: schema version {version} was written by a newer version of sparsefleet; "
            f"this one reads up to {VERSION}; upgrade it, or use a new state folder"
        )
