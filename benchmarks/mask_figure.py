"""A figure of a fleet's mask over a run: how much of it each refresh changed, and a weight that was pruned and came
back."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator.next_model import load_model, structure_of
from coordinator.settings import LimitSettings
from coordinator.store import Store
from protocol.bundle import open_bundle


@dataclass(frozen=True, slots=True)
class History:
    """A run's versions. dense: float32[versions, n], masks: bool[versions, n], of prunable parameters alone."""

    dense: npt.NDArray[np.float32]
    masks: npt.NDArray[np.bool_]

    @property
    def changed(self) -> npt.NDArray[np.float64]:
        """Of each version but the first: the weights that its mask took in, as a share of those it keeps."""
        taken = self.masks[1:] & ~self.masks[:-1]
        return np.asarray(taken.sum(axis=1) / self.masks[1:].sum(axis=1))

    def returned(self) -> int | None:
        """The weight that moved most while it was out, of those that came back and stayed; None if there was none."""
        left = self.masks[:-1] & ~self.masks[1:]
        came = ~self.masks[:-1] & self.masks[1:]
        once = (left.sum(axis=0) == 1) & (came.sum(axis=0) == 1) & self.masks[0] & self.masks[-1]
        if not once.any():
            return None
        out, back = left.argmax(axis=0) + 1, came.argmax(axis=0) + 1
        places = np.arange(self.dense.shape[1])
        moved = np.abs(self.dense[back, places] - self.dense[out, places])
        return int(np.where(once, moved, -1.0).argmax())


def history(state: Path, bundle: Path) -> History:
    """All versions of a run that is over, from the coordinator's state folder."""
    manifest, store = open_bundle(bundle).manifest, Store(state, LimitSettings())
    try:
        prunable = np.zeros(manifest.parameters, np.bool_)
        for t in manifest.tensors:
            prunable[t.offset : t.offset + t.size] = t.kind == "parameter" and t.prunable
        dense, masks = [], []
        newest = store.current()
        assert newest is not None
        for number in range(newest.version + 1):
            version = store.version(number)
            assert version is not None, f"version {number} is not kept"
            mask = structure_of(store, version.version).mask
            assert mask is not None, f"version {number} has no mask"
            dense.append(load_model(store, version, manifest)[: manifest.parameters][prunable])
            masks.append(mask[prunable])
    finally:
        store.close()
    return History(np.array(dense), np.array(masks))


def draw(path: Path, run: History) -> None:
    """Writes the figure as SVG, the same for the same run."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mask"
    from matplotlib import pyplot, ticker

    # Each version's mask is that of the round after it, and no round comes after the last.
    run = History(run.dense[:-1], run.masks[:-1])
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7.5, 6.0), sharex=True, layout="constrained")
    rounds = np.arange(len(run.masks)) + 1
    above.bar(rounds[1:], 100 * run.changed, color="#4477aa", label="taken in anew, of the weights kept")
    above.plot(rounds, 100 * (1 - run.masks.mean(axis=1)), color="#222222", label="left out, of the prunable weights")
    above.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    above.set_ylabel("%")
    above.legend(frameon=False)
    place = run.returned()
    if place is not None:
        # The threshold between what is kept and what is left out, where one divides all weights.
        kept = np.where(run.masks, np.abs(run.dense), np.inf).min(axis=1)
        below.step(rounds, np.abs(run.dense[:, place]), where="mid", color="#4477aa", label="|w|, dense copy")
        below.step(rounds, kept, where="mid", color="#999999", linestyle=":", label="least |w| that is kept")
        out = ~run.masks[:, place]
        below.fill_between(rounds, 0, 1, where=out, step="mid", color="#ee6677", alpha=0.2, label="pruned",
                           transform=below.get_xaxis_transform())  # fmt: skip
        below.legend(frameon=False)
    below.set_xlabel("round")
    below.set_ylabel("one weight that came back")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
