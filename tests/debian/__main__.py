"""The packages on Debian 12 in containers, from installation to purge. `packaging/test-deb.sh` runs it.

What cannot be done on a machine (no root, no podman) is said with its remedy and ends well, but in CI (CI=true).
"""

import argparse
import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devices.images.cache import cache_folder
from tests.arm64 import machine
from tests.bundles import READY
from tests.debian import coordinators, in_images, journey, managed, pythons
from tests.debian.boards import agent_image, board

ROOT = Path(__file__).parents[2]
# What is upgraded: a version lower than any that was released, of the first commit whose packages were whole, by its
# own scripts. Of this tree where history is not at hand. tests/test_versions.py has agents and coordinators of 0.1.
OLD = "0.1.99"
BEFORE = "e76ee7e798e331bd634f73d72054aaa120fdd233"
MODEL = "cnn_with_batch_norm"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Test the Debian packages on this machine, in containers.",
        epilog="example: make deb && packaging/test-deb.sh --architecture amd64",
    )
    parser.add_argument("--architecture", choices=("amd64", "arm64"), action="append", help="default: both")
    parser.add_argument("--packages", type=Path, help="folder of packages to test (default: built for the test)")
    options = parser.parse_args()
    # One order of lines, whoever prints: this program or what it starts.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # Told to end, it leaves no container and no folder behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        machine.prepare()
    except machine.MachineError as error:
        in_ci = os.environ.get("CI") == "true"
        print(f"deb: {'cannot run' if in_ci else 'skipped'}: {error}")
        return 1 if in_ci else 0
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="deb-run-") as folder, _timed("all of it"):
        _job(Path(folder), options.architecture or ["amd64", "arm64"], options.packages)
    return 0


def _job(folder: Path, architectures: list[str], given: Path | None) -> None:
    packages = folder / "packages"
    before = _before(folder)
    with _timed(f"packages, and older ones to upgrade from, of {'this tree' if before is ROOT else BEFORE[:12]}"):
        for architecture in architectures:
            _build(packages, architecture, OLD, "edge-agent", before)
            if given is None:
                _build(packages, architecture, None, "edge-agent", ROOT)
        if given is None and "amd64" in architectures:
            _build(packages, "amd64", None, "fleet-coordinator", ROOT)
        for package in (given or folder).glob("*.deb"):
            (packages / package.name).hardlink_to(package)
    with _timed(f"the bundle {MODEL}, exported here"):
        bundle = _bundle(folder / "bundles") / MODEL
    for architecture in architectures:
        with _timed(f"{architecture}: from installation to purge"):
            _travel(folder, packages, architecture, bundle)
        with _timed(f"{architecture}: the image of devices"):
            _image(folder, packages, architecture, bundle)
    if "amd64" in architectures:
        with _timed("amd64: under systemd, as the first process"):
            _manage(folder, packages, bundle)
        with _timed("amd64: the wheel with another Python"):
            (folder / "wheels").mkdir()
            device = folder / "managed" / journey.DEVICE
            _say(pythons.travel(cache_folder(), folder / "wheels", bundle, device))
        with _timed("amd64: the coordinator's package"):
            coordinators.travel(cache_folder(), packages, bundle)


def _manage(folder: Path, packages: Path, bundle: Path) -> None:
    place = folder / "managed"
    place.mkdir()
    (new,) = (path.name for path in packages.glob("edge-agent_*_amd64.deb") if OLD not in path.name)
    fleet = journey.make_fleet(place, bundle)
    _let_read(folder, place)
    try:
        managed.travel(cache_folder(), fleet, _mounts(packages, place), new, _say)
    finally:
        fleet.stop()


def _travel(folder: Path, packages: Path, architecture: str, bundle: Path) -> None:
    place = folder / architecture
    place.mkdir()
    found = sorted(path.name for path in packages.glob(f"edge-agent_*_{architecture}.deb"))
    (new,) = (name for name in found if OLD not in name)
    (old,) = (name for name in found if OLD in name)
    other = next((path.name for path in packages.glob("edge-agent_*.deb") if architecture not in path.name), None)
    fleet = journey.make_fleet(place, bundle)
    _let_read(folder, place)
    image = None
    if architecture == "amd64":
        (place / "context").mkdir()
        (place / "context" / new).hardlink_to(packages / new)
        image = agent_image(place / "context", cache_folder())
    with board(architecture, cache_folder(), _mounts(packages, place)) as there:
        try:
            journey.refuses(there, new, other)
            journey.travel(there, fleet, old, new, image, _say)
        finally:
            fleet.stop()


def _image(folder: Path, packages: Path, architecture: str, bundle: Path) -> None:
    place = folder / f"image-{architecture}"
    place.mkdir()
    (new,) = (path for path in packages.glob(f"edge-agent_*_{architecture}.deb") if OLD not in path.name)
    fleet = journey.make_fleet(place, bundle)
    _let_read(folder, place)
    try:
        in_images.travel(architecture, new, fleet, _say)
    finally:
        fleet.stop()


def _mounts(packages: Path, place: Path) -> dict[str, Path]:
    return {"/packages": packages, "/packaging": ROOT / "packaging", "/device": place / journey.DEVICE}


def _let_read(folder: Path, place: Path) -> None:
    """The device's user reads its data, and nobody else needs to."""
    for path in (folder, place, place / journey.DEVICE):
        path.chmod(0o755)


def _say(text: str) -> None:
    print("  " + text.replace("\n", "\n  "))


def _bundle(folder: Path) -> Path:
    """A folder with the model's bundle, exported by this machine's torch; or as it lies ready where the environment
    says."""
    if ready := os.environ.get(READY):
        return Path(ready).absolute()
    subprocess.run([sys.executable, "-m", "tests.bundles", str(folder), MODEL], cwd=ROOT, check=True)
    return folder


def _before(folder: Path) -> Path:
    """The sources of that commit, from this clone's history; this tree where it does not reach so far."""
    made = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE], capture_output=True)
    if made.returncode != 0:
        return ROOT
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder / "before", filter="data")
    return folder / "before"


def _build(out: Path, architecture: str, version: str | None, package: str, tree: Path) -> None:
    words = ["--out", str(out), "--architecture", architecture, "--package", package, "--fast"]
    words += ["--keep", str(cache_folder() / "deb")]
    words += ["--version", version] if version else []
    subprocess.run([sys.executable, str(tree / "packaging/build_deb.py"), *words], check=True)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    print(f"deb: {what}")
    started = time.monotonic()
    yield
    print(f"deb: {what}: {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
