"""From a round's accepted set to the next model version, its blobs on disk, not yet committed."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from coordinator.accountant import epsilon_of
from coordinator.distillation_record import Distillation
from coordinator.distiller import Distiller
from coordinator.downlink import Published, publish
from coordinator.evaluate import Examine
from coordinator.fold import discount
from coordinator.folding import caution_of
from coordinator.ledger import recent_norms, take_part
from coordinator.masking import deployed
from coordinator.norms import ENOUGH
from coordinator.refresh import first_structure, next_structure
from coordinator.rows import AcceptedUpdate, ModelVersion, Trust
from coordinator.server_step import initial_state, pack_state, unpack_state
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.structure import Structure, pack_structure, unpack_structure
from coordinator.teachers import Base, client_models
from coordinator.version_step import Stepped, version_step
from coordinator.views import View, Views
from edge_agent.runtimes.engine import Evaluation, Vector
from edge_agent.runtimes.parameters import initial_model
from protocol.bundle import Bundle
from protocol.errors import SparsefleetError
from protocol.layout import layout_of
from protocol.manifest import FULL, Manifest


@dataclass(frozen=True, slots=True)
class Made:
    """A version ready to be committed. dense: float32[total], of the coordinator. public: of the devices. evaluation_s:
    and distillation, what is computed for the model beside its fold."""

    version: ModelVersion
    dense: Vector
    public: Vector
    structure: Structure
    fold_s: float
    evaluation_s: float


def first_model(store: Store, bundle: Bundle, settings: Settings, examine: Examine | None) -> ModelVersion:
    """Version 0: the exported model, evaluated and committed."""
    dense = initial_model(bundle)
    structure = first_structure(settings, bundle, dense)
    found = examine(deployed(dense, structure)) if examine is not None else None
    version = _stored(store, 0, dense, Published(dense), pack_state(initial_state()), structure, found)
    store.add_initial(version)
    return version


def load_model(store: Store, version: ModelVersion, manifest: Manifest) -> Vector:
    """The model of a version, float32[total]. Raises SparsefleetError when the disk no longer has it."""
    return _vector(_read(store, version.version, version.blob.digest), manifest)


def load_public(store: Store, version: ModelVersion, manifest: Manifest) -> Vector:
    """What devices hold of a version, float32[total]. Raises SparsefleetError when the disk no longer has it."""
    return _vector(_read(store, version.version, version.published.digest), manifest)


def structure_of(store: Store, version: int) -> Structure:
    """What of a version devices work on. Raises SparsefleetError when the disk no longer has it."""
    digest = store.structure(version)
    return Structure() if digest is None else unpack_structure(_read(store, version, digest))


def next_model(
    store: Store,
    manifest: Manifest,
    settings: Settings,
    base: ModelVersion,
    views: Views,
    view_for: Callable[[int, str], View],
    accepted: Sequence[AcceptedUpdate],
    examine: Examine | None,
    clock: Callable[[], float],
    distiller: Distiller | None = None,
) -> Made:
    """Folds, steps, distils, stores and evaluates. A function of the accepted set, and where clients of other
    coordinators teach too, of what those have; to do it again gives the same bytes.

    view_for: the view of a version and variant, by which an update of that version is read.
    """
    started = clock()
    recent = store.told(partial(recent_norms, version=base.version, most=ENOUGH))
    made = version_step(
        manifest,
        settings.server,
        base.version,
        views.dense,
        views.structure,
        unpack_state(store.models.read(base.server_state)),
        accepted,
        lambda update: store.updates.read(update.digest),
        view_for,
        lambda update: discount(base.version - update.task.version, settings.rounds.staleness),
        caution_of(settings, store.run, store.folder, recent),
    )
    state, folded = made.state, clock()
    dense, distilled = _distilled(store, manifest, distiller, base, views, accepted, made.dense)
    distilled_s = clock() - folded
    structure = made.elected or next_structure(settings, manifest, views.structure, dense, base.version + 1)
    layout = layout_of(manifest, FULL)
    published = publish(settings, layout, views.public, dense, base.version + 1, store.put_model)
    done = clock()
    found = examine(deployed(dense, structure)) if examine is not None else None
    evaluated = clock() - done
    version = replace(
        _stored(store, base.version + 1, dense, published, pack_state(state), structure, found),
        trust=_trust(store, settings, base.version, accepted, made),
        distilled=distilled,
        folded=None if dense is made.dense else store.put_model(made.dense.astype("<f4").tobytes()).digest,
    )
    beside = evaluated + distilled_s
    return Made(version, dense, published.model, structure, clock() - started - beside, beside)


def _distilled(
    store: Store,
    manifest: Manifest,
    distiller: Distiller | None,
    base: ModelVersion,
    views: Views,
    accepted: Sequence[AcceptedUpdate],
    dense: Vector,
) -> tuple[Vector, Distillation | None]:
    """What the clients teach the folded model, float32[total], and how that went; itself, if nothing."""
    if distiller is None or not distiller.due(base.version + 1):
        return dense, None

    def base_of(version: int) -> Base | None:
        if version == base.version:
            return views.public, views.structure
        row = store.version(version)
        try:
            return None if row is None else (load_public(store, row, manifest), structure_of(store, version))
        except SparsefleetError:
            return None

    clients = client_models(manifest, accepted, lambda update: store.updates.read(update.digest), base_of)
    start = deployed(dense, views.structure)
    taught = distiller(start, views.structure, clients, base.version + 1)
    if taught is None:
        return dense, None
    found, teachers = taught
    said = Distillation(teachers, found.steps, found.best_step, found.before, found.after, found.divergence)
    if found.model is start:
        return dense, said
    model = found.model.copy()
    if views.structure.mask is not None:
        # What the mask leaves out is 0 in what was taught, and goes on in the dense copy.
        np.copyto(model[: manifest.parameters], dense[: manifest.parameters], where=~views.structure.mask)
    return model, said


def _trust(
    store: Store,
    settings: Settings,
    base: int,
    accepted: Sequence[AcceptedUpdate],
    made: Stepped,
) -> Trust:
    """What is said of a version besides: what was cut, and what its noise protects."""
    privacy = settings.privacy
    if not privacy.on:
        return Trust(made.clipped, made.clamped)
    spent = store.participations(base)
    for device, count in Counter(update.device for update in accepted).items():
        take_part(spent, device, privacy.noise_multiplier, count)
    epsilon = epsilon_of(spent.values(), privacy.delta)
    return Trust(made.clipped, made.clamped, privacy.noise_multiplier, epsilon, privacy.delta)


def _stored(
    store: Store,
    number: int,
    dense: Vector,
    published: Published,
    state: bytes,
    structure: Structure,
    found: Evaluation | None,
) -> ModelVersion:
    blob, state_blob = store.put_model(dense.astype("<f4").tobytes()), store.put_model(state)
    return ModelVersion(
        version=number,
        blob=blob,
        server_state=state_blob.digest,
        structure=None if structure.plain else store.put_model(pack_structure(structure)).digest,
        loss=None if found is None else found.loss,
        metrics={} if found is None else found.metrics,
        public=published.blob,
        difference=published.difference,
    )


def _vector(data: bytes, manifest: Manifest) -> Vector:
    assert len(data) == 4 * manifest.total
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def _read(store: Store, version: int, digest: bytes) -> bytes:
    try:
        return store.models.read(digest)
    except SparsefleetError as error:
        raise SparsefleetError(f"model version {version}: {error}") from None
