"""An auditor of a finished fleet that shares no code with the fold: what was receipted, refolded, is the model."""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np

from edge_agent.runtimes.parameters import initial_model
from protocol.bundle import Bundle, open_bundle
from protocol.layout import layout_of
from sparse.codecs import decode_update, parse_codec

# What an agent logs once it let go of an update. A kill may come before the line, so the counts are the store's.
_ACCEPTED = re.compile(r"update accepted task=\S+/(\d+) ")


@dataclass(frozen=True, slots=True)
class Findings:
    """What became of the updates of a run. `differing` is the first version that is not the fold of its set."""

    rounds: int
    receipted: int
    folded: int
    discarded: int
    lost: int
    doubled: int
    differing: int | None
    unsettled: int
    strays: tuple[str, ...]

    @property
    def clean(self) -> bool:
        wrong = (self.lost, self.doubled, self.unsettled, len(self.strays))
        return not any(wrong) and self.differing is None and self.receipted == self.folded + self.discarded


def audit(folder: Path) -> int:
    """Fails unless every update is in one fold or stated discard and no other, every model is the fold of its set bit
    for bit, and nothing lies about that no row names; returns how many rounds there were."""
    found = examine(folder)
    assert found.clean, found
    return found.rounds


def examine(folder: Path) -> Findings:
    """Counts a run at its end from the stores of all its parts: those of the devices say what was receipted, that of
    the coordinator which payloads a fold took, and the models whether it did."""
    coordinator = folder / "coordinator"
    with _opened(coordinator / "coordinator.sqlite") as store:
        discarded = _discards(store)
        rounds, folds, differing = _refold(coordinator, open_bundle(folder / "bundle"), store, bounded=False)
        names = store.execute("SELECT device, update_boot, update_sequence FROM updates").fetchall()
        kept = {row[0].hex() for row in store.execute("SELECT digest FROM updates")}
    strays = [f"updates/{path.name}" for path in (coordinator / "updates").iterdir() if path.name not in kept]
    receipted = lost = unsettled = 0
    doubled = len(names) - len(set(names)) + len(folds) - len(set(folds))
    for device in sorted(folder.glob("device-*")):
        settled, waiting = _settled(device)
        counted = [n for name, n in folds + discarded if name == device.name]
        told = _told(folder / "logs" / f"{device.name}.log")
        receipted, unsettled = receipted + settled, unsettled + waiting
        # One that the log names and no fold took is lost even if another, of which there are two, makes up the number.
        lost += max(0, settled - len(counted), len(told - set(counted)))
        doubled += max(0, len(counted) - settled - waiting)
        state = device / "state"
        strays += [str(path.relative_to(folder)) for path in _left_behind(state)]
    return Findings(
        *(len(rounds), receipted, len(folds), len(discarded), lost, doubled, differing, unsettled), tuple(strays)
    )


def _left_behind(state: Path) -> list[Path]:
    """Half-written files, and halves of blobs that nobody would go on with. A device may hold one half: what it fetched
    for a task that was withdrawn, which its next task removes, or goes on with."""
    halves = sorted(state.rglob("*.part"))
    lonely = [path for path in state.rglob("*.have") if not path.with_suffix(".part").exists()]
    return [*state.rglob("*.tmp"), *lonely, *halves[1:]]


def refold(coordinator: Path, bundle: Bundle, staleness: float = 0.5) -> int:
    """Fails unless every model of a coordinator's store is the fold of its set, and every discount that of the
    staleness; returns how many there were. Updates may still wait for the round that is open."""
    with _opened(coordinator / "coordinator.sqlite") as store:
        rounds, _, differing = _refold(coordinator, bundle, store, bounded=True)
        folded = store.execute("SELECT fold, round, discount, discarded FROM updates WHERE fold IS NOT NULL")
        for fold, number, discount, discarded in folded.fetchall():
            # Round n begins on version n - 1, and its own fold makes version n.
            assert (discount, discarded) == ((1.0 + fold - number) ** -staleness, None)
    assert differing is None, f"version {differing} is not the fold of its set"
    return len(rounds)


def _refold(
    coordinator: Path, bundle: Bundle, store: sqlite3.Connection, *, bounded: bool
) -> tuple[list[int], list[tuple[str, int]], int | None]:
    """The committed rounds, the device and round of every update that a fold took, and the first version that differs
    from the fold of its set in any bit. Of whole models, with the plain server step; bounded: with the default bounds
    of norms and weights, or with none."""
    manifest, model = bundle.manifest, initial_model(bundle)
    layout, moved = layout_of(manifest, "full").digest, manifest.parameters + manifest.buffers
    rounds = [row[0] for row in store.execute("SELECT round FROM rounds WHERE state = 'committed' ORDER BY round")]
    taken: list[tuple[str, int]] = []
    earlier: list[Sequence[float]] = []
    differing = None
    for number in rounds:
        total, weights = np.zeros(moved), np.zeros(moved)
        rows = store.execute(
            "SELECT device, round, digest, weight, discount, codec, norm, buffers_norm FROM updates WHERE fold = ? "
            "ORDER BY round, device",
            (number,),
        ).fetchall()
        newest = max(row[1] for row in rows)
        most_weight = 2 * median_low(row[3] for row in rows) if bounded else np.inf
        limits = _limits([row[6:] for row in rows], earlier) if bounded else (np.inf, np.inf)
        for device, of_round, digest, weight, discount, codec, *norms in rows:
            payload = (coordinator / "updates" / digest.hex()).read_bytes()
            delta = decode_update(payload, manifest.parameters, manifest.buffers, layout, parse_codec(codec))
            weight = int(min(weight, most_weight))
            parts = []
            for values, norm, limit in zip(delta, norms, limits, strict=True):
                found = np.sqrt(np.square(values, dtype=np.float64).sum() / max(1, len(values)))
                assert np.isclose(norm, found), "another norm than that of the payload"
                # What is late moves the model less; it is not made up for by the others.
                counted = weight * discount * min(1.0, limit / norm if norm else 1.0)
                parts.append(counted * values.astype(np.float64))
            # What is late says nothing of running statistics.
            told = moved if of_round == newest else manifest.parameters
            total[:told] += np.concatenate(parts)[:told]
            weights[:told] += weight
            taken.append((device, of_round))
        # The newest first, in a fold by round, then device.
        earlier = [row[6:] for row in sorted(rows, key=lambda row: (-row[1], row[0]))] + earlier
        model[:moved] = (model[:moved].astype(np.float64) + total / weights).astype(np.float32)
        kept = store.execute("SELECT digest FROM models WHERE version = ?", (number,)).fetchone()[0]
        stored = (coordinator / "models" / kept.hex()).read_bytes()
        if stored != model.tobytes() and differing is None:
            differing = number
    return rounds, taken, differing


def _limits(norms: Sequence[Sequence[float]], earlier: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Twice the median norm of parameters and of buffers: of the fold's updates, and of earlier ones up to sixteen."""
    looked_at = [*norms, *earlier[: max(0, 16 - len(norms))]]
    columns = [[norm for norm in column if norm > 0] for column in zip(*looked_at, strict=True)]
    return tuple(2.0 * median_low(column) if column else np.inf for column in columns)


def _discards(store: sqlite3.Connection) -> list[tuple[str, int]]:
    found = store.execute("SELECT device, round FROM updates WHERE discarded IS NOT NULL AND fold IS NULL")
    return [(device, number) for device, number in found]


def _settled(device: Path) -> tuple[int, int]:
    """How many receipts of acceptance a device's store counts, and how many updates wait for one."""
    with _opened(device / "state" / "agent.sqlite") as store:
        found = store.execute("SELECT coalesce(sum(count), 0) FROM settled WHERE verdict = 'accepted'").fetchone()
        return int(found[0]), int(store.execute("SELECT count(*) FROM outbox").fetchone()[0])


def _told(log: Path) -> set[int]:
    """The rounds whose update a device's log calls accepted."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return {int(number) for number in _ACCEPTED.findall(text)}


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    store = sqlite3.connect(path)
    try:
        yield store
    finally:
        store.close()
