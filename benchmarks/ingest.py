"""What a coordinator takes in: updates and chunks a second, durably; its restart; a fleet that reconnects at once.

    python -m benchmarks.ingest --json          # about five minutes
    python -m benchmarks.ingest --quick

A real coordinator process and a real mosquitto; the devices are light ones in this process (wire_devices.py), on the
same machine and its cores. updates_per_s: of small updates, all offered at once by their devices, from the first offer
to the last receipt, the median of the rounds. chunk_mb_per_s: the same for large ones, in millions of bytes.
restart_s: from SIGKILL to the first answer of the next process, which knows `known` devices and has `pending_mib` of
half-sent updates on disk. reconnect_s: after coordinator and broker were killed and began again, until each of
`reconnecting` devices was greeted. PSS is the coordinator's highest over all of it.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import noise_bundle
from benchmarks.harness import Row, options, progress_console, publish
from benchmarks.memory import pss_mib
from benchmarks.wire_devices import WireDevice
from coordinator.broker import find_mosquitto, start_broker
from coordinator.rows import DeviceActivity
from coordinator.settings import LimitSettings
from coordinator.store import Store
from devices.processes import Child, start, stop
from protocol.bundle import Bundle
from protocol.errors import ConfigurationError
from protocol.mqtt import BrokerAddress, free_port, parse_url
from protocol.topics import Topics

FLEET = "ingest"
DISK_MIB = 16384
# Nothing here takes so long that it is not a failure.
PATIENCE_S = 600.0
LOOK_EVERY_S = 0.005

CONFIG = """\
fleet = "{fleet}"
bundle = "{bundle}"
state = "{state}"
seed = {seed}

[broker]
url = "{url}"
port = {port}
plain = "loopback"

[rounds]
count = 1000
devices = {devices}
deadline_s = 3600.0

[training]
local_steps = 1
batch_size = 1
learning_rate = 0.1

[limits]
disk_mib = {disk_mib}
keep_rounds = 1
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of each. small: parameters of a small update's model; large: of a large one's."""

    small: int
    devices: int
    rounds: int
    large: int
    uploads: int
    known: int
    pending: int
    reconnecting: int


WHOLE = Sizes(1_000, 1_000, 5, 4_194_304, 16, 10_000, 64, 2_000)
QUICK = Sizes(1_000, 50, 2, 262_144, 4, 1_000, 4, 100)


@dataclass(slots=True)
class Home:
    """A coordinator's folder, its process, and the highest memory that was seen of it."""

    folder: Path
    config: Path
    child: Child | None = None
    peak_mib: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__ or "")
    chosen = parser.parse_args(arguments)
    found = find_mosquitto()
    if found is None:
        raise ConfigurationError(
            "mosquitto: none of version 2.0 or later was found; install it (apt install mosquitto)"
        )
    sizes = QUICK if chosen.quick else WHOLE
    console = progress_console()
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        row = asyncio.run(measure(Path(folder), sizes, chosen.seed, console))
    versions = {"mosquitto": found.version}
    publish([row], seed=chosen.seed, as_json=chosen.json, title="What a coordinator takes in", versions=versions)
    return 0


async def measure(folder: Path, sizes: Sizes, seed: int, console: Console) -> Row:
    """All of it, one after the other."""
    rng = np.random.default_rng(seed)
    small = noise_bundle.write(folder / "small", sizes.small)
    large = noise_bundle.write(folder / "large", sizes.large)
    with console.status("small updates") as status:
        rates, many_mib = await _updates(folder / "updates", small, sizes.devices, sizes.rounds, rng)
        status.update("large updates")
        per_s, large_mib = await _chunks(folder / "chunks", large, sizes.uploads, rng)
        status.update("restart")
        restart_s, pending_mib, restart_mib = await _restart(folder / "restart", large, sizes, rng)
        status.update("reconnecting")
        reconnect_s, storm_mib = await _storm(folder / "storm", small, sizes.reconnecting, rng)
    return {
        "updates_per_s": round(statistics.median(rates), 1),
        "updates_per_s_least": round(min(rates), 1),
        "chunk_mb_per_s": round(per_s, 1),
        "known": sizes.known,
        "pending_mib": pending_mib,
        "restart_s": round(restart_s, 3),
        "reconnecting": sizes.reconnecting,
        "reconnect_s": round(reconnect_s, 2),
        "coordinator_pss_mib": round(max(many_mib, large_mib, restart_mib, storm_mib), 1),
    }


async def _updates(
    folder: Path, bundle: Bundle, devices: int, rounds: int, rng: np.random.Generator
) -> tuple[list[float], float]:
    """Updates a second of each round."""
    rates = []
    async with _site(folder, bundle, devices, rng) as (home, fleet):
        for _ in range(rounds):
            rates.append(devices / await _deliver(fleet, bundle))
    return rates, home.peak_mib


async def _chunks(folder: Path, bundle: Bundle, devices: int, rng: np.random.Generator) -> tuple[float, float]:
    """Millions of bytes a second, of one round's updates."""
    async with _site(folder, bundle, devices, rng) as (home, fleet):
        seconds = await _deliver(fleet, bundle)
    return devices * bundle.manifest.parameters * 4 / 1e6 / seconds, home.peak_mib


async def _deliver(fleet: list[WireDevice], bundle: Bundle) -> float:
    """Seconds from the first offer to the last receipt, of a round in which everyone has a task."""
    await _until(lambda: all(device.fresh for device in fleet))
    for device in fleet:
        device.offer(partial(noise_bundle.update, bundle))
        await asyncio.sleep(0)
    # The answers to the tasks are behind it, so that only updates are measured.
    await asyncio.sleep(1.0)
    began = time.monotonic()
    for device in fleet:
        device.say_offer()
    await _until(lambda: all(device.verdict is not None for device in fleet))
    rejected = [d.verdict for d in fleet if d.verdict is not None and d.verdict.verdict != "accepted"]
    assert not rejected, rejected[0]
    return max(d.moments.settled or 0.0 for d in fleet) - began


async def _restart(folder: Path, bundle: Bundle, sizes: Sizes, rng: np.random.Generator) -> tuple[float, int, float]:
    """Seconds from the kill to the first answer, and MiB that were half-sent then."""
    state = folder / "state"
    store = Store(state, LimitSettings(disk_mib=DISK_MIB))
    store.note(
        [DeviceActivity(f"known-{i}", "0", "none", False, 10, 0.0) for i in range(sizes.known - sizes.pending)], {}, {}
    )
    store.close()
    async with _site(folder, bundle, sizes.pending, rng, withhold=True) as (home, fleet):
        await _until(lambda: all(device.task is not None for device in fleet))
        for device in fleet:
            device.offer(partial(noise_bundle.update, bundle))
            device.say_offer()
            await asyncio.sleep(0.05)
        wanted = sizes.pending * (bundle.manifest.parameters * 4 // 65536)
        await _until(lambda: sum(device.chunks_sent for device in fleet) >= wanted)
        pending = sum(path.stat().st_size for path in (state / "updates").iterdir()) >> 20
        assert home.child is not None
        before = fleet[0].moments.welcomed
        home.child.process.kill()
        began = time.monotonic()
        home.child.process.wait()
        _launch(home)
        while fleet[0].moments.welcomed in (None, before):
            fleet[0].greet()
            await asyncio.sleep(0.02)
        seconds = time.monotonic() - began
    return seconds, pending, home.peak_mib


async def _storm(folder: Path, bundle: Bundle, devices: int, rng: np.random.Generator) -> tuple[float, float]:
    """Seconds until everyone was greeted, after coordinator and private broker were killed and began again."""
    port = free_port()
    address = BrokerAddress("127.0.0.1", port)
    async with (
        _coordinator(folder, bundle, "mosquitto", 2 * devices, rng, port) as home,
        _fleet(address, devices, rng) as fleet,
    ):
        assert home.child is not None
        home.child.process.kill()
        home.child.process.wait()
        await _until(lambda: all(device.moments.connected is None for device in fleet))
        await asyncio.sleep(5.0)
        began = time.monotonic()
        _launch(home)
        await _until(lambda: all(device.moments.welcomed is not None for device in fleet))
        seconds = time.monotonic() - began
    return seconds, home.peak_mib


# What it runs on


@asynccontextmanager
async def _site(
    folder: Path, bundle: Bundle, devices: int, rng: np.random.Generator, *, withhold: bool = False
) -> AsyncIterator[tuple[Home, list[WireDevice]]]:
    """A broker, a coordinator whose rounds are of so many devices, and these."""
    async with (
        _broker(folder) as url,
        _coordinator(folder, bundle, url, devices, rng) as home,
        _fleet(parse_url(url), devices, rng, withhold=withhold) as fleet,
    ):
        yield home, fleet


@asynccontextmanager
async def _broker(folder: Path) -> AsyncIterator[str]:
    """A mosquitto of its own, which outlives the coordinator; its URL."""
    broker = start_broker("mosquitto", free_port(), folder / "broker")
    try:
        yield broker.url
    finally:
        broker.close()


@asynccontextmanager
async def _coordinator(
    folder: Path, bundle: Bundle, url: str, devices: int, rng: np.random.Generator, port: int = 0
) -> AsyncIterator[Home]:
    """A coordinator whose rounds are of so many devices."""
    folder.mkdir(exist_ok=True)
    seed = int(rng.integers(1 << 31))
    text = CONFIG.format(
        fleet=FLEET,
        bundle=bundle.root,
        state=folder / "state",
        seed=seed,
        url=url,
        port=port,
        devices=devices,
        disk_mib=DISK_MIB,
    )
    config = folder / "coordinator.toml"
    config.write_text(text)
    home = Home(folder, config)
    _launch(home)
    watch = asyncio.create_task(_watch(home))
    try:
        yield home
    finally:
        watch.cancel()
        if home.child is not None:
            stop([home.child])


def _launch(home: Home) -> None:
    command = (sys.executable, "-m", "coordinator", "run", "--config", str(home.config))
    home.child = start("coordinator", command, home.folder / "log")


async def _watch(home: Home) -> None:
    while True:
        await asyncio.sleep(0.2)
        if home.child is not None:
            home.peak_mib = max(home.peak_mib, pss_mib(home.child.process.pid) or 0.0)


@asynccontextmanager
async def _fleet(
    address: BrokerAddress, devices: int, rng: np.random.Generator, *, withhold: bool = False
) -> AsyncIterator[list[WireDevice]]:
    """Devices that have been greeted."""
    topics = Topics(FLEET)
    fleet = [
        WireDevice(topics, f"device-{i}", np.random.default_rng(rng.integers(1 << 31)), withhold=withhold)
        for i in range(devices)
    ]
    tasks = [asyncio.create_task(device.run(address)) for device in fleet]
    try:
        await _until(lambda: all(device.moments.welcomed is not None for device in fleet))
        yield fleet
    finally:
        for device in fleet:
            device.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until(reached: Callable[[], bool]) -> None:
    """Waits for it. Raises TimeoutError after PATIENCE_S."""
    async with asyncio.timeout(PATIENCE_S):
        while not reached():
            await asyncio.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    sys.exit(main())
