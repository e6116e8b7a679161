"""When and how the structure is chosen anew: a pure function of settings, the structure before and the dense model."""

from coordinator.masking import first_mask, next_mask
from coordinator.settings import Settings
from coordinator.structure import Structure
from coordinator.vote import first_vote
from edge_agent.runtimes.engine import Vector
from protocol.bundle import Bundle
from protocol.manifest import Manifest
from protocol.width import Channels
from sparse.widths import channel_scores, select


def first_structure(settings: Settings, bundle: Bundle, dense: Vector) -> Structure:
    """The structure that version 0 is worked on under. dense: float32[total]."""
    if settings.masking.on:
        return first_vote(settings, bundle)
    return Structure(_channels(settings, bundle.manifest, dense, 1), first_mask(settings, bundle, dense))


def next_structure(settings: Settings, manifest: Manifest, before: Structure, dense: Vector, version: int) -> Structure:
    """The structure for `version`, whose dense model is float32[total]; many versions keep the one before."""
    # Round n works on version n - 1, and choices are made every so many rounds from the first.
    mask = next_mask(settings, manifest, before.mask, dense, version)
    if not before.channels or version % settings.tiers.refresh_every:
        return before if mask is before.mask else Structure(before.channels, mask)
    return Structure(_channels(settings, manifest, dense, version + 1), mask)


def _channels(settings: Settings, manifest: Manifest, dense: Vector, number: int) -> dict[str, Channels]:
    tiers, found = [v for v in manifest.variants if v.keep], dict[str, Channels]()
    if not tiers or settings.tiers.select == "off":
        return found
    scores = channel_scores(manifest.groups, manifest.tensors, manifest.axes, dense)
    for tier in tiers:
        found[tier.name] = select(
            settings.tiers.select,
            manifest.groups,
            scores,
            tier.keep,
            number,
            settings.tiers.refresh_every,
            settings.seed,
        )
    return found
