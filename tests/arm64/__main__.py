"""The arm64 job: the agent's tests and one federated round on an emulated arm64 Debian. `make arm64` runs it.

What cannot be done on a machine (no root, no binfmt_misc) is said with its remedy and ends well, but in CI (CI=true).
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devices.images.cache import cache_folder
from tests.arm64 import machine, results, wheels
from tests.arm64.fleet import federated_round
from tests.bundles import READY

ROOT = Path(__file__).parents[2]
# Without the embedded broker, which is the coordinator's and never runs on a board. amqtt loses clients in emulation: 9
# of 21 runs of the transport contract failed, in several ways, a minute's patience or not; with mosquitto none of 21
# did, nor any of 10 natively. Why is not known.
WITHOUT = "not embedded"
SUITES = ("tests/agent", "tests/runtimes", "tests/protocol", "tests/sparse")
# A model that every backend trains; see tests/export/zoo.py.
FLEET_MODEL = "cnn_with_batch_norm"
# What takes seconds natively may take a minute under emulation, on a machine that has other work too.
TEST_S, SUITES_S, FACTS_S = 900, 1800.0, 120.0
FACTS = "import onnxruntime, numpy; print('onnxruntime', onnxruntime.__version__, 'numpy', numpy.__version__)"


def main() -> int:
    # One order of lines, whoever prints: this program or what it starts.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # Told to end, it leaves no container and no folder behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        machine.prepare()
    except machine.MachineError as error:
        return _cannot(str(error))
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="arm64-run-") as folder, _timed("all of it"):
        return _job(Path(folder))


def _cannot(reason: str) -> int:
    in_ci = os.environ.get("CI") == "true"
    print(f"arm64: {'cannot run' if in_ci else 'skipped'}: {reason}")
    return 1 if in_ci else 0


def _job(folder: Path) -> int:
    cache = cache_folder()
    with _timed("arm64 root (made once, then cached)"):
        image = machine.image(cache)
    with _timed("wheels (third parties' cached) and our own, built and installed"):
        site = wheels.site(cache, folder / "site")
    with _timed("bundles of the zoo, exported here"):
        bundles = _bundles(folder / "bundles")
    container = machine.Container(
        image,
        {
            machine.DIST_PACKAGES: (site, False),
            "/bundles": (bundles, False),
            "/job": (_tests(folder / "job"), True),
        },
        {READY: "/bundles", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"},
        "/job",
    )
    print("arm64: the container's architecture and runtime:")
    machine.run(container, ("uname", "-m"), FACTS_S)
    machine.run(container, ("python3", "-c", FACTS), FACTS_S)
    print(f"arm64: edge-agent check of {FLEET_MODEL}, there:")
    check = ("python3", "-m", "edge_agent", "check", "--bundle", f"/bundles/{FLEET_MODEL}")
    agrees = machine.run(container, check, FACTS_S)
    good = _suites(container, folder / "job" / "results.xml")
    with _timed("a federated round, one device here and one there"):
        facts = federated_round(container, bundles / FLEET_MODEL, _made(folder / "fleet"))
    for name, value in facts.items():
        print(f"  {name}: {value}")
    return 0 if good and agrees == 0 else 1


def _suites(container: machine.Container, found: Path) -> bool:
    """Runs the tests there and prints what came of them; whether all is well."""
    with _timed(f"{', '.join(SUITES)}, there"):
        print(f"  left out, by -k {WITHOUT!r}: the embedded broker, unreliable in emulation and never on a board")
        print("  left out, by -m 'not native': a process a test; the round below and test-deb.sh start them there")
        options = ("-q", f"--timeout={TEST_S}", f"--junitxml=/job/{found.name}")
        command = ("python3", "-m", "pytest", *options, "-k", WITHOUT, "-m", "not native", *SUITES)
        code = machine.run(container, command, SUITES_S)
    if not found.exists():
        print(
            f"arm64: the tests ended with exit code {code} and without results; podman events tells if they were killed"
        )
        return False
    run = results.read(found)
    print(f"  passed {run.passed}, failed {run.failed}, skipped {sum(run.skipped.values())}, {run.seconds:.0f} s")
    for reason, count in run.skipped.items():
        print(f"  skipped {count}: {reason}")
    for complaint in run.complaints():
        print(f"arm64: {complaint}")
    return code == 0 and not run.complaints()


def _bundles(folder: Path) -> Path:
    """The zoo, exported by this machine's torch; or as it lies ready where the environment says."""
    if ready := os.environ.get(READY):
        return Path(ready).absolute()
    subprocess.run([sys.executable, "-m", "tests.bundles", str(folder)], cwd=ROOT, check=True)
    return folder


def _tests(folder: Path) -> Path:
    """The tests and their settings, without the packages: those are to come from the wheel."""
    folder.mkdir()
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@contextmanager
def _timed(what: str) -> Iterator[None]:
    print(f"arm64: {what}")
    started = time.monotonic()
    yield
    print(f"arm64: {what}: {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
