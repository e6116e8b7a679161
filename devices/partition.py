"""Who holds what: examples split over devices, by label skew of three kinds or by natural client, and written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from devices.datasets import Dataset, Ints
from protocol.errors import ConfigurationError

# One batch of the smallest usual size: with fewer, a device's gradient is mostly noise.
MINIMUM_EXAMPLES = 16


@dataclass(frozen=True, slots=True)
class Shard:
    """One device's file of examples."""

    device: str
    path: Path
    examples: int


def split(
    dataset: Dataset,
    devices: Sequence[str],
    alpha: float | None,
    rng: np.random.Generator,
    minimum: int = MINIMUM_EXAMPLES,
) -> dict[str, Ints]:
    """What each device holds of the examples that are not held out, as indices into the whole data set.

    With `alpha` by label skew; without, by natural client, which the data set must have. Raises ConfigurationError.
    """
    train = dataset.train_indices
    if alpha is not None:
        shares = by_label_skew(dataset.y[train], len(devices), alpha, rng, minimum)
    else:
        assert dataset.group is not None, f"{dataset.name} has no natural clients to deal"
        shares = by_group(dataset.group[train], len(devices))
    return {device: train[share] for device, share in zip(devices, shares, strict=True)}


def by_label_skew(
    y: Ints, parts: int, alpha: float, rng: np.random.Generator, minimum: int = MINIMUM_EXAMPLES
) -> tuple[Ints, ...]:
    """Splits the examples with labels `y` over devices, each label by its own Dirichlet draw.

    For every label, shares ~ Dirichlet(alpha, ..., alpha) over the devices, and the label's shuffled examples are cut
    at the cumulated shares (Yurochkin et al. 2019, as in Lin et al. 2020; not Hsu et al. 2019, who draw
    label shares per device and keep devices of equal size). So labels and amounts both differ: nearly even
    at alpha = 100, about one device a label at alpha = 0.01. We depart from the paper in how the smallest device gets
    its `minimum`: not by drawing again until luck has it, but by moving random examples from whoever has most.

    Returns sorted index arrays into `y`, disjoint and complete. Raises ConfigurationError when there are too few.
    """
    _check(y, parts, alpha, minimum)
    piles: list[list[Ints]] = [[] for _ in range(parts)]
    for label in np.unique(y):
        indices = rng.permutation(np.flatnonzero(y == label))
        cuts = np.cumsum(rng.dirichlet(np.full(parts, alpha)))[:-1] * len(indices)
        for pile, piece in zip(piles, np.split(indices, cuts.astype(np.int64)), strict=True):
            pile.append(piece)
    shares = _lift_smallest([rng.permutation(np.concatenate(pile)) for pile in piles], minimum)
    return tuple(np.sort(share) for share in shares)


def by_class_mix(
    y: Ints, parts: int, alpha: float, rng: np.random.Generator, minimum: int = MINIMUM_EXAMPLES
) -> tuple[Ints, ...]:
    """Splits the examples with labels `y` over devices of equal size, each device by its own Dirichlet draw.

    Every device's mix of labels ~ Dirichlet(alpha p), p the mix of all (Hsu, Qi, Brown 2019, section 3). Examples are
    dealt without replacement; where a label is used up, its share of the mix goes to those that are left, so that the
    last devices have what there is. `by_label_skew` draws by label instead, and amounts differ too: the same alpha is
    more skewed there.
    """
    _check(y, parts, alpha, minimum)
    labels, counts = np.unique(y, return_counts=True)
    piles = [list(rng.permutation(np.flatnonzero(y == label))) for label in labels]
    shares = []
    for part in range(parts):
        wanted = len(y) * (part + 1) // parts - len(y) * part // parts
        # A draw of an alpha near 0 may be 0 throughout what is left; then whatever is left is dealt.
        mix = rng.dirichlet(np.maximum(alpha * counts / len(y) * len(labels), 1e-3)) + 1e-12
        taken: list[int] = []
        while len(taken) < wanted:
            left = np.array([len(pile) for pile in piles])
            now = np.where(left > 0, mix, 0.0)
            due = np.minimum(rng.multinomial(wanted - len(taken), now / now.sum()), left)
            for pile, count in zip(piles, due, strict=True):
                taken += [int(pile.pop()) for _ in range(count)]
        shares.append(np.sort(np.array(taken, dtype=np.int64)))
    return tuple(shares)


def by_shards(y: Ints, parts: int, each: int, rng: np.random.Generator) -> tuple[Ints, ...]:
    """Sorts by label, cuts into parts x each pieces of equal size, and deals every device `each` of them at random
    (McMahan et al. 2017, section 3: two each, so that most devices have two labels)."""
    if parts < 1 or each < 1 or len(y) < parts * each:
        raise ConfigurationError(
            f"partition: {len(y)} examples cannot be cut into {parts} x {each} shards; use fewer devices or shards"
        )
    pieces = np.array_split(np.argsort(y, kind="stable"), parts * each)
    dealt = rng.permutation(parts * each).reshape(parts, each)
    return tuple(np.sort(np.concatenate([pieces[i] for i in own])) for own in dealt)


def by_group(group: Ints, parts: int) -> tuple[Ints, ...]:
    """Deals whole natural clients to devices, the largest first, each to the device with fewest examples so far.

    Returns sorted index arrays, disjoint and complete. Raises ConfigurationError for more devices than clients.
    """
    names, counts = np.unique(group, return_counts=True)
    if not 1 <= parts <= len(names):
        raise ConfigurationError(
            f"partition: {len(names)} natural clients can be dealt to 1..{len(names)} devices, not {parts}"
        )
    held = np.zeros(parts, dtype=np.int64)
    owner = np.empty(len(names), dtype=np.int64)
    for i in np.argsort(-counts, kind="stable"):
        owner[i] = np.argmin(held)
        held[owner[i]] += counts[i]
    device = owner[np.searchsorted(names, group)]
    return tuple(np.flatnonzero(device == part) for part in range(parts))


def write_shards(
    dataset: Dataset, shares: Mapping[str, Ints], folder: Path, place: str = "agents/{device}/shard.npz"
) -> tuple[Shard, ...]:
    """Writes a file at its `place` for every device, and test.npz with what is held out, under `folder`.

    `shares` holds indices into the whole data set. Each file has arrays `x` float32 and `y` int64.
    """
    shards = []
    for device, indices in shares.items():
        path = folder / place.format(device=device)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, x=dataset.x[indices], y=dataset.y[indices])
        shards.append(Shard(device, path, len(indices)))
    held_out = dataset.test_indices
    np.savez(folder / "test.npz", x=dataset.x[held_out], y=dataset.y[held_out])
    return tuple(shards)


def _check(y: Ints, parts: int, alpha: float, minimum: int) -> None:
    if parts < 1 or not alpha > 0:
        raise ConfigurationError(f"partition: {parts} devices and alpha {alpha} must both be above 0")
    if len(y) < parts * minimum:
        raise ConfigurationError(
            f"partition: {len(y)} examples are too few for {parts} devices of at least {minimum}; use fewer devices"
        )


def _lift_smallest(shares: list[Ints], minimum: int) -> list[Ints]:
    """Moves examples from the largest share until none has fewer than `minimum`; there must be enough in all."""
    shares = list(shares)
    while True:
        sizes = [len(share) for share in shares]
        poor, rich = int(np.argmin(sizes)), int(np.argmax(sizes))
        if sizes[poor] >= minimum:
            return shares
        # Half the gap at most, so that giving never makes the giver the poorest.
        moved = min(minimum - sizes[poor], (sizes[rich] - sizes[poor]) // 2)
        shares[poor] = np.concatenate([shares[poor], shares[rich][:moved]])
        shares[rich] = shares[rich][moved:]
