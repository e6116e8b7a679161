"""What the store says of what was folded: sizes of updates, what rounds cost, and who took part under which noise."""

import sqlite3

from coordinator.norms import Norms
from coordinator.rows import late_blobs, unpack_trust

# Of each device: how often it took part, by what its noise multiplier came to.
Participations = dict[str, dict[float, int]]


def recent_norms(sql: sqlite3.Connection, version: int, most: int) -> tuple[Norms, ...]:
    """Of the updates that are folded into the versions up to this one, the newest first."""
    found = sql.execute(
        "SELECT norm, buffers_norm FROM updates WHERE fold <= ? AND norm IS NOT NULL "
        "ORDER BY fold DESC, round DESC, device LIMIT ?",
        (version, most),
    )
    return tuple(Norms(*norms) for norms in found)


def round_bytes(sql: sqlite3.Connection) -> tuple[int, ...]:
    """What each committed round cost the whole fleet, both ways, from the first on."""
    found = sql.execute("SELECT bytes_up + bytes_down FROM rounds WHERE state = 'committed' ORDER BY round")
    return tuple(int(row[0]) for row in found)


def structure_alone(sql: sqlite3.Connection, number: int) -> set[bytes]:
    """The structure of a version, where no other version has the same and no late update is to be read by it."""
    found = sql.execute(
        "SELECT structure FROM models m WHERE version = ? AND structure IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM models o WHERE o.version != m.version AND o.structure = m.structure)",
        (number,),
    )
    return {bytes(row[0]) for row in found} - late_blobs(sql)


def waiting_before(sql: sqlite3.Connection, number: int) -> int:
    """How many updates of rounds before this one wait for a fold."""
    found = sql.execute(
        "SELECT count(*) FROM updates WHERE fold IS NULL AND discarded IS NULL AND round < ?", (number,)
    )
    return int(found.fetchone()[0])


def participations(sql: sqlite3.Connection, version: int) -> Participations:
    """In the folds that made the versions up to this one."""
    noise = {
        number: unpack_trust(packed).noise_multiplier
        for number, packed in sql.execute("SELECT version, trust FROM models WHERE version <= ?", (version,))
    }
    found: Participations = {}
    for device, number, count in sql.execute(
        "SELECT device, fold, count(*) FROM updates WHERE fold <= ? GROUP BY device, fold", (version,)
    ):
        take_part(found, device, noise[number], count)
    return found


def take_part(found: Participations, device: str, multiplier: float, count: int) -> None:
    """Notes that one fold took `count` updates of a device, whose sum changes by so many times the clipping norm."""
    of_device = found.setdefault(device, {})
    of_device[multiplier / count] = of_device.get(multiplier / count, 0) + 1
