"""Exported bundles of the zoo, for tests: written by this machine's torch, or found ready where there is none.

`python -m tests.bundles FOLDER` writes what tests on devices ask for, for a machine without torch that runs them with
SPARSEFLEET_BUNDLES=FOLDER.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.bundle import Bundle, open_bundle

READY = "SPARSEFLEET_BUNDLES"
# What the tests of tests/arm64 ask for; a model more is seconds of export.
ON_DEVICES = (
    "cnn_1d",
    "cnn_with_batch_norm",
    "cnn_with_dropout",
    "mlp_classification",
    "transformer_with_dropout",
    "two_inputs_two_outputs",
)

Zoo = Callable[[str], Bundle]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """The opened bundle of a zoo model by name, written once for all tests that read it; read only."""
    ready = os.environ.get(READY)
    # One folder for every conftest that has this fixture.
    root = Path(ready) if ready else tmp_path_factory.getbasetemp() / "zoo"

    def bundle(name: str) -> Bundle:
        if not ready and not (root / name).exists():
            write(name, root / name)
        assert (root / name).exists(), f"{READY}={ready} holds no {name}; add it to ON_DEVICES in tests/bundles.py"
        return open_bundle(root / name)

    return bundle


def write(name: str, folder: Path) -> None:
    """Exports one model of the zoo. torch comes in here only: what reads ready bundles runs without it."""
    import tests.export.quick  # noqa: F401 - for what its import does
    from export.bundle import write_bundle
    from tests.export.zoo import spec_of

    write_bundle(spec_of(name), folder, line=name.replace("_", "-"))


def main() -> None:
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or ON_DEVICES:
        write(name, folder / name)


if __name__ == "__main__":
    main()
