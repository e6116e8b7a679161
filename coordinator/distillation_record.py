"""What a store keeps of a distillation: how many taught, what it brought, and the model that it began with."""

import json
import sqlite3
from dataclasses import dataclass

from protocol.records import read_record, write_record


@dataclass(frozen=True, slots=True)
class Distillation:
    """teachers: clients, of this fleet and its peers. steps: taken; best_step: after which the model is kept, 0 where
    nothing was better than the average. before, after: accuracy of the average, and of what is kept, on the validation
    data. divergence: nats, of the average from its teachers."""

    teachers: int
    steps: int
    best_step: int
    before: float
    after: float
    divergence: float

    def __str__(self) -> str:
        return f"{self.before:.4f} -> {self.after:.4f} by {self.teachers}"


def pack(made: Distillation | None) -> str | None:
    return None if made is None else json.dumps(write_record(made))


def unpack(packed: str | None) -> Distillation | None:
    return None if packed is None else read_record(Distillation, json.loads(packed))


def folded_of(sql: sqlite3.Connection, number: int) -> set[bytes]:
    """What a version was distilled from, where no other version has to do with the same."""
    found = sql.execute(
        "SELECT folded FROM models m WHERE version = ? AND folded IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM models o WHERE o.version != m.version AND m.folded IN (o.folded, o.digest, o.public))",
        (number,),
    )
    return {bytes(row[0]) for row in found}
