"""The codecs of a run: what they cost its devices, and who packs the next update with which (budget.py decides)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coordinator.budget import LADDER, MASKED_LADDER, Allowance, Rung, Spending, choose, rounds_left
from coordinator.planner import make_task
from coordinator.rows import Pace
from coordinator.settings import AUTO, Settings
from coordinator.views import View
from coordinator.wire_bytes import RoundBytes, round_bytes
from protocol.errors import Rejection
from protocol.manifest import FULL
from protocol.messages import BlobRef
from protocol.topics import Topics
from sparse.codecs import parse_codec, typical_update_bytes

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
        self._costs: dict[tuple[str, str, int, int], RoundBytes] = {}

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
        only = ladder_of(self._settings, masked=False)
        if len(only) == 1 and not day_bytes:
            return dict.fromkeys(tiers, only[0])
        chance = min(1.0, rounds.devices * rounds.over_select / max(1, len(tiers)))
        allowance = Allowance(
            target_s=self._settings.tiers.target_s or rounds.deadline_s,
            day_bytes=day_bytes,
            rounds_left=rounds_left(now.wall_s, now.round_s or rounds.deadline_s, now.remaining, chance),
        )
        found: dict[str, str | Rejection] = {}
        ladders: dict[str, list[Rung]] = {}
        for device, tier in tiers.items():
            pace = paces.get(device)
            variant = tier or (FULL if pace is None else pace.variant)
            if variant not in ladders:
                ladders[variant] = self._ladder(view(variant))
            spending = Spending(
                codec=None if pace is None else pace.codec,
                link_bytes_s=links.get(device),
                train_s=0.0 if pace is None else pace.train_s,
                today_bytes=today_bytes(device),
            )
            found[device] = choose(device, spending, ladders[variant], allowance)
        return found

    def _ladder(self, view: View) -> list[Rung]:
        kept = 0 if view.mask is None else int(view.mask.sum())
        rungs = []
        for codec in ladder_of(self._settings, masked=view.mask is not None):
            key = (codec, view.variant, view.blob.size, kept)
            if key not in self._costs:
                self._costs[key] = cost_of(self._settings, view, codec)
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


def cost_of(settings: Settings, view: View, codec: str) -> RoundBytes:
    """What a round under `codec` takes of a device that works on a view, either way."""
    variant = view.variant if view.channels is not None else None
    task = make_task(settings, _RUN, 1, "", _MANIFEST, 1, view, variant, codec)
    layout = view.layout
    update = typical_update_bytes(
        layout.n_parameters, layout.n_buffers, parse_codec(codec), view.shared(task), layout.shapes
    )
    fetched = [view.blob.size, *([] if task.mask is None else [task.mask.blob.size])]
    return round_bytes(Topics(settings.fleet), task, fetched, update, variant=view.variant)
