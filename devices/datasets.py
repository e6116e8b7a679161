"""The labelled data sets of the examples: loaded, scaled, and with what is held out marked, ready to be split."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from devices.speech import log_mel
from protocol.errors import ConfigurationError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DATA_VARIABLE = "SPARSEFLEET_DATA"
PROJECT_ROOT = Path(__file__).resolve().parent.parent

# Fixed for good: accuracies are only comparable over the same held-out examples.
_DIGITS_SEED = 2
_DIGITS_HELD_OUT = 0.2
_HAPT_TEST_PEOPLE = (2, 4, 9, 10, 12, 13, 18, 20, 24)
_HAPT_BASIC_ACTIVITIES = 6
_FSDD_TEST_TAKES = 5


@dataclass(frozen=True, slots=True)
class Dataset:
    """n labelled examples. `x`: float32[n, *shape]; `y`: int64[n] in 0..classes-1; `test` marks what is held out.

    `group` says whose each example is (a person, a speaker), where the data has natural clients.
    """

    name: str
    x: Floats
    y: Ints
    group: Ints | None
    test: Bools
    classes: int

    def __post_init__(self) -> None:
        n = len(self.x)
        if len(self.y) != n or len(self.test) != n or (self.group is not None and len(self.group) != n):
            raise ValueError(f"{self.name}: x, y, group and test must be of one length")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.x.shape[1:]

    @property
    def train_indices(self) -> Ints:
        return np.flatnonzero(~self.test)

    @property
    def test_indices(self) -> Ints:
        return np.flatnonzero(self.test)


def load_dataset(name: str) -> Dataset:
    """The data set of that name. Raises ConfigurationError with the remedy when it is unknown or not at hand."""
    try:
        load = DATASETS[name]
    except KeyError:
        raise ConfigurationError(f"data: {name!r} is unknown; known: {', '.join(DATASETS)}") from None
    return load()


def data_folder() -> Path:
    """Where the data sets that are not built in lie."""
    return Path(os.environ.get(DATA_VARIABLE) or PROJECT_ROOT.parent / "shared" / "data")


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigurationError(
            "data: 'digits' needs scikit-learn; install the development extra: pip install -e .[dev]"
        ) from None
    bunch = load_digits()
    x = (bunch.images[:, None] / 16).astype(np.float32)
    y = bunch.target.astype(np.int64)
    return Dataset("digits", x, y, None, _stratified(y, _DIGITS_HELD_OUT, np.random.default_rng(_DIGITS_SEED)), 10)


def _hapt() -> Dataset:
    arrays = _read("hapt_windows.npz", ("x", "y", "user"))
    basic = arrays["y"] <= _HAPT_BASIC_ACTIVITIES
    x = arrays["x"][basic].astype(np.float32)
    user = arrays["user"][basic].astype(np.int64)
    test = np.isin(user, _HAPT_TEST_PEOPLE)
    # Statistics of the training people only: the held-out people must stay unseen.
    mean = x[~test].mean(axis=(0, 2), keepdims=True, dtype=np.float64)
    std = x[~test].std(axis=(0, 2), keepdims=True, dtype=np.float64)
    y = arrays["y"][basic].astype(np.int64) - 1
    return Dataset("hapt", ((x - mean) / std).astype(np.float32), y, user, test, _HAPT_BASIC_ACTIVITIES)


def _fashion() -> Dataset:
    arrays = _read("fashion_mnist.npz", ("x_train", "y_train", "x_test", "y_test"))
    images = np.concatenate([arrays["x_train"], arrays["x_test"]])
    x = images[:, None].astype(np.float32)
    x /= 255
    y = np.concatenate([arrays["y_train"], arrays["y_test"]]).astype(np.int64)
    return Dataset("fashion", x, y, None, np.arange(len(y)) >= len(arrays["y_train"]), 10)


def _fsdd() -> Dataset:
    arrays = _read("fsdd.npz", ("audio", "offsets", "digit", "speaker", "take"))
    clips = np.split(arrays["audio"], arrays["offsets"][1:-1])
    x = np.stack([log_mel(clip) for clip in clips])[:, None]
    digit, speaker = arrays["digit"].astype(np.int64), arrays["speaker"].astype(np.int64)
    return Dataset("fsdd", x, digit, speaker, arrays["take"] < _FSDD_TEST_TAKES, 10)


DATASETS: Mapping[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "hapt": _hapt,
    "fashion": _fashion,
    "fsdd": _fsdd,
}


def _read(file: str, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    path = data_folder() / file
    remedy = f"set {DATA_VARIABLE} to the folder that holds {file}, or use the built-in data: digits"
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise ConfigurationError(f"{path}: has no array {missing[0]!r}; {remedy}")
            return {name: archive[name] for name in names}
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: not found; {remedy}") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read ({error}); {remedy}") from None


def _stratified(y: Ints, fraction: float, rng: np.random.Generator) -> Bools:
    """Marks `fraction` of the examples of every label."""
    marked = np.zeros(len(y), dtype=np.bool_)
    for label in np.unique(y):
        indices = rng.permutation(np.flatnonzero(y == label))
        marked[indices[: round(fraction * len(indices))]] = True
    return marked
