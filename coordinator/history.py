"""What a store still knows of a run that went on: versions, the sets of their folds, and the blobs they are made of.

Only read, and beside a running coordinator too, which may remove what is old meanwhile: what is gone is None.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator import rows
from coordinator.folding import CREDULOUS, Caution, caution_of
from coordinator.ledger import recent_norms
from coordinator.norms import ENOUGH
from coordinator.rows import AcceptedUpdate
from coordinator.schema import open_reader
from coordinator.server_step import ServerState, initial_state, unpack_state
from coordinator.settings import Settings
from coordinator.structure import Structure, unpack_structure
from edge_agent.runtimes.engine import Vector
from protocol.blobs import read_blob
from protocol.errors import ConfigurationError, NothingToDoError, SparsefleetError


@dataclass(frozen=True, slots=True)
class Fold:
    """What made a version: its set, and what each update of it counted for, by round and device. kept: how many of the
    payloads the store means to have."""

    version: int
    accepted: tuple[AcceptedUpdate, ...]
    discounts: dict[tuple[int, str], float]
    kept: int


class History:
    """The run in one state folder. Raises NothingToDoError where there is none."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._sql = open_reader(state)
        # One view of the rows, whatever a coordinator commits meanwhile.
        self._sql.execute("BEGIN")
        self.run = str(self._sql.execute("SELECT value FROM meta WHERE key = 'run'").fetchone()[0])
        newest = self._sql.execute("SELECT max(version) FROM models").fetchone()[0]
        if newest is None:
            raise NothingToDoError(f"{state}: no model was made here yet")
        self.newest: int = newest

    def close(self) -> None:
        self._sql.close()

    def belongs_to(self, bundle_digest: bytes, bundle: str) -> None:
        """Raises ConfigurationError when the run is of another bundle."""
        known = self._sql.execute("SELECT value FROM meta WHERE key = 'bundle'").fetchone()
        if known is not None and bytes(known[0]) != bundle_digest:
            raise ConfigurationError(f"bundle: {bundle} is not the bundle of run {self.run}; set bundle to that")

    def fold(self, version: int) -> Fold:
        """The set that made a version, from the rows alone."""
        found = self._sql.execute(
            "SELECT round, device, coalesce(discount, 1.0), kept FROM updates WHERE fold = ?", (version,)
        ).fetchall()
        discounts = {(number, device): float(discount) for number, device, discount, _ in found}
        accepted = rows.accepted(self._sql, version)
        return Fold(version, accepted, discounts, sum(kept for *_, kept in found))

    def caution(self, settings: Settings, version: int) -> Caution:
        """With which a version was made, if the settings are still those. Raises ConfigurationError where the key of
        its noise is gone."""
        row = self._sql.execute("SELECT trust FROM models WHERE version = ?", (version,)).fetchone()
        if row is None or row[0] is None:
            return CREDULOUS
        recent = recent_norms(self._sql, version - 1, ENOUGH)
        return caution_of(settings, self.run, self._state, recent, make_key=False)

    def has_device(self, device: str) -> bool:
        found = self._sql.execute("SELECT 1 FROM updates WHERE device = ? LIMIT 1", (device,)).fetchone()
        return found is not None

    def dense(self, version: int) -> Vector | None:
        """The model of a version, float32[total]."""
        return _floats(self._blob("models", self._column(version, "digest")))

    def public(self, version: int) -> Vector | None:
        """What devices hold of a version, float32[total]."""
        digest = self._column(version, "public")
        return self.dense(version) if digest is None else _floats(self._blob("models", digest))

    def folded(self, version: int) -> Vector | None:
        """What the fold gave that made a version: the model itself, but where it was distilled from it."""
        digest = self._column(version, "folded")
        return self.dense(version) if digest is None else _floats(self._blob("models", digest))

    def distilled(self, version: int) -> bool:
        return self._column(version, "folded") is not None

    def noise(self, version: int) -> float:
        """The noise multiplier of [privacy] with which a version was made, 0 for none."""
        row = self._sql.execute("SELECT trust FROM models WHERE version = ?", (version,)).fetchone()
        return 0.0 if row is None else rows.unpack_trust(row[0]).noise_multiplier

    def server_state(self, version: int) -> ServerState | None:
        if version == 0:
            return initial_state()
        data = self._blob("models", self._column(version, "server_state"))
        return None if data is None else unpack_state(data)

    def structure(self, version: int) -> Structure | None:
        digest = self._column(version, "structure")
        if digest is None:
            return Structure()
        data = self._blob("models", digest)
        return None if data is None else unpack_structure(data)

    def payload(self, update: AcceptedUpdate) -> bytes:
        """Raises SparsefleetError when it is gone or damaged."""
        return read_blob(self._state / "updates" / update.digest.hex())

    def has_payload(self, update: AcceptedUpdate) -> bool:
        return (self._state / "updates" / update.digest.hex()).exists()

    def _column(self, version: int, name: str) -> bytes | None:
        row = self._sql.execute(f"SELECT {name} FROM models WHERE version = ?", (version,)).fetchone()
        return None if row is None or row[0] is None else bytes(row[0])

    def _blob(self, folder: str, digest: bytes | None) -> bytes | None:
        if digest is None:
            return None
        path = self._state / folder / digest.hex()
        return read_blob(path) if path.exists() else None


def _floats(data: bytes | None) -> Vector | None:
    return None if data is None else np.frombuffer(data, dtype="<f4").astype(np.float32)


def open_history(state: Path) -> History:
    """Raises NothingToDoError, ConfigurationError or SparsefleetError that names the folder."""
    try:
        return History(state)
    except sqlite3.Error as error:
        raise SparsefleetError(f"{state}: {error}") from None
