"""What a fleet needs before its first process starts: examples, a bundle, images, and calibrated shares."""

import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from devices.conductor.calibrating import Bench, Calibrated, Share, calibrate
from devices.conductor.coordinating import Coordinating
from devices.conductor.fleet_settings import SHARD, coordinator_toml
from devices.conductor.folder import SETTINGS, Noted
from devices.conductor.members import Member
from devices.conductor.raising import device_folder
from devices.conductor.room import available_mib
from devices.conductor.shaping import kernel_shapes
from devices.conductor.telling import Telling
from devices.datasets import PROJECT_ROOT, Dataset, load_dataset
from devices.demo import EXPORTED
from devices.engines.engine import Engine
from devices.fleet.board import Architecture
from devices.fleet.clock import Clock, runs
from devices.fleet.commands import this_machine
from devices.fleet.fleet_file import DEVICE
from devices.fleet.forecast import Machine, forecast
from devices.fleet.plan import FleetPlan
from devices.fleet.record import FleetRecord
from devices.fleet.reference import BATCH, MODEL
from devices.images import making, needs
from devices.partition import MINIMUM_EXAMPLES, split, write_shards
from devices.presets import PRESETS
from devices.processes import Child, start
from devices.workspace import BUNDLE, ensure_bundle
from protocol.errors import ConfigurationError
from protocol.mqtt import free_port

# The bundle of the reference step lies here where the fleet trains something else.
REFERENCE = "reference"
_REFERENCE_DATA = "digits"


@dataclass(frozen=True, slots=True)
class Parts:
    """How the parts of this project are started here."""

    export: tuple[str, ...] = (sys.executable, "-m", "export")
    coordinator: tuple[str, ...] = (sys.executable, "-m", "coordinator")


@dataclass(slots=True)
class Fleet:
    """A fleet on its way up, and all that is to be taken away again. engines: by the name of each device.

    at_most_s: real seconds that all of it may take. record: what became of it, once that is written down.
    """

    plan: FleetPlan
    folder: Path
    engine: Engine
    engines: Mapping[str, Engine]
    telling: Telling
    keep: bool = False
    at_most_s: float | None = None
    parts: Parts = field(default_factory=Parts)
    calibrated: Calibrated = field(default_factory=lambda: Calibrated(Clock(1.0)))
    images: dict[Architecture, str] = field(default_factory=dict)
    children: list[Child] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    index: Noted | None = None
    record: FleetRecord | None = None
    began: datetime = field(default_factory=lambda: datetime.now().astimezone())
    began_at: float = field(default_factory=time.monotonic)

    def note(self) -> None:
        """Has the index know our children, before anybody may have to end them without us."""
        if self.index is not None:
            self.index.add(child.process.pid for child in self.children)

    @property
    def clock(self) -> Clock:
        return self.calibrated.clock

    @property
    def contained(self) -> bool:
        return self.engine.name != "processes"

    @property
    def coordinating(self) -> Coordinating:
        return Coordinating(self.parts.coordinator, self.folder)


def prepare_files(fleet: Fleet) -> None:
    """Examples and the bundle. Raises ConfigurationError, and PartFailedError where the export fails."""
    if DEVICE in fleet.plan.data:
        _copy_data(fleet)
    else:
        _prepare_data(fleet)
    if fleet.plan.coordinator is None:
        _prepare_bundle(fleet, fleet.folder, PRESETS[fleet.plan.data].model)


def prepare(fleet: Fleet) -> None:
    """All of it. Raises ConfigurationError, and PartFailedError where the export fails."""
    if fleet.plan.coordinator is None:
        # What the coordinator would refuse is refused before minutes go into images and calibration.
        write_settings(fleet, Clock(fleet.plan.clock or 1.0))
        fleet.coordinating.check()
    prepare_files(fleet)
    if not fleet.contained:
        fleet.calibrated = Calibrated(Clock(fleet.plan.clock or 1.0))
        fleet.notes.append("Devices were plain processes: neither processor, memory nor disk was limited.")
        return
    prepare_images(fleet)
    if any(device.calibrated for device in fleet.plan.devices):
        _calibrate(fleet)
    else:
        given = {device.name: Share(device.cores) for device in fleet.plan.devices if device.cores is not None}
        expected = forecast(fleet.plan, this_machine())
        fleet.calibrated = Calibrated(expected.clock, expected.notes, given)
    fleet.notes += fleet.calibrated.notes
    if kernel_shapes():
        fleet.notes.append("Latency and jitter of links are netem's where they do not change; the rest is our proxy's.")


def write_settings(fleet: Fleet, clock: Clock) -> None:
    """The coordinator's, for a clock."""
    settings = coordinator_toml(fleet.plan, clock, free_port())
    (fleet.folder / SETTINGS).write_text(settings, encoding="utf-8")


def _copy_data(fleet: Fleet) -> None:
    """A pattern's file for each device becomes its data."""
    for device in fleet.plan.devices:
        source = Path(fleet.plan.data.replace(DEVICE, device.name))
        place = device_folder(fleet.folder, device.name) / "data" / SHARD
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, place)
        except OSError as error:
            raise ConfigurationError(
                f"data: {source}: cannot be read ({error.strerror}); each device needs a .npz file of its own"
            ) from None


def _prepare_data(fleet: Fleet) -> None:
    plan = fleet.plan
    with fleet.telling.stage("data") as said:
        dataset = load_dataset(plan.data)
        names = [device.name for device in plan.devices]
        # Hundreds of devices on a small data set have less than a batch each, and say so by their weight.
        least = max(1, min(MINIMUM_EXAMPLES, len(dataset.train_indices) // (2 * len(names))))
        shares = split(dataset, names, PRESETS[plan.data].alpha, np.random.default_rng(plan.seed), least)
        shards = write_shards(dataset, shares, fleet.folder, f"devices/{{device}}/data/{SHARD}")
        sizes = [shard.examples for shard in shards]
        said.append(f"{plan.data}: {sum(sizes)} examples on {len(shards)} devices, {min(sizes)} to {max(sizes)} each")


def _prepare_bundle(fleet: Fleet, folder: Path, model: str) -> None:
    def begin(source: Path, out: Path) -> Child:
        words = (*fleet.parts.export, str(source), "--out", str(out), "--force", *EXPORTED)
        child = start("export", words, fleet.folder / "logs" / "export.log", folder=PROJECT_ROOT)
        fleet.children.append(child)
        return child

    with fleet.telling.stage("bundle") as said:
        kept = ensure_bundle(folder, model, begin, lambda: None)
        said.append(f"{model}, {'kept from the last run' if kept else 'exported, parity with torch proven'}")


def prepare_images(fleet: Fleet) -> None:
    """Those of the architectures that devices in containers run."""
    wanted = sorted({runs(device, needs.here()) for device in fleet.plan.devices if not device.light})
    with fleet.telling.stage("images") as said:
        for architecture in wanted:
            fleet.images[architecture] = making.ensure(architecture, fleet.engine.name, fleet.telling.doing)  # type: ignore[arg-type]
            said.append(fleet.images[architecture])


def _calibrate(fleet: Fleet) -> None:
    plan, bundle = fleet.plan, fleet.folder / BUNDLE
    if plan.coordinator is not None or PRESETS[plan.data].model != MODEL:
        (fleet.folder / REFERENCE).mkdir(exist_ok=True)
        _prepare_bundle(fleet, fleet.folder / REFERENCE, MODEL)
        bundle = fleet.folder / REFERENCE / BUNDLE
    shard = fleet.folder / "devices" / f"{REFERENCE}.npz"
    _write_reference(load_dataset(_REFERENCE_DATA), shard)
    bench = Bench(fleet.engine, fleet.images, fleet.folder / "devices", bundle, shard)
    # How much memory is there was asked before.
    machine = Machine(needs.here(), len(os.sched_getaffinity(0)), available_mib(), {})
    with fleet.telling.stage("calibration") as said:
        fleet.calibrated = calibrate(plan, bench, machine, fleet.telling.note)
        said.append(f"an emulated second lasts {fleet.clock.real_s:g} real ones")


def _write_reference(dataset: Dataset, path: Path) -> None:
    """Some batches of examples; which ones does not matter to the time of a step."""
    some = dataset.train_indices[: 4 * BATCH]
    np.savez(path, x=dataset.x[some], y=dataset.y[some])
