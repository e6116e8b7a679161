"""The codecs of a run: what they cost its devices, and who packs the next update with which (budget.py decides)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from coordinator.budget import LADDER, MASKED_LADDER, Allowance, Rung, Spending, choose, rounds_left
from coordinator.planner import make_task
from coordinator.rows import Pace
from coordinator.settings import AUTO, Settings
from coordinator.views import View
from coordinator.wire_bytes import RoundBytes, round_bytes
from protocol.errors import Rejection
from protocol.layout import Layout
from protocol.manifest import FULL
from protocol.messages import BlobRef, Difference
from protocol.topics import Topics
from sparse.codecs import ballot_bytes, parse_codec, typical_update_bytes

# Of the names and numbers in a task, those of usual length: the run's, and of the manifest only its size is a guess.
_RUN, _MANIFEST = "0" * 12, BlobRef(bytes(32), 1 << 14)


@dataclass(frozen=True, slots=True)
class Now:
    """When devices are asked. wall_s: seconds since 1970. round_s: that rounds take, None before the first. remaining:
    rounds of the run."""

    wall_s: float
    round_s: float | None
    remaining: int


class Codecs:
    """Chooses among the codecs that the settings allow. Costs are worked out once for each size of model."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._costs: dict[tuple[str, str, int, int, bool], RoundBytes] = {}

    @property
    def only(self) -> str | None:
        """The codec of every device at all times, where there is nothing to choose and no budget to keep."""
        ladder = ladder_of(self._settings, masked=False)
        return ladder[0] if len(ladder) == 1 and not self._settings.limits.device_bytes_per_day else None

    def assigned(
        self,
        tiers: Mapping[str, str | None],
        view: Callable[[str], View],
        paces: Mapping[str, Pace],
        links: Mapping[str, float],
        today_bytes: Callable[[str], int],
        now: Now,
    ) -> dict[str, str | Rejection]:
        """A codec for each device, or why it gets no task. tiers: that devices work on, None where they choose.

        paces: of the devices' last updates. links: bytes a second that these came at.
        """
        rounds, day_bytes = self._settings.rounds, self._settings.limits.device_bytes_per_day
        if self.only is not None:
            return dict.fromkeys(tiers, self.only)
        chance = min(1.0, rounds.asked_a_round / max(1, len(tiers)))
        allowance = Allowance(
            target_s=self._settings.tiers.target_s or rounds.deadline_s,
            day_bytes=day_bytes,
            rounds_left=rounds_left(now.wall_s, now.round_s or rounds.deadline_s, now.remaining, chance),
        )
        found: dict[str, str | Rejection] = {}
        ladders: dict[tuple[str, bool], list[Rung]] = {}
        for device, tier in tiers.items():
            pace = paces.get(device)
            variant = tier or (FULL if pace is None else pace.variant)
            # Who never delivered an update has no model yet to which there is a difference.
            kind = (variant, pace is not None)
            if kind not in ladders:
                ladders[kind] = self._ladder(view(variant), view(FULL).layout if pace is not None else None)
            spending = Spending(
                codec=None if pace is None else pace.codec,
                link_bytes_s=links.get(device),
                train_s=0.0 if pace is None else pace.train_s,
                today_bytes=today_bytes(device),
            )
            found[device] = choose(device, spending, ladders[kind], allowance)
        return found

    def _ladder(self, view: View, whole: Layout | None) -> list[Rung]:
        kept = 0 if view.mask is None else int(view.mask.sum())
        rungs = []
        for codec in ladder_of(self._settings, masked=view.mask is not None):
            key = (codec, view.variant, view.blob.size, kept, whole is not None)
            if key not in self._costs:
                self._costs[key] = cost_of(self._settings, view, codec, whole)
            rungs.append(Rung(codec, self._costs[key]))
        return rungs


def ladder_of(settings: Settings, *, masked: bool) -> tuple[str, ...]:
    """The codecs that devices may be given, the richest first."""
    training = settings.training
    if training.codecs:
        return training.codecs
    if training.codec == AUTO:
        return MASKED_LADDER if masked else LADDER
    return (training.codec,)


def cost_of(settings: Settings, view: View, codec: str, whole: Layout | None = None) -> RoundBytes:
    """What a round under `codec` takes of a device that works on a view, either way.

    whole: of a device that has the version before, the layout of whole models, which then may travel as differences.
    """
    variant = view.variant if view.channels is not None else None
    seen = replace(view, differences=_step(settings, view, whole))
    task = make_task(settings, _RUN, 1, "", _MANIFEST, 1, seen, variant, codec)
    layout = view.layout
    if task.chances is not None:
        # The weights stay as they are: a device fetches them once.
        return round_bytes(Topics(settings.fleet), task, [task.chances.size], ballot_bytes(layout.n_parameters))
    update = typical_update_bytes(
        layout.n_parameters, layout.n_buffers, parse_codec(codec), view.shared(task), layout.shapes
    )
    fetched = [step.blob.size for step in task.differences] or [view.blob.size]
    if task.mask is not None:
        fetched.append(task.mask.blob.size)
    return round_bytes(Topics(settings.fleet), task, fetched, update, variant=view.variant)


def _step(settings: Settings, view: View, whole: Layout | None) -> tuple[Difference, ...]:
    """The difference from the version before, of usual size, where the model travels so."""
    if whole is None or not settings.downlink.compressed or view.places is not None or view.mask is not None:
        return ()
    spec = parse_codec(settings.downlink.codec)
    size = typical_update_bytes(whole.n_parameters, whole.n_buffers, spec, shapes=whole.shapes)
    return (Difference(bytes(32), BlobRef(bytes(32), size)),) if size < view.blob.size else ()
