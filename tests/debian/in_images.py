"""Images of devices as `fleet-emulate images` makes them: small, private, read only, with a clock of their own."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices.images import clock_environment, needs, set_clock
from devices.images.cache import cache_folder
from devices.images.recipe import USER_ID
from tests.arm64 import machine
from tests.debian import boards, journey
from tests.real_fleet import RealFleet
from tests.waiting import until

ROOT = Path(__file__).parents[2]
# Of the issue: of an image, and from a container's start to an enrolled device on x86-64.
MOST_BYTES, ENROLLED_S = 250_000_000, 5.0
ETC, STATE, DATA, CLOCK = "/etc/edge-agent", "/var/lib/edge-agent", "/data", "/run/sparsefleet/clock"
# What else a machine is about is not the image's: the target is met once of so many times, and not by a machine where
# so many processes wait for each core.
ATTEMPTS, BUSY = 3, 4
# Ahead by more than any certificate lasts, and by less than a minute's doubt.
YEARS_S, SECONDS_S = 4e8, 40.0
# What runs to its end has no health, and podman wants systemd for timers.
UNWATCHED = "--no-healthcheck"
# What every library of the agent reads, and waits that a clock that is off must leave alone.
LOOK = """
import datetime, json, sqlite3, threading, time
began, sql = time.monotonic(), sqlite3.connect(":memory:")
time.sleep(0.2), threading.Event().wait(0.2)
waited = time.monotonic() - began
(seconds,) = sql.execute("select strftime('%s', 'now')").fetchone()
found = {"time": time.time(), "datetime": datetime.datetime.now().timestamp(), "sqlite": int(seconds)}
print(json.dumps({"waited": waited, **found}))
"""

Say = Callable[[str], None]


def travel(architecture: str, package: Path, fleet: RealFleet, say: Say) -> None:
    """From the package to an enrolled device in a container, and to a round that it has trained for; each step is
    asserted."""
    image = _built(architecture, package)
    say(f"{image['name']}: {image['size_bytes'] / 1e6:.0f} MB, built in {image['seconds']} s")
    assert image["size_bytes"] < MOST_BYTES
    again = _built(architecture, package)
    assert (again["built"], again["name"]) == (False, image["name"])
    place = _device(fleet)
    _clock_is_its_own(image["name"], place)
    fleet.start_coordinator(exit_when_finished=False)
    _enrols(architecture, image["name"], fleet, place, say)
    # An emulated board has trained already, with the same package.
    if architecture == needs.here():
        _trains(architecture, image["name"], fleet, place, say)


def _built(architecture: str, package: Path) -> dict[str, Any]:
    """What the command says of the image. arm64's stands on the root of the tests for it, which is there already."""
    words = ("images", "build", "--json", "--engine", "podman", "--arch", architecture, "--deb", str(package))
    base = ("--base", machine.image(cache_folder())) if architecture != needs.here() else ()
    done = subprocess.run([sys.executable, "-m", "devices", *words, *base], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (image,) = json.loads(done.stdout)["images"]
    return dict(image)


def _device(fleet: RealFleet) -> Path:
    """A folder for each mount, whose the image's user is."""
    place = fleet.folder / "in-image"
    for name in ("etc", "state", "data"):
        (place / name).mkdir(parents=True)
    shutil.copy(fleet.folder / journey.DEVICE / "shard.npz", place / "data")
    set_clock(place / "clock", YEARS_S)
    for path in (place, *place.rglob("*")):
        os.chown(path, USER_ID, USER_ID)
    return place


def _options(place: Path) -> tuple[str, ...]:
    mounts = {ETC: "etc", STATE: "state", DATA: "data", CLOCK: "clock"}
    return (
        *("--read-only", UNWATCHED),
        *(word for there, here in mounts.items() for word in ("-v", f"{place / here}:{there}")),
        *(word for name, value in clock_environment(CLOCK).items() for word in ("-e", f"{name}={value}")),
    )


def _clock_is_its_own(image: str, place: Path) -> None:
    options = (*_options(place), "--entrypoint", "python3")
    found = json.loads(boards.once(image, options, "-c", LOOK))
    for name in ("time", "datetime", "sqlite"):
        assert abs(found[name] - time.time() - YEARS_S) < 60, found
    assert 0.4 <= found["waited"] < 10, found


def _enrols(architecture: str, image: str, fleet: RealFleet, place: Path, say: Say) -> None:
    fleet.until(lambda: any(event["event"] == "listening" for event in fleet.events))
    port = next(event["enrolment"] for event in fleet.events if event["event"] == "listening")
    set_clock(place / "clock", SECONDS_S)
    places = ("--config", f"{ETC}/agent.toml", "--state", STATE, "--data", f"{DATA}/shard.npz")
    known: tuple[str, ...] = ()
    for _ in range(ATTEMPTS):
        words = ("--url", f"127.0.0.1:{port}", "--token", fleet.token(*known), "--device", journey.DEVICE)
        started = time.monotonic()
        boards.once(image, _options(place), "enroll", *words, *places)
        took_s = time.monotonic() - started
        say(f"{architecture}: enrolled {took_s:.1f} s after its container's start")
        known = ("--device", journey.DEVICE)
        if took_s < ENROLLED_S or architecture != needs.here():
            return
    over, load = f"{took_s:.1f} s is over the target of {ENROLLED_S} s", os.getloadavg()[0]
    assert load > BUSY * (os.cpu_count() or 1), over
    say(f"{architecture}: {over}, with {load:.0f} processes that want to run: not counted")


def _trains(architecture: str, image: str, fleet: RealFleet, place: Path, say: Say) -> None:
    """A round, with the clock off; and the container is healthy then."""
    options = tuple(word for word in _options(place) if word != UNWATCHED)
    started = time.monotonic()
    with boards.running(image, {}, {}, options=options) as container:
        until(lambda: boards.is_healthy(container), "the agent is connected", journey.PATIENCE_S)
        # Its status is written every five seconds.
        say(f"{architecture}: healthy {time.monotonic() - started:.1f} s after its container's start")
        until(fleet.committed, "a round is committed", journey.PATIENCE_S)
        said = json.loads((place / "state/status.json").read_text())
        assert abs(said["written_s"] - time.time() - SECONDS_S) < 60, said
        boards.stop(container)
