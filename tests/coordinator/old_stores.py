"""A coordinator's store as an older version left it: what came since is taken out of its tables."""

import sqlite3
from pathlib import Path

from coordinator.schema import DATABASE, VERSION

# Which columns came with each version of the schema.
_CAME: dict[int, tuple[tuple[str, str], ...]] = {
    2: (("updates", "variant"),),
    3: (("models", "structure"),),
    4: (("updates", "peak_mib"),),
    5: (("models", "public"), ("models", "difference"), ("models", "difference_size")),
    6: (("traffic", "day"), ("traffic", "before_bytes"), ("devices", "resting_day")),
    7: (("updates", "fold"), ("updates", "discount"), ("updates", "discarded"), ("rounds", "opened_uptime_s")),
    8: (("devices", "doubled_s"),),
    9: (("updates", "norm"), ("updates", "buffers_norm"), ("models", "trust")),
    10: (("devices", "left_out"), ("devices", "paused")),
    11: (),
    12: (("models", "folded"),),
    13: (("models", "distilled"),),
    14: (),
    15: (),
}
# And which tables.
_TABLES: dict[int, tuple[str, ...]] = {
    11: ("held_out",),
    14: ("own_held_out", "council", "consensus"),
    15: ("local_heads",),
}
# And which indexes, over such columns.
_INDEXES: dict[int, tuple[str, ...]] = {7: ("waiting_updates", "folded_updates", "carried_tasks")}


def age(state: Path, version: int) -> None:
    """Makes the store in this folder, which nobody has open, one of that version."""
    assert max(_CAME) == VERSION, "say here what the newest version brought"
    database = sqlite3.connect(state / DATABASE)
    for number in range(version + 1, VERSION + 1):
        for index in _INDEXES.get(number, ()):
            database.execute(f"DROP INDEX {index}")
        for table in _TABLES.get(number, ()):
            database.execute(f"DROP TABLE {table}")
        for table, column in _CAME[number]:
            database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    database.execute(f"PRAGMA user_version = {version}")
    database.close()
