"""Which channels of the whole model a width tier's devices get: the first, a rolling window, or the most important.

A narrower device trains the slice of the dense model that these channels make. The dense model stays on the server and
keeps what a slice left out, so that a channel that is left out now can come back as it was: dynamic pruning with
feedback (Lin et al., "Dynamic Model Pruning with Feedback", ICLR 2020), channel by channel.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

Mode = Literal["static", "rolling", "importance"]
MODES: tuple[Mode, ...] = get_args(Mode)
Channels = dict[str, npt.NDArray[np.int64]]
Scores = Mapping[str, npt.NDArray[np.float64]]
# Of the channels that importance keeps, the share that the others take turns in; see `select`.
EXPLORED = 0.25


class Group(Protocol):
    """Channels that come and go together: as many are kept in each of `multiple` equal parts of `size`."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def multiple(self) -> int: ...


class Segment(Protocol):
    """A stretch of a tensor's axis: `size` channels of `group` of `block` neighbouring entries, or of no group."""

    @property
    def group(self) -> str | None: ...
    @property
    def size(self) -> int: ...
    @property
    def block(self) -> int: ...


class Tensor(Protocol):
    """A tensor by name and its place in the flat model; scores are of prunable ones."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def offset(self) -> int: ...
    @property
    def prunable(self) -> bool: ...


def select(
    mode: Mode,
    groups: Sequence[Group],
    scores: Scores,
    keep: Mapping[str, int],
    round: int,  # noqa: A002 - the word for it everywhere
    refresh_every: int = 1,
    seed: int = 0,
    explored: float = EXPLORED,
) -> Channels:
    """The channels that a tier keeps in a round, by group, ascending: exactly `keep`, equally many in each part.

    static: the first ones, in every round (HeteroFL: Diao, Ding and Tarokh, ICLR 2021, section 3).
    rolling: a window of neighbours that moves on by one channel at every refresh and wraps around, so that each channel
    is trained equally often (FedRolex: Alam et al., NeurIPS 2022, section 3.2, which refreshes in every round). Windows
    of all tiers begin at the same channel, so that narrower ones lie within wider ones. seed: where they begin.
    importance: those of the highest score, of equal ones the first. Of a tier's channels the share `explored` goes to
    the rest in turn, so that a channel's score is never taken from weights that nobody has trained for long.

    Rounds count from 1; choices are made anew every `refresh_every` rounds. scores: of each group float64[size], for
    "importance" alone. Raises ValueError for an unknown mode or a number of channels that cannot be kept.
    """
    if mode not in MODES:
        raise ValueError(f"channels: {mode!r} is unknown; use {', '.join(MODES)}")
    if refresh_every < 1 or round < 1:
        raise ValueError(f"refresh_every: {refresh_every} and round {round} must both be at least 1")
    if not 0 <= explored <= 1:
        raise ValueError(f"explored: {explored} is outside 0 to 1")
    refresh = (round - 1) // refresh_every
    chosen: Channels = {}
    for group in groups:
        part, kept = group.size // group.multiple, _kept(group, keep)
        parts = []
        for start in range(0, group.size, part):
            if mode == "static":
                inside = np.arange(kept)
            elif mode == "rolling":
                inside = (seed + refresh + np.arange(kept)) % part
            else:
                inside = _important(_scores(group, scores)[start : start + part], kept, refresh, explored)
            parts.append(start + np.sort(inside))
        chosen[group.name] = np.concatenate(parts).astype(np.int64)
    return chosen


def channel_scores(
    groups: Sequence[Group],
    tensors: Sequence[Tensor],
    axes: Mapping[str, Sequence[Sequence[Segment]]],
    model: npt.NDArray[np.float32],
) -> dict[str, npt.NDArray[np.float64]]:
    """The L2 norm of each channel's weights, both those that make it and those that read it: float64[size] by group.

    model: flat, float32. Of each tensor the squares are divided by its mean square, so that a layer of many small
    weights and one of few large ones count alike. Biases and norms are not prunable and do not count.
    """
    squares = {group.name: np.zeros(group.size) for group in groups}
    for tensor in tensors:
        if not tensor.prunable or tensor.name not in axes:
            continue
        count = int(np.prod(tensor.shape))
        weights = model[tensor.offset : tensor.offset + count].astype(np.float64).reshape(tensor.shape) ** 2
        mean = weights.mean()
        for axis, segments in enumerate(axes[tensor.name]):
            along = weights.sum(axis=tuple(i for i in range(weights.ndim) if i != axis))
            start = 0
            for segment in segments:
                end = start + segment.size * segment.block
                if segment.group is not None and mean > 0:
                    squares[segment.group] += along[start:end].reshape(segment.size, -1).sum(axis=1) / mean
                start = end
    return {name: np.sqrt(total) for name, total in squares.items()}


def _important(scores: npt.NDArray[np.float64], kept: int, refresh: int, explored: float) -> npt.NDArray[np.int64]:
    """The best ones, and of the rest so many in turn; ties go by index."""
    best = np.argsort(-scores, kind="stable")
    turns = min(int(explored * kept), len(scores) - kept)
    rest = np.sort(best[kept - turns :])
    turn = rest[(refresh * turns + np.arange(turns)) % len(rest)] if turns else rest[:0]
    return np.concatenate([best[: kept - turns], turn]).astype(np.int64)


def _kept(group: Group, keep: Mapping[str, int]) -> int:
    count = keep.get(group.name, 0)
    if not 0 < count <= group.size or count % group.multiple:
        nearest = min(max(round_to(count, group.multiple), group.multiple), group.size)
        raise ValueError(
            f"keep: {count} of {group.size} channels of {group.name!r} in {group.multiple} equal parts are impossible; "
            f"the nearest that works is {nearest}"
        )
    return count // group.multiple


def round_to(count: float, multiple: int) -> int:
    """The multiple that is nearest to `count`; of two the smaller."""
    return multiple * int(np.ceil(count / multiple - 0.5))


def _scores(group: Group, scores: Scores) -> npt.NDArray[np.float64]:
    found = scores.get(group.name)
    if found is None or len(found) != group.size or not np.isfinite(found).all():
        raise ValueError(f"scores: {group.name!r} needs {group.size} finite ones, of its channels")
    return found
