"""A fleet as a compose file, for whoever runs containers by docker compose or podman-compose and not by us.

The services are the devices, with the limits and the confinement that `up` gives them. What compose has no words for
stands at the head of the file, and is not emulated by it.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from devices.engines.container_options import INSIDE, PIDS, SCRATCH, image_of
from devices.engines.engine import Start
from protocol.errors import ConfigurationError

# How a service finds this machine, where the links listen.
HOST = "sparsefleet-host"
_HEAD = """\
# Fleet {fleet}, written by fleet-emulate. Each service is one device, with its board's processor time and memory.
#
# Compose starts, limits and stops devices, and that is all. Not emulated here, but by fleet-emulate up:
#   faults and availability, the clock's offset, disks of a size of their own, a network that is the link alone (these
#   devices are on a bridge), the calibration of processor time, and the reading back of every limit.
# podman-compose 1.0 (Debian 12) ignores memswap_limit and pids_limit: there, devices may swap.
#
# Before, on this machine, each in a terminal of its own; the links listen where containers can reach them:
{commands}
#
# Then, for each device once, with a token of the coordinator's:
#   docker compose -f THIS_FILE run --rm DEVICE enroll --url {host}:PORT --token TOKEN --config {config}
#   docker compose -f THIS_FILE up --detach
"""
_CONFIG = INSIDE.etc / "agent.toml"
_STATUS = INSIDE.state / "status.json"

Value = str | int | float | bool | Sequence["Value"] | Mapping[str, "Value"]


@dataclass(frozen=True, slots=True)
class Service:
    """A device of the file. user: whom its image runs as, who owns its folders. link: the command of its proxy.

    Its agent.toml must name the link's port at `HOST`.
    """

    start: Start
    link: Sequence[str]
    user: tuple[int, int] | None = None


def compose_text(fleet: str, coordinator: Sequence[str], services: Sequence[Service]) -> str:
    """The whole file. coordinator: the command that runs it. Raises EngineError for a device without an image."""
    if not services:
        raise ConfigurationError(f"compose: fleet {fleet!r} has no device that is a container")
    commands = "\n".join(f"#   {shlex.join(words)}" for words in (coordinator, *(service.link for service in services)))
    head = _HEAD.format(fleet=fleet, commands=commands, host=HOST, config=_CONFIG)
    named = {service.start.device: _service(service) for service in services}
    return head + "\n".join(_lines({"name": fleet, "services": named}, 0)) + "\n"


def _service(service: Service) -> Mapping[str, Value]:
    start = service.start
    said: dict[str, Value] = {
        "image": image_of(start),
        "pull_policy": "never",
        "platform": f"linux/{start.architecture}",
        "entrypoint": ["edge-agent"],
        "command": ["run", "--config", str(_CONFIG)],
        "labels": {"sparsefleet.compose": start.fleet, "sparsefleet.device": start.device},
    }
    if service.user is not None:
        said["user"] = f"{service.user[0]}:{service.user[1]}"
    return {**said, **_limits(start), **_confinement(), **_surroundings(start)}


def _limits(start: Start) -> Mapping[str, Value]:
    said: dict[str, Value] = {"pids_limit": PIDS}
    if start.limits.cores is not None:
        said["cpus"] = round(start.limits.cores, 5)
    if start.limits.memory_mib is not None:
        # The same for both: no swap beside it.
        said |= {"mem_limit": f"{start.limits.memory_mib}m", "memswap_limit": f"{start.limits.memory_mib}m"}
    return said


def _confinement() -> Mapping[str, Value]:
    """As `up` confines a device."""
    return {
        "read_only": True,
        "tmpfs": [f"{place}:{how}" for place, how in SCRATCH.items()],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "ulimits": {"nofile": {"soft": 1024, "hard": 4096}, "nproc": 4096},
    }


def _surroundings(start: Start) -> Mapping[str, Value]:
    folders = ((start.etc, INSIDE.etc, False), (start.state, INSIDE.state, False), (start.data, INSIDE.data, True))
    return {
        "working_dir": str(INSIDE.state),
        "environment": {"HOME": str(INSIDE.state), "PYTHONUNBUFFERED": "1", **start.environment},
        "volumes": [
            {"type": "bind", "source": str(here.absolute()), "target": str(there), "read_only": read_only}
            for here, there, read_only in folders
        ],
        "extra_hosts": [f"{HOST}:host-gateway"],
        # As the unit does, but for configuration mistakes: compose does not know one exit code from another.
        "restart": "unless-stopped",
        "stop_grace_period": "60s",
        "healthcheck": {
            # For a shell: podman-compose 1.0 gives it every list, and does not quote what is in it.
            "test": ["CMD-SHELL", f"grep -q '\"connected\": true' {_STATUS}"],
            "interval": "30s",
            "timeout": "10s",
            "start_period": "60s",
        },
    }


def _lines(value: Mapping[str, Value], depth: int) -> list[str]:
    """YAML: mappings in blocks, the rest as JSON, which YAML reads as it is."""
    told = []
    for key, inner in value.items():
        name = f"{'  ' * depth}{key}:"
        if isinstance(inner, Mapping) and inner:
            told += [name, *_lines(inner, depth + 1)]
        elif isinstance(inner, list) and inner and isinstance(inner[0], Mapping):
            told += [name, *(f"{'  ' * (depth + 1)}- {_flow(item)}" for item in inner)]
        else:
            told.append(f"{name} {_flow(inner)}")
    return told


def _flow(value: Value) -> str:
    # Compose reads a lone $ as the beginning of a variable.
    return json.dumps(value).replace("$", "$$")
