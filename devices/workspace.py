"""The demo's folder: who may clear it, the bundle kept in it between runs, and the settings written into it."""

import fcntl
import hashlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

from devices.datasets import PROJECT_ROOT
from devices.presets import Preset
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


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Makes the folder ours, cleared of an earlier run, and keeps a second demo out of it meanwhile.

    Raises ConfigurationError for a folder with anything in it that the demo did not make, and for one in use.
    """
    with _claim(folder):
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
    p, n = plan.preset, len(plan.devices)
    length = ("local_epochs", p.local_epochs) if p.local_epochs else ("local_steps", p.local_steps)
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
        "training": {
            length[0]: length[1],
            "batch_size": p.batch_size,
            "learning_rate": p.learning_rate,
            "schedule": p.schedule,
            "codec": plan.codec,
        },
        "downlink": {"codec": plan.downlink},
        "training.optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": p.weight_decay},
        "server": {"step": "add"},
        "evaluation": {"data": "test.npz"},
    }
    (folder / "coordinator.toml").write_text(_toml("the demo's coordinator", sections), encoding="utf-8")


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
        agent_config(folder, device).write_text(_toml(f"the demo's {device}", agent), encoding="utf-8")


def _toml(subject: str, sections: Mapping[str, Mapping[str, object]]) -> str:
    """Flat tables of strings and numbers, which is all that is written here."""
    lines = [f"# Settings of {subject}; written anew by every run."]
    for name, table in sections.items():
        if name:
            lines += ["", f"[{name}]"]
        for key, value in table.items():
            if isinstance(value, str):
                escaped = value.replace("\\", "\\\\").replace('"', '\\"')
                lines.append(f'{key} = "{escaped}"')
            else:
                lines.append(f"{key} = {value}")
    return "\n".join(lines) + "\n"


def _claim(folder: Path) -> IO[str]:
    """The marker file, open and locked: the lock goes when it is closed or its process dies."""
    marker = folder / MARKER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not marker.exists() and any(folder.iterdir()):
            raise ConfigurationError(f"out: {folder} holds files the demo did not make; name a new or empty folder")
        file = marker.open("a")
        _lock(file.fileno(), folder)
        for name in _MADE:
            _remove(folder / name)
    except OSError as error:
        raise ConfigurationError(f"out: {folder}: {error.strerror}; name a folder you can write to") from None
    return file


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            f"out: another demo is running in {folder}; wait for it or name another folder"
        ) from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
