"""The options that make a container a device: its name and labels, its limits, and what it may see and write."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from devices.engines.cgroups import bandwidth
from devices.engines.client import limits_of_users
from devices.engines.engine import EngineError, Inside, Limits, Start

FLEET, DEVICE, ASKED = (f"sparsefleet.{word}" for word in ("fleet", "device", "asked"))
# What follows a device's name, in that of the container with its network.
LINK = ".link"
# Where the agent's package has them, and where an image expects examples.
INSIDE = Inside(Path("/etc/edge-agent"), Path("/var/lib/edge-agent"), Path("/data"))
CLOCK = Path("/run/clock-offset")
# Whom a device runs as if its image does not say: nobody.
NOBODY = (65534, 65534)
# As the agent's unit has it (TasksMax).
PIDS = 256
# Of one that only sleeps; the runtime itself needs some threads to start it, and with four it failed now and then.
_LINK_PIDS = "64"
# Mode and size of what may be written beside its state; both count as its memory.
SCRATCH = {"/tmp": "rw,nosuid,nodev,size=64m,mode=1777", "/run": "rw,nosuid,nodev,size=16m,mode=755"}
# What ends or quotes a word in the options of a mount.
UNMOUNTABLE = ',"\n'
# Health is `condition`'s: an engine's own check would take the device's processor time.
BARE = (
    *("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--pull", "never", "--no-healthcheck", "--stop-timeout", "0"),
    *("--log-driver", "json-file", "--log-opt", "max-size=10m"),
)


def name_of(fleet: str, device: str) -> str:
    """Of a device's container. Names of fleets and devices have no dots."""
    return f"sparsefleet.{fleet}.{device}"


def link_of(fleet: str, device: str) -> str:
    """The name of the container that has its network."""
    return f"{name_of(fleet, device)}{LINK}"


def is_link(name: str) -> bool:
    """Whether a container of that name has a device's network; a device may be called link itself."""
    return name.count(".") == link_of("", "").count(".") and name.endswith(LINK)


def image_of(start: Start) -> str:
    if start.image is None:
        raise EngineError(f"{start.fleet}/{start.device} needs an image; make one with fleet-emulate images")
    return start.image


def asked(limits: Limits) -> str:
    """The limits that were asked for, for a label: what is not in force must be told later too."""
    given = {"cores": limits.cores, "memory_mib": limits.memory_mib, "disk_mib": limits.disk_mib}
    return ",".join(f"{name}={value:.7g}" for name, value in given.items() if value is not None)


def read_asked(label: str) -> dict[str, float]:
    """What such a label says, by the limit's name."""
    return {name: float(value) for name, _, value in (part.partition("=") for part in label.split(",") if part)}


def link_words(start: Start) -> tuple[str, ...]:
    """What follows `run --detach --name`: a process that only sleeps, in a network with a loopback and nothing else."""
    user = f"{NOBODY[0]}:{NOBODY[1]}"
    return (
        *(*_labels(start), *BARE, *limits_of_users(), "--network", "none", "--pids-limit", _LINK_PIDS),
        *("--user", user, "--entrypoint", "sleep", image_of(start), "infinity"),
    )


def device_words(start: Start, words: Sequence[str], user: tuple[int, int]) -> tuple[str, ...]:
    """The same of a device, or of a command in one like it, in the network of its link."""
    environment = {"HOME": str(INSIDE.state), "PYTHONUNBUFFERED": "1", **start.environment}
    return (
        *(*_labels(start), "--label", f"{ASKED}={asked(start.limits)}", *BARE, *limits_of_users()),
        *(*limit_words(start.limits), "--pids-limit", str(PIDS)),
        *(word for place, how in SCRATCH.items() for word in ("--tmpfs", f"{place}:{how}")),
        *("--user", f"{user[0]}:{user[1]}", "--workdir", str(INSIDE.state)),
        *("--network", f"container:{link_of(start.fleet, start.device)}"),
        *_mounts(start),
        *(word for name, value in environment.items() for word in ("--env", f"{name}={value}")),
        *("--entrypoint", words[0], image_of(start), *words[1:]),
    )


def limit_words(limits: Limits) -> tuple[str, ...]:
    """Processor and memory. Swap would make memory of what a device has not."""
    cores: tuple[str, ...] = ()
    if limits.cores is not None:
        quota, period = bandwidth(limits.cores)
        cores = ("--cpu-period", str(period), "--cpu-quota", str(quota))
    size = f"{limits.memory_mib}m"
    return cores if limits.memory_mib is None else (*cores, "--memory", size, "--memory-swap", size)


def _labels(start: Start) -> tuple[str, ...]:
    pairs = {FLEET: start.fleet, DEVICE: start.device}
    return tuple(word for name, value in pairs.items() for word in ("--label", f"{name}={value}"))


def _mounts(start: Start) -> Iterator[str]:
    places = [(start.etc, INSIDE.etc, ""), (start.state, INSIDE.state, ""), (start.data, INSIDE.data, ",readonly")]
    if start.clock is not None:
        places.append((start.clock, CLOCK, ",readonly"))
    for here, there, how in places:
        if any(character in str(here) for character in UNMOUNTABLE):
            raise EngineError(
                f"{here}: a folder with a comma, a quotation mark or a line's end in its name cannot be given to a "
                "container; rename it"
            )
        yield "--mount"
        yield f"type=bind,source={here.absolute()},target={there}{how}"
