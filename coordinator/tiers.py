"""The tiers of a run: what was measured of its devices put together, and who works on which from it."""

from collections.abc import Iterable, Mapping
from statistics import median_low

from coordinator.fleet import Fleet
from coordinator.rows import Pace
from coordinator.settings import Settings
from coordinator.tiering import Measured, Target, assign, tiers_of
from protocol.errors import ConfigurationError, Rejection
from protocol.manifest import FULL, Manifest


class Tiers:
    """Assigns devices to the width tiers of a bundle; idle where it has none, or they are turned off.

    Raises ConfigurationError for devices assigned to tiers that there are not.
    """

    def __init__(self, settings: Settings, manifest: Manifest) -> None:
        self._settings = settings
        wanted = settings.tiers.select != "off"
        self._tiers = tiers_of(manifest, settings.training.batch_size) if wanted else ()
        names = [FULL, *(variant.name for variant in manifest.variants if variant.keep)]
        for device, tier in settings.tiers.assign.items():
            if not wanted or tier not in names:
                there = ", ".join(names) if wanted and len(names) > 1 else "none"
                raise ConfigurationError(
                    f"tiers.assign: {device!r} is to work on {tier!r}; the tiers in use are {there}; change it, or "
                    "export the bundle with --tiers"
                )

    @property
    def idle(self) -> bool:
        """Whether there is nothing to assign: every device may choose what it trains."""
        return not self._tiers

    def assigned(
        self, devices: Iterable[str], fleet: Fleet, paces: Mapping[str, Pace], links: Mapping[str, float]
    ) -> dict[str, str | Rejection | None]:
        """A tier for each device, or None where it may choose; or why there is none for it.

        paces: of the devices' last updates. links: bytes a second that their updates came at.
        """
        if self.idle:
            return dict.fromkeys(devices)
        measured = {device: _measured(device, fleet, paces, links) for device in devices}
        found: dict[str, str | Rejection | None] = dict(assign(measured, self._tiers, self._target(paces)))
        pinned = self._settings.tiers.assign
        return found | {device: pinned[device] for device in measured if device in pinned}

    def _target(self, paces: Mapping[str, Pace]) -> Target:
        steps = self._settings.training.local_steps
        if not steps:
            steps = median_low([pace.steps for pace in paces.values()]) if paces else 1
        return Target(steps, self._settings.tiers.target_s or None)


def _measured(device: str, fleet: Fleet, paces: Mapping[str, Pace], links: Mapping[str, float]) -> Measured:
    pace = paces.get(device)
    return Measured(
        memory_mib=fleet.memory_mib(device),
        tier=None if pace is None else pace.variant,
        step_s=None if pace is None else pace.train_s / pace.steps,
        link_bytes_s=links.get(device),
    )
