"""From a round's accepted set to the next model version, its blobs on disk, not yet committed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from coordinator.evaluate import Examine
from coordinator.fold import Decoded, Weighted, fold
from coordinator.intake import decode_payload
from coordinator.rows import AcceptedUpdate, ModelVersion
from coordinator.server_step import initial_state, pack_state, server_step, unpack_state
from coordinator.settings import Settings
from coordinator.store import Store
from edge_agent.runtimes.engine import Evaluation, Vector
from edge_agent.runtimes.parameters import initial_model
from protocol.bundle import Bundle
from protocol.errors import SparsefleetError
from protocol.layout import layout_of
from protocol.manifest import Manifest
from protocol.messages import BlobRef


@dataclass(frozen=True, slots=True)
class Made:
    """A version ready to be committed. model: float32[total]."""

    version: ModelVersion
    model: Vector
    fold_s: float
    evaluation_s: float


def first_model(store: Store, bundle: Bundle, examine: Examine | None) -> ModelVersion:
    """Version 0: the exported model, evaluated and committed."""
    model = initial_model(bundle)
    found = examine(model) if examine is not None else None
    blob, state = store.put_model(_bytes(model)), store.put_model(pack_state(initial_state()))
    version = _version(0, blob, state, found)
    store.add_initial(version)
    return version


def load_model(store: Store, version: ModelVersion, manifest: Manifest) -> Vector:
    """The model of a version, float32[total]. Raises SparsefleetError when the disk no longer has it."""
    try:
        data = store.models.read(version.blob.digest)
    except SparsefleetError as error:
        raise SparsefleetError(f"model version {version.version}: {error}") from None
    assert len(data) == 4 * manifest.total
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def next_model(
    store: Store,
    manifest: Manifest,
    settings: Settings,
    base: ModelVersion,
    model: Vector,
    accepted: Iterable[AcceptedUpdate],
    examine: Examine | None,
    clock: Callable[[], float],
) -> Made:
    """Folds, steps, stores and evaluates. A function of the accepted set; to do it again gives the same bytes."""
    started = clock()
    updates = {update.device: update for update in accepted}
    layouts = {variant: layout_of(manifest, variant) for variant in {u.variant for u in updates.values()}}

    def decode(device: str) -> Decoded:
        update = updates[device]
        return decode_payload(store.updates.read(update.digest), update.codec, layouts[update.variant])

    weighted = [Weighted(u.device, u.weight, layouts[u.variant]) for u in updates.values()]
    folded = fold(weighted, decode, manifest.parameters, manifest.buffers)
    state = unpack_state(store.models.read(base.server_state))
    state, after = server_step(settings.server, state, model, folded)
    blob, state_blob = store.put_model(_bytes(after)), store.put_model(pack_state(state))
    done = clock()
    found = examine(after) if examine is not None else None
    version = _version(base.version + 1, blob, state_blob, found)
    return Made(version, after, done - started, clock() - done)


def _version(number: int, model: BlobRef, state: BlobRef, found: Evaluation | None) -> ModelVersion:
    if found is None:
        return ModelVersion(number, model, state.digest, None, {})
    return ModelVersion(number, model, state.digest, found.loss, found.metrics)


def _bytes(model: Vector) -> bytes:
    return model.astype("<f4").tobytes()
