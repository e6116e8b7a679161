"""Exported bundles of the zoo, for tests: written by this machine's torch, once for the sources that decide what is in
them, or found ready where there is no torch.

`python -m tests.bundles FOLDER` writes what tests on devices ask for, for a machine without torch that runs them with
SPARSEFLEET_BUNDLES=FOLDER.
"""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from devices.images.cache import cache_folder
from protocol.bundle import Bundle, open_bundle
from protocol.errors import BundleError

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

# Sets of bundles that are kept: of this tree's sources and of those before.
KEPT_SETS = 8

Zoo = Callable[[str], Bundle]


@pytest.fixture(scope="session")
def zoo() -> Zoo:
    """The opened bundle of a zoo model by name, written once for all tests that read it; read only."""
    ready = os.environ.get(READY)

    def bundle(name: str) -> Bundle:
        if not ready:
            return open_bundle(kept(name))
        folder = Path(ready) / name
        assert folder.exists(), f"{READY}={ready} holds no {name}; add it to ON_DEVICES in tests/bundles.py"
        return open_bundle(folder)

    return bundle


def kept(name: str) -> Path:
    """The bundle of a zoo model, exported unless one of the same sources, Python and libraries is there. Any number of
    processes may ask for it at once."""
    folder = _set() / name
    if not _is_whole(folder):
        with tempfile.TemporaryDirectory(dir=folder.parent) as half:
            _export(name, Path(half) / name)
            try:
                (Path(half) / name).rename(folder)
            except OSError:
                # Somebody else was first, with the same.
                assert folder.exists()
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a bundle is there; what a test or a power cut left of one is removed."""
    if not folder.exists():
        return False
    try:
        open_bundle(folder)
    except BundleError:
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


@cache
def _set() -> Path:
    """The folder for bundles of these very sources; of others the oldest are removed."""
    from devices.workspace import bundle_key

    zoo_sources = sorted((Path(__file__).parent / "export").glob("*.py"))
    digest = hashlib.sha256(bundle_key("tests/bundles.py").encode())
    for path in zoo_sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    sets = cache_folder() / "bundles"
    folder = sets / digest.hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    for old in sorted(sets.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)[KEPT_SETS:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _export(name: str, folder: Path) -> None:
    """torch comes in here only: what reads ready bundles runs without it."""
    import tests.export.quick  # noqa: F401 - for what its import does
    from export.bundle import write_bundle
    from tests.export.zoo import spec_of

    write_bundle(spec_of(name), folder, line=name.replace("_", "-"))


def main() -> None:
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or ON_DEVICES:
        shutil.copytree(kept(name), folder / name)


if __name__ == "__main__":
    main()
