"""The engines that there are, by the name that a fleet's file gives; in the order in which they are taken."""

from collections.abc import Callable, Mapping

from devices.engines.containers import Containers
from devices.engines.engine import Engine
from devices.engines.processes import Processes
from devices.fleet.plan import EngineName

ENGINES: Mapping[EngineName, Callable[[], Engine]] = {
    "podman": lambda: Containers("podman"),
    "docker": lambda: Containers("docker"),
    "processes": Processes,
}
# Those that hold a board's limits; plain processes are for whoever names them.
HOLD_LIMITS: tuple[EngineName, ...] = ("podman", "docker")
