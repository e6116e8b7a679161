"""A finished history, folded again from its payloads: the same bits, or the first that differs; or without a device.

Every version is made anew from the one before as the store has it, so that a difference is found where it came in.
Without a device, from the first version that can be made on its own model instead: what its peers
sent stays what they sent, though they would have started from other models, and the choices of channels and masks
stay those that were made. That is what the device's own updates did, not what the fleet would have become.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from coordinator.history import Fold, History
from coordinator.masking import deployed
from coordinator.server_step import ServerState
from coordinator.settings import Settings
from coordinator.structure import Structure
from coordinator.version_step import Stepped, version_step
from coordinator.views import View, late_view
from edge_agent.runtimes.engine import Vector
from protocol.errors import SparsefleetError
from protocol.manifest import Manifest
from protocol.messages import BlobRef

_NO_BLOB = BlobRef(bytes(32), 0)


@dataclass(frozen=True, slots=True)
class FirstDifference:
    """Where a version's stored model and the one folded again part: the bits of two float32 of a tensor."""

    tensor: str
    index: tuple[int, ...]
    stored: float
    folded: float
    stored_bits: str
    folded_bits: str
    differing: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """One version. why_not: why it could not be folded again, None where it was. difference: None where every bit is
    the same."""

    version: int
    updates: int
    why_not: str | None = None
    difference: FirstDifference | None = None


@dataclass(frozen=True, slots=True)
class Without:
    """One version as it would have been without a device, beside the real one: the distance of the two, in the
    Euclidean norm, and how far the real one is from where both began. left_out: updates of the device."""

    version: int
    updates: int
    left_out: int
    distance: float
    moved: float


def replay(history: History, manifest: Manifest, settings: Settings) -> Iterator[Replayed]:
    """Every version in turn, each from the stored one before it."""
    for version in range(1, history.newest + 1):
        fold = history.fold(version)
        base = _Base.read(history, version - 1)
        # What clients taught it after its fold is not repeated: that is of this machine's runtime, and their payloads.
        stored = history.folded(version)
        why_not = _why_not(history, fold, settings) or (
            f"the model, server state or structure of version {version - 1} is not kept" if base is None else None
        )
        if stored is None:
            why_not = f"what the fold of version {version} gave is not kept"
        if why_not is not None or base is None or stored is None:
            yield Replayed(version, len(fold.accepted), why_not)
            continue
        made, kept = _step(history, manifest, settings, fold, base, version), history.structure(version)
        if made.elected is None or kept is None:
            difference = _compare(manifest, stored, made.dense)
        else:
            # The weights are frozen; what a fold makes is their chances.
            difference = _compare(manifest, _chances(kept), _chances(made.elected))
        yield Replayed(version, len(fold.accepted), difference=difference)


def replay_without(
    history: History, manifest: Manifest, settings: Settings, device: str, keep: Callable[[Vector, Structure], None]
) -> Iterator[Without]:
    """The versions without a device, from the first from which all can be made. keep: is told each model and its
    structure, the last one at the end. Raises SparsefleetError where the newest version cannot be made."""
    first = _first(history, settings)
    base = _Base.read(history, first)
    assert base is not None, "this is what _first looks for"
    began = _learnt(base.dense, base.structure)
    distilled = [version for version in range(first + 1, history.newest + 1) if history.distilled(version)]
    if distilled:
        raise SparsefleetError(
            f"version {distilled[0]} was distilled from its clients' models, which is not repeated without a device; "
            "replay without --without"
        )
    for version in range(first + 1, history.newest + 1):
        fold = history.fold(version)
        others = tuple(update for update in fold.accepted if update.device != device)
        real, structure = history.dense(version), history.structure(version)
        assert real is not None
        assert structure is not None
        if others:
            kept = Fold(version, others, fold.discounts, fold.kept)
            made = _step(history, manifest, settings, kept, base, version)
            base = _Base(made.dense, made.state, made.elected or structure)
        elif structure.chances is None:
            # A round of that device alone would have made nothing new.
            base = _Base(base.dense, base.state, structure)
        keep(base.dense, base.structure)
        there = _learnt(real, structure)
        apart = _distance(there, _learnt(base.dense, base.structure))
        yield Without(version, len(others), len(fold.accepted) - len(others), apart, _distance(there, began))


def _chances(structure: Structure) -> Vector:
    assert structure.chances is not None, "a run that votes does so from its first version"
    return structure.chances


def _learnt(dense: Vector, structure: Structure) -> Vector:
    """What a fold moves: the dense model, or where the weights are frozen what the mask keeps of them."""
    return dense if structure.chances is None else deployed(dense, structure)


@dataclass(frozen=True, slots=True)
class _Base:
    """What a version is made from."""

    dense: Vector
    state: ServerState
    structure: Structure

    @classmethod
    def read(cls, history: History, version: int) -> "_Base | None":
        dense, state, structure = history.dense(version), history.server_state(version), history.structure(version)
        if dense is None or state is None or structure is None:
            return None
        return cls(dense, state, structure)


def _step(history: History, manifest: Manifest, settings: Settings, fold: Fold, base: _Base, version: int) -> Stepped:
    def view_for(of: int, variant: str) -> View:
        structure = history.structure(of)
        if structure is None:
            raise SparsefleetError(f"version {version}: the structure of version {of} is not kept")
        return late_view(manifest, structure, base.dense, _NO_BLOB, variant)

    return version_step(
        manifest,
        settings.server,
        version - 1,
        base.dense,
        base.structure,
        base.state,
        fold.accepted,
        history.payload,
        view_for,
        lambda update: fold.discounts[update.number, update.device],
        history.caution(settings, version),
    )


def _why_not(history: History, fold: Fold, settings: Settings) -> str | None:
    gone = [update for update in fold.accepted if not history.has_payload(update)]
    if gone and fold.kept < len(fold.accepted):
        return (
            f"{len(gone)} of {len(fold.accepted)} payloads are not kept: the store keeps those of "
            f"{settings.limits.keep_rounds} rounds (limits.keep_rounds); raise that before a run to replay all of it"
        )
    if gone:
        update = gone[0]
        return (
            f"the payload of {update.device} for round {update.number} is gone, and was to be kept; restore the state "
            "folder from a backup"
        )
    if not fold.accepted:
        return "no update is known that made it"
    lost = {u.task.version for u in fold.accepted if history.structure(u.task.version) is None}
    return f"the structure of version {min(lost)} is not kept, by which updates of it are read" if lost else None


def _first(history: History, settings: Settings) -> int:
    """The oldest version from which all later ones can be made."""
    first = history.newest
    why_not: str | None = "no later version was made"
    while first > 0:
        why_not = _why_not(history, history.fold(first), settings)
        if why_not is not None or _Base.read(history, first - 1) is None or history.dense(first) is None:
            break
        first -= 1
    if first == history.newest:
        raise SparsefleetError(
            f"version {history.newest} cannot be made without a device: {why_not or 'its base is gone'}"
        )
    return first


def _compare(manifest: Manifest, stored: Vector, folded: Vector) -> FirstDifference | None:
    ours, theirs = stored.view(np.uint32), folded.view(np.uint32)
    places = np.flatnonzero(ours != theirs)
    if not len(places):
        return None
    at = int(places[0])
    tensor = next(t for t in manifest.tensors if t.offset <= at < t.offset + t.size)
    index = tuple(int(i) for i in np.unravel_index(at - tensor.offset, tensor.shape)) if tensor.shape else ()
    return FirstDifference(
        tensor.name,
        index,
        float(stored[at]),
        float(folded[at]),
        f"{int(ours[at]):08x}",
        f"{int(theirs[at]):08x}",
        len(places),
    )


def _distance(x: Vector, y: Vector) -> float:
    return float(np.linalg.norm(x.astype(np.float64) - y.astype(np.float64)))
