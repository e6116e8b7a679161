"""The folder of a demo or of a fleet: who may clear it, the bundle that it keeps, and the settings written into it."""

import fcntl
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

from devices.datasets import PROJECT_ROOT
from devices.presets import Preset
from devices.processes import Child, wait
from devices.toml_text import toml_text
from protocol.bundle import open_bundle
from protocol.errors import BundleError, ConfigurationError

MARKER = ".sparsefleet-demo"
BUNDLE = "bundle"
MODEL = "inference.onnx"
REPORT = "report.html"
_KEY = "bundle.key"
# What a run makes and the next one clears; the bundle stays, for a warm start.
_MADE = ("agents", "coordinator", "trust", "logs", "coordinator.toml", "test.npz", REPORT, MODEL)
# All that decides what an export writes, besides the example itself.
_EXPORTER = ("export", "edge_agent/runtimes", "protocol", "sparse")
_EXPORTER_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime-training-cpu")


@dataclass(frozen=True, slots=True)
class Claim:
    """Whose folder it is: the file that marks it, what a run makes and the next one clears, and its name for people."""

    marker: str
    made: tuple[str, ...]
    who: str


_DEMO = Claim(MARKER, _MADE, "demo")


@contextmanager
def own_folder(folder: Path, claim: Claim = _DEMO) -> Iterator[None]:
    """Makes the folder ours, cleared of an earlier run, and keeps a second one out of it meanwhile.

    Raises ConfigurationError for a folder with anything in it that we did not make, and for one in use.
    """
    with _claim(folder, claim):
        yield


def bundle_key(model: str) -> str:
    """A digest of all that an export of FILE:FUNCTION depends on."""
    digest = hashlib.sha256(model.encode())
    files = [PROJECT_ROOT / model.partition(":")[0]]
    for package in _EXPORTER:
        files += sorted((PROJECT_ROOT / package).rglob("*.py"))
    for path in files:
        digest.update(f"\n{path.relative_to(PROJECT_ROOT)}\n".encode())
        digest.update(path.read_bytes())
    digest.update(sys.version.encode())
    for package in _EXPORTER_PACKAGES:
        try:
            digest.update(f"{package}={version(package)}\n".encode())
        except PackageNotFoundError:
            digest.update(f"{package} absent\n".encode())
    return digest.hexdigest()


def ensure_bundle(folder: Path, model: str, begin: Callable[[Path, Path], Child], tick: Callable[[], None]) -> bool:
    """Has the bundle of a model, FILE:FUNCTION under the project root, in the folder; whether it was there before.

    begin: starts an export of the first path to the second. Raises ConfigurationError, and PartFailedError.
    """
    if not (PROJECT_ROOT / model.partition(":")[0]).is_file():
        raise ConfigurationError(f"{model} is not here; run this from a checkout of the project")
    key = bundle_key(model)
    if has_bundle(folder, key):
        return True
    forget_bundle(folder)
    wait(begin(PROJECT_ROOT / model, folder / BUNDLE), tick)
    remember_bundle(folder, key)
    return False


def has_bundle(folder: Path, key: str) -> bool:
    """Whether the bundle kept in the folder was made with that key and is whole."""
    try:
        if (folder / _KEY).read_text() != key:
            return False
        open_bundle(folder / BUNDLE)
    except (OSError, BundleError):
        return False
    return True


def remember_bundle(folder: Path, key: str) -> None:
    (folder / _KEY).write_text(key)


def forget_bundle(folder: Path) -> None:
    """Before an export: half a bundle under an old key would look whole."""
    _remove(folder / _KEY)
    _remove(folder / BUNDLE)


@dataclass(frozen=True, slots=True)
class Plan:
    """The choices of one demo run."""

    fleet: str
    data: str
    devices: tuple[str, ...]
    rounds: int
    target_accuracy: float
    codec: str
    downlink: str
    port: int
    preset: Preset
    link: str | None = None
    # Where each agent connects: to the broker's port, or to that of the link before it.
    ports: Mapping[str, int] = field(default_factory=dict)


def write_settings(folder: Path, plan: Plan, *, plain: bool = False) -> None:
    """Writes coordinator.toml. plain: for a mosquitto without TLS on this machine."""
    n = len(plan.devices)
    sections: dict[str, dict[str, object]] = {
        "": {"fleet": plan.fleet, "state": "coordinator", "bundle": BUNDLE},
        "broker": {"url": "auto", "port": plan.port, "plain": "loopback" if plain else "no"},
        "trust": {"folder": "trust", "port": 0},
        "rounds": {
            "count": plan.rounds,
            "target_accuracy": plan.target_accuracy,
            "devices": n,
            "over_select": 1.0,
            "minimum": n,
            "deadline_s": 60.0,
        },
        **training_tables(plan.preset, plan.codec),
        "downlink": {"codec": plan.downlink},
        "server": {"step": "add"},
        "evaluation": {"data": "test.npz"},
    }
    (folder / "coordinator.toml").write_text(toml_text("the demo's coordinator", sections), encoding="utf-8")


def training_tables(preset: Preset, codec: str) -> dict[str, dict[str, object]]:
    """The coordinator's settings of how devices train on a data set."""
    length = ("local_epochs", preset.local_epochs) if preset.local_epochs else ("local_steps", preset.local_steps)
    return {
        "training": {
            length[0]: length[1],
            "batch_size": preset.batch_size,
            "learning_rate": preset.learning_rate,
            "schedule": preset.schedule,
            "codec": codec,
        },
        "training.optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": preset.weight_decay},
    }


def agent_config(folder: Path, device: str) -> Path:
    return folder / "agents" / device / "agent.toml"


def write_agents(folder: Path, plan: Plan, *, tls: bool) -> None:
    """Writes agents/<device>/agent.toml. tls: whether the broker that there is speaks it."""
    scheme = "mqtts" if tls else "mqtt"
    for device in plan.devices:
        agent: dict[str, dict[str, object]] = {
            "": {"device": device, "fleet": plan.fleet, "state": "state"},
            "broker": {"url": f"{scheme}://127.0.0.1:{plan.ports.get(device, plan.port)}"},
            "data": {"path": "shard.npz"},
            "training": {"backend": "auto", "threads": 1},
        }
        agent_config(folder, device).write_text(toml_text(f"the demo's {device}", agent), encoding="utf-8")


def _claim(folder: Path, claim: Claim) -> IO[str]:
    """The marker file, open and locked: the lock goes when it is closed or its process dies."""
    marker = folder / claim.marker
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not marker.exists() and any(folder.iterdir()):
            raise ConfigurationError(
                f"out: {folder} holds files the {claim.who} did not make; name a new or empty folder"
            )
        file = marker.open("a")
        _lock(file.fileno(), folder, claim.who)
        for name in claim.made:
            _remove(folder / name)
    except OSError as error:
        raise ConfigurationError(f"out: {folder}: {error.strerror}; name a folder you can write to") from None
    return file


def _lock(descriptor: int, folder: Path, who: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"out: another {who} is running in {folder}; wait for it or name another folder"
        ) from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
