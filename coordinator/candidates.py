"""Who can be asked to a round, and to what: each device's tier and codec; of the others, why not.

Worked out when the round table looks, from the devices that are there and what their last updates showed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from coordinator.budget import day_of
from coordinator.codecs import Codecs, Now
from coordinator.council_room import CouncilRoom
from coordinator.fleet import Fleet
from coordinator.link import Link
from coordinator.rows import Pace
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.tiers import Tiers
from coordinator.uploads import Uploads
from coordinator.versions import Versions
from protocol.errors import Rejection
from protocol.manifest import FULL, Manifest
from protocol.messages import GOSSIP, KEPT_MOMENTUM, MASKING, QUASI_GLOBAL, Offer


@dataclass(frozen=True, slots=True)
class Part:
    """What a device would be asked to do. variant: of the bundle, None where the device may choose."""

    variant: str | None
    codec: str


class Candidates:
    """The devices of a fleet as candidates for its next round.

    refuse: is told once of each device that nothing fits, and why. council: of a fleet without a hub, whose members
    alone are asked. Raises ConfigurationError for devices assigned to tiers that there are not.
    """

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        store: Store,
        fleet: Fleet,
        link: Link,
        uploads: Uploads,
        wall: Callable[[], float],
        refuse: Callable[[str, Rejection], None],
        council: CouncilRoom | None = None,
    ) -> None:
        self._council = council
        self._settings, self._store, self._fleet = settings, store, fleet
        self._link, self._uploads, self._wall, self._refuse = link, uploads, wall, refuse
        self._tiers, self._codecs = Tiers(settings, manifest), Codecs(settings)
        self._paces = store.paces()
        self._refused: dict[str, tuple[int, Rejection]] = {}

    def delivered(self, device: str, offer: Offer) -> None:
        """Takes note of an accepted update."""
        self._paces[device] = Pace(offer.variant, offer.steps, offer.train_s, offer.codec)

    def able(self, versions: Versions) -> dict[str, Part]:
        """What each device would be asked to do now, by name; without those who can do nothing."""
        present = self._skilled()
        only = self._codecs.only
        if self._council is not None and only is not None:
            # Neighbours average whole models, so that nobody chooses to train a part.
            return dict.fromkeys((d for d in present if d in self._council.members), Part(FULL, only))
        if self._tiers.idle and only is not None:
            return dict.fromkeys(present, Part(None, only))
        tiers = self._tiers.assigned(present, self._fleet, self._paces, self._uploads.bytes_per_s)
        fitting = {device: tier for device, tier in tiers.items() if not isinstance(tier, Rejection)}
        now = Now(self._wall(), self._store.round_s(), self._settings.rounds.count - versions.number)
        codecs = self._codecs.assigned(
            fitting, versions.view, self._paces, self._uploads.bytes_per_s, self._link.today_bytes, now
        )
        parts: dict[str, Part] = {}
        for device in present:
            tier, codec = tiers[device], codecs.get(device)
            if isinstance(tier, Rejection):
                self._turn_away(device, tier, day_of(now.wall_s))
            elif isinstance(codec, Rejection):
                self._turn_away(device, codec, day_of(now.wall_s))
            else:
                assert codec is not None, "who has a tier has a codec"
                parts[device] = Part(tier, codec)
                self._refused.pop(device, None)
                self._fleet.rests(device, None)
        return parts

    def _skilled(self) -> tuple[str, ...]:
        """The devices that are there and whose agents know all that the run asks."""
        needed = skills_for(self._settings)
        if not needed:
            return self._fleet.present()
        skills = {device: self._fleet.skills(device) for device in self._fleet.present()}
        greeted = {device: said for device, said in skills.items() if said is not None}
        skilled = tuple(device for device, said in greeted.items() if needed.keys() <= said)
        for device in sorted(greeted.keys() - set(skilled)):
            agent = self._fleet[device].agent
            lacks = " or ".join(f"{skill} ({key})" for skill, key in needed.items() if skill not in greeted[device])
            why = f"{device}'s agent ({agent}) does not know {lacks}; upgrade it"
            self._turn_away(device, Rejection("agent-too-old", why), day_of(self._wall()))
        return skilled

    def _turn_away(self, device: str, why: Rejection, today: int) -> None:
        """Says so once a day, and again when the reason is another."""
        before = self._refused.get(device)
        self._refused[device] = (today, why)
        self._fleet.rests(device, today if why.reason == "budget" else None)
        if before is None or (before[0], before[1].reason) != (today, why.reason):
            self._refuse(device, why)


def skills_for(settings: Settings) -> dict[str, str]:
    """What an agent must know for a run, where not every agent does, and the key of the settings that asks it."""
    found, optimizer = {}, settings.training.optimizer
    if optimizer.name == "qg":
        found[QUASI_GLOBAL] = "training.optimizer"
    elif optimizer.keep_momentum:
        found[KEPT_MOMENTUM] = "training.optimizer"
    if settings.gossip.on:
        found[GOSSIP] = "gossip"
    if settings.masking.on:
        found[MASKING] = "masking.keep"
    return found
