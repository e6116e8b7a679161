"""The model's versions: the current one, what devices see of it, and how a round's updates become the next one."""

from collections.abc import Callable
from dataclasses import replace

from coordinator.downlink import check_downlink, steps_for
from coordinator.evaluate import Examine, accuracy_of
from coordinator.masking import check_mask
from coordinator.next_model import first_model, load_model, load_public, load_structure, next_model
from coordinator.rows import ModelVersion, RoundFigures
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.structure import Structure
from coordinator.views import View, Views
from edge_agent.runtimes.engine import Vector
from protocol.bundle import Bundle
from protocol.messages import BlobRef, SharedMask
from sparse.masks import Mask


class Versions:
    """One run's versions, from the store; makes version 0 if there is none yet. clock: in seconds, for figures."""

    def __init__(
        self, settings: Settings, bundle: Bundle, store: Store, clock: Callable[[], float], examine: Examine | None
    ) -> None:
        self._settings, self._manifest, self._store = settings, bundle.manifest, store
        self._clock, self._examine = clock, examine
        check_mask(settings, bundle.manifest)
        check_downlink(settings, masked=bundle.manifest.mask is not None)
        version = store.current() or first_model(store, bundle, settings, examine)
        before = store.version(version.version - 1)
        held = load_structure(store, before).mask if before is not None else None
        dense = load_model(store, version, bundle.manifest)
        public = load_public(store, version, bundle.manifest) if version.public is not None else dense
        structure = load_structure(store, version)
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

    def whole_mask(self, shared: SharedMask) -> SharedMask:
        """The same, for a device that has not the mask to which it is a difference."""
        return replace(self._views.announced(whole=True), report=shared.report)

    def advance(
        self, number: int, opened_at: float, bytes_before: tuple[int, int], bytes_now: tuple[int, int]
    ) -> RoundFigures:
        """Folds the round's accepted updates into the next version and commits both in one transaction."""
        accepted = self._store.accepted(number)
        rounds = self._settings.rounds
        wanted = number % self._settings.evaluation.every == 0 or number >= rounds.count
        made = next_model(
            self._store,
            self._manifest,
            self._settings,
            self._current,
            self._views,
            accepted,
            self._examine if wanted else None,
            self._clock,
        )
        seconds = self._clock() - opened_at
        longest = max(update.train_s for update in accepted)
        figures = RoundFigures(
            devices=len(accepted),
            accuracy=accuracy_of(made.version.metrics),
            seconds=seconds,
            overhead_s=max(0.0, seconds - longest - made.evaluation_s),
            evaluation_s=made.evaluation_s,
            fold_s=made.fold_s,
            bytes_up=bytes_now[0] - bytes_before[0],
            bytes_down=bytes_now[1] - bytes_before[1],
        )
        self._store.commit_round(number, made.version, figures)
        self._set(made.version, made.dense, made.public, made.structure, self._views.structure.mask)
        return figures

    def _set(
        self, version: ModelVersion, dense: Vector, public: Vector, structure: Structure, held: Mask | None
    ) -> None:
        self._current = version
        steps = self._store.differences(version.version, self._settings.downlink.keep_versions)
        put = self._store.put_model
        self._views = Views(self._manifest, dense, version.published, structure, put, held, public, steps)
