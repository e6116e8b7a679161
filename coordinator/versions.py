"""The model's versions: the current one, what devices see of it, and how a round's updates become the next one."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from coordinator.accountant import check_installed
from coordinator.distiller import Distiller
from coordinator.downlink import check_downlink, steps_for
from coordinator.evaluate import Examine, accuracy_of
from coordinator.fold import discount
from coordinator.gossip_rules import check_bundle
from coordinator.ledger import recent_norms
from coordinator.masking import check_mask
from coordinator.next_model import Made, first_model, load_model, load_public, next_model, structure_of
from coordinator.norms import RECENT, Norms, hard_bounds
from coordinator.privacy import check_privacy
from coordinator.rows import AcceptedUpdate, Counted, ModelVersion, RoundFigures, Trust
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.structure import Structure
from coordinator.views import View, Views, late_view
from coordinator.vote import check_begun, check_masking
from edge_agent.runtimes.engine import Vector
from protocol.bundle import Bundle
from protocol.errors import DamagedError, SparsefleetError
from protocol.messages import BlobRef, SharedMask
from sparse.masks import Mask

log = logging.getLogger("coordinator")


class Versions:
    """One run's versions, from the store; makes version 0 if there is none yet. clock: in seconds, for figures."""

    def __init__(
        self,
        settings: Settings,
        bundle: Bundle,
        store: Store,
        clock: Callable[[], float],
        examine: Examine | None,
        distiller: Distiller | None = None,
    ) -> None:
        self._settings, self._manifest, self._store = settings, bundle.manifest, store
        self._clock, self._examine, self._distiller = clock, examine, distiller
        check_mask(settings, bundle.manifest)
        check_masking(settings, bundle.manifest)
        check_privacy(settings.privacy, bundle.manifest)
        check_bundle(settings, bundle.manifest)
        if settings.privacy.on:
            check_installed()
        check_downlink(settings, masked=bundle.manifest.mask is not None)
        version = store.current() or first_model(store, bundle, settings, examine)
        before = store.version(version.version - 1)
        held = structure_of(store, before.version).mask if before is not None else None
        dense = load_model(store, version, bundle.manifest)
        public = load_public(store, version, bundle.manifest) if version.public is not None else dense
        structure = structure_of(store, version.version)
        check_begun(settings, structure)
        # A mask stays where a run began with one, whatever the settings say now.
        check_downlink(settings, masked=structure.mask is not None)
        self._set(version, dense, public, structure, held)

    @property
    def number(self) -> int:
        """The current version; round n makes version n."""
        return self._current.version

    @property
    def published(self) -> BlobRef:
        """The whole model that devices fetch."""
        return self._current.published

    @property
    def accuracy(self) -> float | None:
        return accuracy_of(self._current.metrics)

    @property
    def loss(self) -> float | None:
        return self._current.loss

    @property
    def trust(self) -> Trust:
        """What was done so that the current version need not believe its devices."""
        return self._current.trust

    @property
    def hard_bounds(self) -> Norms:
        """Updates whose norms are beyond these are refused."""
        return self._hard_bounds

    def view(self, variant: str) -> View:
        """What a device of a variant works on."""
        return self._views.of(variant)

    def for_device(self, variant: str, device: str, *, newcomer: bool) -> View:
        """The same, with no more of the steps to it than this device may need."""
        seen = self._views.of(variant)
        if newcomer or not seen.differences:
            return replace(seen, differences=())
        held = (self._store.delivered(device) or 1) - 1
        return replace(seen, differences=steps_for(seen.differences, seen.blob, self.number, held))

    def view_for(self, version: int, variant: str) -> View:
        """What an update for a version is made of. Raises SparsefleetError when the disk no longer says so."""
        if version == self.number:
            return self._views.of(variant)
        structure = structure_of(self._store, version)
        return late_view(self._manifest, structure, self._views.dense, self.published, variant)

    def whole_mask(self, shared: SharedMask) -> SharedMask:
        """The same, for a device that has not the mask to which it is a difference."""
        return replace(self._views.announced(whole=True), report=shared.report)

    def advance(
        self, number: int, opened_at: float, bytes_before: tuple[int, int], bytes_now: tuple[int, int], *, carry: bool
    ) -> RoundFigures | None:
        """Folds the updates that wait into the next version and commits both in one transaction; None, and no version,
        where all of them were late and cannot be folded any more. carry: devices still at work keep their tasks."""
        accepted = self._readable(self._store.accepted(number))
        if not accepted:
            return None
        rounds = self._settings.rounds
        wanted = number % self._settings.evaluation.every == 0 or number >= rounds.count
        try:
            made = self._made(accepted, examined=wanted)
        except DamagedError as error:
            accepted = self._undamaged(accepted, error)
            made = self._made(accepted, examined=wanted)
        seconds = self._clock() - opened_at
        longest = max((update.train_s for update in accepted if update.number == number), default=0.0)
        figures = RoundFigures(
            devices=len(accepted),
            late=sum(update.number < number for update in accepted),
            accuracy=accuracy_of(made.version.metrics),
            seconds=seconds,
            overhead_s=max(0.0, seconds - longest - made.evaluation_s),
            evaluation_s=made.evaluation_s,
            fold_s=made.fold_s,
            bytes_up=bytes_now[0] - bytes_before[0],
            bytes_down=bytes_now[1] - bytes_before[1],
        )
        folded = tuple(Counted(u.number, u.device, discount(number - u.number, rounds.staleness)) for u in accepted)
        self._store.commit_round(number, made.version, figures, folded, carry=carry)
        self._set(made.version, made.dense, made.public, made.structure, self._views.structure.mask)
        return figures

    def _made(self, accepted: tuple[AcceptedUpdate, ...], *, examined: bool) -> Made:
        return next_model(
            self._store,
            self._manifest,
            self._settings,
            self._current,
            self._views,
            self.view_for,
            accepted,
            self._examine if examined else None,
            self._clock,
            self._distiller,
        )

    def _undamaged(self, accepted: tuple[AcceptedUpdate, ...], fault: DamagedError) -> tuple[AcceptedUpdate, ...]:
        """Those whose payloads are as they came. Altered ones are discarded, which is stated and counted. A round of
        which nothing is left stops the run; and so does a file that is gone, which bits that flip do not explain."""
        lost: dict[tuple[int, str], DamagedError] = {}
        for update in accepted:
            try:
                self._store.updates.read(update.digest)
            except DamagedError as error:
                lost[update.number, update.device] = error
        gone = any(not self._store.updates.has(update.digest) for update in accepted)
        if gone or not lost or len(lost) == len(accepted):
            raise fault
        for (number, device), why in lost.items():
            log.error("discarded device=%s round=%d damaged: %s", device, number, why)
            self._store.discard(number, device, f"damaged: {why}")
        return tuple(update for update in accepted if (update.number, update.device) not in lost)

    def _readable(self, accepted: Iterable[AcceptedUpdate]) -> tuple[AcceptedUpdate, ...]:
        """Those whose values have a place in the model. The others are discarded, which is stated and counted."""
        kept = []
        for update in accepted:
            try:
                self.view_for(update.task.version, update.variant)
            except SparsefleetError as error:
                log.error("discarded device=%s round=%d structure-gone: %s", update.device, update.number, error)
                self._store.discard(update.number, update.device, f"structure-gone: {error}")
            else:
                kept.append(update)
        return tuple(kept)

    def _set(
        self, version: ModelVersion, dense: Vector, public: Vector, structure: Structure, held: Mask | None
    ) -> None:
        self._current = version
        steps = self._store.differences(version.version, self._settings.downlink.keep_versions)
        recent = self._store.told(partial(recent_norms, version=version.version, most=RECENT))
        self._hard_bounds = hard_bounds(self._settings.limits.norm, recent)
        put = self._store.put_model
        self._views = Views(self._manifest, dense, version.published, structure, put, held, public, steps)
