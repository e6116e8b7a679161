"""The fleet-emulate command where digits are the tiny data of tests and their model the tiny bundle, so that it is soon
done: `python -m tests.conductor.tiny_fleet up FLEET.toml ...`."""

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np

from devices import cli
from devices.datasets import Dataset
from tests.tiny import CLASSES, FEATURES, write_bundle

_TEST = 60


def dataset(name: str) -> Dataset:
    """Two classes on either side of a plane, as many examples as a handful of devices need."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, FEATURES)).astype(np.float32)
    y = (x.sum(axis=1) > 0).astype(np.int64)
    return Dataset(name, x, y, None, np.arange(400) < _TEST, CLASSES)


def bundle(folder: Path, *_: object) -> bool:
    write_bundle(folder / "bundle")
    return False


if __name__ == "__main__":
    with (
        patch("devices.conductor.preparing.load_dataset", dataset),
        patch("devices.conductor.preparing.ensure_bundle", bundle),
    ):
        sys.exit(cli.main())
