"""Who holds what: examples split over devices, with label skew or by natural client, and written as shards."""

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


def split(dataset: Dataset, devices: Sequence[str], alpha: float | None, rng: np.random.Generator) -> dict[str, Ints]:
    """What each device holds of the examples that are not held out, as indices into the whole data set.

    With `alpha` by label skew; without, by natural client, which the data set must have. Raises ConfigurationError.
    """
    train = dataset.train_indices
    if alpha is not None:
        shares = by_label_skew(dataset.y[train], len(devices), alpha, rng)
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
    if parts < 1 or not alpha > 0:
        raise ConfigurationError(f"partition: {parts} devices and alpha {alpha} must both be above 0")
    if len(y) < parts * minimum:
        raise ConfigurationError(
            f"partition: {len(y)} examples are too few for {parts} devices of at least {minimum}; use fewer devices"
        )
    piles: list[list[Ints]] = [[] for _ in range(parts)]
    for label in np.unique(y):
        indices = rng.permutation(np.flatnonzero(y == label))
        cuts = np.cumsum(rng.dirichlet(np.full(parts, alpha)))[:-1] * len(indices)
        for pile, piece in zip(piles, np.split(indices, cuts.astype(np.int64)), strict=True):
            pile.append(piece)
    shares = _lift_smallest([rng.permutation(np.concatenate(pile)) for pile in piles], minimum)
    return tuple(np.sort(share) for share in shares)


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


def write_shards(dataset: Dataset, shares: Mapping[str, Ints], folder: Path) -> tuple[Shard, ...]:
    """Writes agents/<device>/shard.npz for every device, and test.npz with what is held out, under `folder`.

    `shares` holds indices into the whole data set. Each file has arrays `x` float32 and `y` int64.
    """
    shards = []
    for device, indices in shares.items():
        path = folder / "agents" / device / "shard.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, x=dataset.x[indices], y=dataset.y[indices])
        shards.append(Shard(device, path, len(indices)))
    held_out = dataset.test_indices
    np.savez(folder / "test.npz", x=dataset.x[held_out], y=dataset.y[held_out])
    return tuple(shards)


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
