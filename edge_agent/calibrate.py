"""`edge-agent calibrate`: this device's profile, from which fleet-export plan predicts what a bundle will ask of it."""

import argparse
import platform
from pathlib import Path

from edge_agent.calibration.machine import calibrate
from edge_agent.runtimes.work import UNITS
from protocol.disk import write_durably
from protocol.errors import ConfigurationError
from protocol.profile import Profile, format_profile


def run(options: argparse.Namespace) -> int:
    """Measures, and prints or writes the profile; returns the exit code."""
    if not 1 <= options.threads <= 64:
        raise ConfigurationError(f"--threads: {options.threads} is outside 1..64")
    profile = calibrate(options.name or platform.node() or "this", options.threads)
    if options.out is not None:
        _write(options.out, format_profile(profile))
    print(format_profile(profile) if options.json else _text(profile), end="")
    return 0


def _write(path: Path, text: str) -> None:
    try:
        write_durably(path, text.encode())
    except OSError as error:
        raise ConfigurationError(f"--out: {path} cannot be written ({error.strerror}); name another file") from None


def _text(profile: Profile) -> str:
    lines = [
        f"{profile.name}: {profile.cpu}, {profile.machine}, {profile.cores} cores, {profile.memory_mib} MiB",
        f"{profile.runtime}, {profile.threads} threads, {profile.date}",
        f"{profile.idle_mib:.1f} MiB with the runtime loaded, and {profile.node_bytes:,.0f} bytes a node of a graph",
    ]
    for unit, meaning in UNITS.items():
        if unit in profile.seconds:
            lines.append(f"{1e9 * profile.seconds[unit]:14.4f} ns  {unit:20} {meaning}")
    lines.append(f"these prices give back the times of half of the probes within {100 * profile.error:.0f} %")
    return "\n".join(lines) + "\n"
