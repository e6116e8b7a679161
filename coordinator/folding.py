"""How a round's updates are folded: weights and norms bounded, then by the rule that was chosen, or with noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from coordinator.fold import Decoded, Folded, Weighted, fold
from coordinator.norms import Norms, clip_factors, fold_bounds, most_weight, norms_of
from coordinator.privacy import load_key, private_fold
from coordinator.robust import robust_fold
from coordinator.rows import AcceptedUpdate
from coordinator.settings import Settings
from coordinator.standing import Standing
from coordinator.trust_settings import FoldSettings, PrivacySettings

# The round and the device of an update.
Named = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Caution:
    """How little a fold believes.

    weight: no update counts for more than so many times the median, 0 for any. recent: norms of the updates that were
    folded before, the newest first. folder: where updates that are too large for memory are spilled. run, key: of the
    noise, where there is any. standing: of devices, after the fold before.
    """

    fold: FoldSettings
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    weight: float = 0.0
    recent: tuple[Norms, ...] = ()
    folder: Path = Path()
    run: str = ""
    key: bytes = b""
    standing: Standing = field(default_factory=dict)


# Of versions from before anything was bounded.
CREDULOUS = Caution(FoldSettings(clip="none"))


@dataclass(frozen=True, slots=True)
class Bounded:
    """A fold, and how many of its updates were cut to its bounds."""

    folded: Folded
    clipped: int


def caution_of(
    settings: Settings, run: str, state: Path, recent: tuple[Norms, ...], *, make_key: bool = True
) -> Caution:
    """As the settings ask for. Raises ConfigurationError where the key of the noise is not whole, or not there and not
    to be made."""
    key = load_key(state, make=make_key) if settings.privacy.on else b""
    # Without a hub a version is the mean of all devices' models, and of none of them less.
    fold_settings = replace(settings.fold, clip="none") if settings.gossip.on else settings.fold
    return Caution(fold_settings, settings.privacy, settings.limits.weight, recent, state, run, key)


def bound_weights(updates: Sequence[AcceptedUpdate], factor: float) -> tuple[AcceptedUpdate, ...]:
    """The same updates, none of which counts for more than `factor` times the median."""
    most = most_weight([update.weight for update in updates], factor)
    return tuple(replace(update, weight=min(update.weight, most)) for update in updates)


def fold_bounded(
    caution: Caution,
    updates: Sequence[Weighted],
    norms: Mapping[Named, Norms],
    decode: Callable[[Weighted], Decoded],
    n_parameters: int,
    n_buffers: int,
    label: bytes = b"",
) -> Bounded:
    """A function of the set of updates and of the caution, by which weights are bounded already.

    norms: by round and device, as found at intake; one that is missing is found now. label: of the fold and its set, by
    which noise and buckets are drawn.
    """
    if caution.privacy.on:
        return Bounded(private_fold(caution.privacy, updates, decode, n_parameters, caution.key, label), 0)
    settings = caution.fold
    if settings.clip != "none":
        known = {_named(u): norms.get(_named(u)) or norms_of(decode(u)) for u in updates}
        most = fold_bounds(settings, n_parameters, list(known.values()), caution.recent)
        updates = [_clipped(update, known[_named(update)], most) for update in updates]
    clipped = sum(update.clip < 1.0 or update.clip_buffers < 1.0 for update in updates)
    if settings.rule == "mean":
        return Bounded(fold(updates, decode, n_parameters, n_buffers), clipped)
    folded = robust_fold(settings, updates, decode, n_parameters, n_buffers, caution.folder, label, caution.standing)
    return Bounded(folded, clipped)


def _named(update: Weighted) -> Named:
    return update.number, update.device


def _clipped(update: Weighted, found: Norms, most: Norms) -> Weighted:
    factors = clip_factors(found, most)
    return replace(update, clip=factors.parameters, clip_buffers=factors.buffers)
