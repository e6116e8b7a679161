"""How models do on what devices hold out of their own data: as they said with their updates, per device.

Three things, never mixed: the accuracy of the averaged model on the coordinator's held-out data, which is not here; of
a version on the devices' (a device evaluates before it trains, so that the updates of round n tell of version n - 1);
and, without a hub, of the devices' own models, those that they sent for round n.
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
    for table, found in (("held_out", offer.held_out), ("own_held_out", offer.own)):
        if found is not None:
            what = (offer.round, device, found.examples, found.loss, found.accuracy)
            sql.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?, ?)", what)
    of_fleet = offer.held_out
    if of_fleet is not None and of_fleet.personal is not None and of_fleet.mixed is not None:
        heads = (offer.round, device, of_fleet.personal, of_fleet.mixed)
        sql.execute("INSERT OR REPLACE INTO local_heads VALUES (?, ?, ?, ?)", heads)


def newest(sql: sqlite3.Connection) -> tuple[int, OnDevices] | None:
    """Of the newest version that devices told of, with its number."""
    number = sql.execute("SELECT max(round) - 1 FROM held_out WHERE accuracy IS NOT NULL").fetchone()[0]
    found = None if number is None else on_devices(sql, number)
    return None if found is None else (number, found)


def on_devices(sql: sqlite3.Connection, version: int) -> OnDevices | None:
    """Of a version; None where no device told an accuracy of it yet."""
    return _over(sql, "held_out", version + 1)


def own_models(sql: sqlite3.Connection, number: int) -> OnDevices | None:
    """Of the devices' own models, as sent for a round; None where no device told an accuracy of its own."""
    return _over(sql, "own_held_out", number)


def newest_own(sql: sqlite3.Connection) -> OnDevices | None:
    """Of the newest round for which devices told of their own models."""
    number = sql.execute("SELECT max(round) FROM own_held_out WHERE accuracy IS NOT NULL").fetchone()[0]
    return None if number is None else own_models(sql, number)


def _over(sql: sqlite3.Connection, table: str, number: int) -> OnDevices | None:
    found = sql.execute(
        f"SELECT accuracy, device FROM {table} WHERE round = ? AND accuracy IS NOT NULL ORDER BY accuracy, device",
        (number,),
    ).fetchall()
    if not found:
        return None
    worst, device = found[0]
    return OnDevices(len(found), sum(row[0] for row in found) / len(found), worst, device)
