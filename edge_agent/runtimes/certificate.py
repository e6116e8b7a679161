"""The certificate of a bundle: torch's recorded steps, replayed by every backend that runs on the machine at hand."""

import math
from dataclasses import dataclass
from typing import Any

from edge_agent.runtimes import reference
from edge_agent.runtimes.backends import BACKENDS, held, why_not
from edge_agent.runtimes.comparison import Difference
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.parameters import initial_model
from edge_agent.runtimes.reference import Record, load_record, model_digest
from protocol.bundle import Bundle
from protocol.errors import BundleError, ConfigurationError, DataError

ALL = "all"


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of one backend. rows: a difference for every tensor and kind.

    absent: why it does not run here, where it does not. failed: what it said where it could not take the steps.
    """

    backend: str
    rows: tuple[Difference, ...] = ()
    absent: str | None = None
    failed: str | None = None

    @property
    def ran(self) -> bool:
        return self.absent is None

    @property
    def ok(self) -> bool:
        return self.ran and self.failed is None and all(row.ok for row in self.rows)


def certify(bundle: Bundle, wanted: str = ALL, variant: str = "full", threads: int = 1) -> tuple[Replayed, ...]:
    """Replays the record by the wanted backend, or with "all" by all that the bundle holds graphs for.

    Raises BundleError where the record or the model cannot be read, ConfigurationError for what is not in the bundle.
    """
    graphs = held(bundle, variant)
    if wanted != ALL and wanted not in BACKENDS:
        raise ConfigurationError(f"backend: {wanted!r} is unknown; use {ALL!r} or one of {', '.join(BACKENDS)}")
    if bundle.manifest.variant(variant).keep:
        others = ", ".join(v.name for v in bundle.manifest.variants if not v.keep)
        raise ConfigurationError(
            f"variant: torch's steps on {variant!r}, a width tier, are not recorded; its graphs are made of the same "
            f"operators as those of {others}, which can be replayed"
        )
    record, model = load_record(bundle), initial_model(bundle)
    if bundle.manifest.reference is None or model_digest(model) != bundle.manifest.reference.model:
        raise BundleError(f"{bundle.root}: its reference steps start from another model; export it again")
    names = [name for name in BACKENDS if name in graphs] if wanted == ALL else [wanted]
    return tuple(_replay(bundle, name, variant, threads, record, model) for name in names)


def by_tensor(rows: tuple[Difference, ...]) -> list[Difference]:
    """Of each tensor the row that is nearest to its tolerance, or furthest beyond it; in the model's order."""
    worst: dict[str, Difference] = {}
    for row in rows:
        if row.tensor not in worst or row.excess > worst[row.tensor].excess:
            worst[row.tensor] = row
    return list(worst.values())


def by_kind(rows: tuple[Difference, ...]) -> list[Difference]:
    """The same of each kind."""
    worst: dict[str, Difference] = {}
    for row in rows:
        if row.kind not in worst or row.excess > worst[row.kind].excess:
            worst[row.kind] = row
    return list(worst.values())


def facts(replayed: Replayed) -> dict[str, Any]:
    """For --json. A difference that is no number is null."""
    return {
        "backend": replayed.backend,
        "ran": replayed.ran,
        "ok": replayed.ok,
        "why": replayed.absent or replayed.failed,
        "rows": [
            {
                "tensor": row.tensor,
                "kind": row.kind,
                "difference": row.difference if math.isfinite(row.difference) else None,
                "tolerance": row.tolerance,
                "ok": row.ok,
            }
            for row in replayed.rows
        ],
    }


def _replay(bundle: Bundle, name: str, variant: str, threads: int, record: Record, model: Vector) -> Replayed:
    graphs = held(bundle, variant)
    absent = why_not(name, graphs)
    if absent is not None:
        return Replayed(name, absent=absent)
    try:
        engine = BACKENDS[name].open(bundle, variant, threads)
        rows = reference.replay(engine, bundle.manifest, model, record, variant)
        if "eval" in graphs[name]:
            # The first row is the loss, which the engine itself was asked for.
            outputs = reference.evaluation(Evaluator(bundle, graphs[name]["eval"], threads), model, record, variant)
            rows += outputs[1:]
    except (BundleError, DataError) as error:
        return Replayed(name, failed=str(error))
    return Replayed(name, rows)
