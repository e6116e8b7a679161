"""How a version does on what devices hold out of their own data: as they said with their updates, per device.

Another thing than the accuracy of the averaged model on the coordinator's held-out data, and never mixed with it. A
device evaluates before it trains, so that the updates of round n tell of version n - 1.
"""

import sqlite3
from dataclasses import dataclass

from protocol.messages import Offer


@dataclass(frozen=True, slots=True)
class OnDevices:
    """Over the devices that said it: how many, the mean of their accuracies, each device counting once, the lowest, and
    whose that is."""

    devices: int
    mean: float
    worst: float
    worst_device: str


def insert(sql: sqlite3.Connection, device: str, offer: Offer) -> None:
    """Keeps what an accepted update says, in its transaction."""
    found = offer.held_out
    if found is not None:
        what = (offer.round, device, found.examples, found.loss, found.accuracy)
        sql.execute("INSERT OR REPLACE INTO held_out VALUES (?, ?, ?, ?, ?)", what)
    if found is not None and found.personal is not None and found.mixed is not None:
        heads = (offer.round, device, found.personal, found.mixed)
        sql.execute("INSERT OR REPLACE INTO local_heads VALUES (?, ?, ?, ?)", heads)


def newest(sql: sqlite3.Connection) -> tuple[int, OnDevices] | None:
    """Of the newest version that devices told of, with its number."""
    number = sql.execute("SELECT max(round) - 1 FROM held_out WHERE accuracy IS NOT NULL").fetchone()[0]
    found = None if number is None else on_devices(sql, number)
    return None if found is None else (number, found)


def on_devices(sql: sqlite3.Connection, version: int) -> OnDevices | None:
    """Of a version; None where no device told an accuracy of it yet."""
    found = sql.execute(
        "SELECT accuracy, device FROM held_out WHERE round = ? AND accuracy IS NOT NULL ORDER BY accuracy, device",
        (version + 1,),
    ).fetchall()
    if not found:
        return None
    worst, device = found[0]
    return OnDevices(len(found), sum(row[0] for row in found) / len(found), worst, device)
