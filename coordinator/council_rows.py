"""Where a fleet without a hub is kept at its coordinator: the council, one sealed row, and figures of it by round."""

import math
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

import cbor2

from coordinator.gossip import Council, Rules, collected, effort_of, mean_distance
from coordinator.schema import DATABASE, LOST
from protocol.database import damaged, sealed, unsealed
from protocol.failpoints import reached
from protocol.records import RecordError, read_record, write_record


@dataclass(frozen=True, slots=True)
class Consensus:
    """How far devices were from their neighbours when a round was closed: the mean of ||sum_j w_ij x_j - x_i||."""

    epoch: int
    members: int
    distance: float | None
    gossip_rounds: int
    local_steps: int


def keep(sql: sqlite3.Connection, council: Council) -> None:
    data = sealed(cbor2.dumps(write_record(replace(council, since_s=0.0))))
    figures = (council.epoch, len(council.members), mean_distance(council))
    sql.execute("INSERT OR REPLACE INTO council VALUES (1, ?, ?, ?, ?)", (*figures, data))
    reached("coordinator.council-keeping")


def load(sql: sqlite3.Connection, now: float) -> Council | None:
    """As it was kept; its clock was another's, and everybody is as if heard now. Raises DamagedError."""
    row = sql.execute("SELECT council FROM council").fetchone()
    if row is None:
        return None
    data = unsealed(row[0])
    try:
        if data is None:
            raise ValueError("its CRC-32 differs")
        kept = read_record(Council, cbor2.loads(data))
    except (RecordError, cbor2.CBORDecodeError, ValueError) as error:
        raise damaged(Path(DATABASE), f"the council of gossip cannot be read: {error}", LOST) from None
    devices = {device: replace(member, heard_s=now) for device, member in kept.devices.items()}
    return replace(kept, devices=devices, since_s=math.inf)


def note(sql: sqlite3.Connection, number: int, council: Council, rules: Rules) -> Consensus:
    """Writes how it stands when a round is closed."""
    effort = effort_of(council, rules)
    distance, members = mean_distance(council), len(collected(council))
    found = Consensus(council.epoch, members, distance, effort.gossip_rounds, effort.local_steps)
    row = (number, found.epoch, found.members, found.distance, found.gossip_rounds, found.local_steps)
    sql.execute("INSERT OR REPLACE INTO consensus VALUES (?, ?, ?, ?, ?, ?)", row)
    return found


def newest(sql: sqlite3.Connection) -> tuple[int, int, float | None] | None:
    """Epoch, members and distance as last written; None where devices have a hub."""
    row: tuple[int, int, float | None] | None = sql.execute("SELECT epoch, members, distance FROM council").fetchone()
    return row
