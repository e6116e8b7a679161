"""A device's profile: what a calibration found about its memory and the pace of its runtime, as a small JSON file."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol import bounded_json
from protocol.errors import ConfigurationError
from protocol.records import RecordError, read_record, write_record

FORMAT = 1
# A profile has some forty figures.
MAX_PROFILE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Profile:
    """One device with one runtime and one number of threads.

    name: what the plan calls it. date: when it was measured, as YYYY-MM-DD. idle_mib: the agent in memory with the
    runtime loaded and used, before any model. node_bytes: what each node of a loaded graph adds. seconds: for each
    unit of work (edge_agent.runtimes.work), how long one takes. error: of the calibration's own probes, the median
    relative error of the fit.
    """

    format: int
    name: str
    date: str
    machine: str
    cpu: str
    cores: int
    memory_mib: int
    runtime: str
    threads: int
    idle_mib: float
    node_bytes: float
    seconds: Mapping[str, float]
    error: float

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format: {self.format} is not the format this version reads ({FORMAT}); calibrate again")
        if not 1 <= self.threads <= 64:
            raise ValueError(f"threads: {self.threads} is outside 1..64")
        figures = {"idle_mib": self.idle_mib, "node_bytes": self.node_bytes, "memory_mib": self.memory_mib}
        for key, value in {**figures, **{f"seconds.{unit}": s for unit, s in self.seconds.items()}}.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{key}: {value} must be a finite number of at least 0")


def load_profile(path: Path) -> Profile:
    """The profile in a file. Raises ConfigurationError naming the file, the key and the remedy."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_PROFILE_BYTES else b""
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read ({error.strerror}); make one on the device with: edge-agent calibrate --out FILE"
        ) from None
    if size > MAX_PROFILE_BYTES:
        raise ConfigurationError(f"{path}: {size} bytes are over the limit of {MAX_PROFILE_BYTES}; it is no profile")
    return parse_profile(str(path), data)


def parse_profile(name: str, data: bytes) -> Profile:
    """The profile in these bytes; `name` is for messages. Raises ConfigurationError."""
    try:
        return read_record(Profile, bounded_json.loads(data))
    except (RecordError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{name}: not a device profile ({error}); make one with: edge-agent calibrate"
        ) from None


def format_profile(profile: Profile) -> str:
    """The JSON text of a profile."""
    return json.dumps(write_record(profile), indent=1) + "\n"
