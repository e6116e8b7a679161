"""The engine of containers, for podman and docker alike: a device is two containers, its network and itself.

The first has a network namespace with a loopback and nothing else, and lives until the fleet is removed; the second,
which comes and goes, shares it. So the listening end of its link stays, whatever becomes of the device.
"""

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from devices.engines import disks
from devices.engines.cgroups import Cgroup, CgroupError, cgroup_of
from devices.engines.client import Client, is_root, limits_of_users
from devices.engines.container_check import check
from devices.engines.engine import Condition, EngineError, Finding, InForce, Inside, Limits, Start
from devices.engines.kernel_log import ran_out_of_memory
from devices.engines.namespaces import Shape, listen_in, shape_in
from devices.engines.sessions import Session

_FLEET, _DEVICE, _PART, _ASKED = (f"sparsefleet.{word}" for word in ("fleet", "device", "part", "asked"))
# Where the agent's package has them, and where an image has a clock's offset and the examples.
INSIDE = Inside(Path("/etc/edge-agent"), Path("/var/lib/edge-agent"), Path("/data"))
CLOCK = Path("/run/sparsefleet/clock")
# Whom a device runs as if its image does not say: nobody.
_NOBODY = (65534, 65534)
# As the agent's unit has it (TasksMax).
_PIDS = 256
_POLL_S = 0.05
_END_S = 60
# The exit code of what SIGKILL ended, as the kernel does for want of memory.
_KILLED = 137
# Mode and size of what may be written beside its state; both count as its memory.
_SCRATCH = ("--tmpfs", "/tmp:rw,nosuid,nodev,size=64m,mode=1777", "--tmpfs", "/run:rw,nosuid,nodev,size=16m,mode=755")
_BARE = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--pull", "never")
_LOGS = ("--log-driver", "json-file", "--log-opt", "max-size=10m")
_STATES: dict[str, Literal["created", "running", "paused", "ended"]] = {
    "created": "created",
    "configured": "created",
    "initialized": "created",
    "running": "running",
    "stopping": "running",
    "restarting": "running",
    "paused": "paused",
    "stopped": "ended",
    "exited": "ended",
    "dead": "ended",
    "removing": "ended",
}


@dataclass(frozen=True, slots=True)
class _Running:
    """A container that was seen running: to look at it again without asking the engine."""

    session: Session
    cgroup: Cgroup
    started_at: float | None


class Containers:
    """Devices as containers of podman or docker, as root. name: which of the two."""

    def __init__(self, name: Literal["podman", "docker"]) -> None:
        self.name: str = name
        self.client = Client(name)
        self._users: dict[str, tuple[int, int]] = {}
        self._running: dict[tuple[str, str], _Running] = {}
        self._last: dict[tuple[str, str], Condition] = {}
        self._throttled: dict[tuple[str, str], float | None] = {}

    def check(self) -> tuple[Finding, ...]:
        return check(self.client)

    def prepare(self, start: Start) -> None:
        _must_be_root(self.name)
        image = _image(start)
        if self.client.inspect(_link(start.fleet, start.device)) is not None:
            raise EngineError(
                f"{start.fleet}/{start.device} is there already; take it away with fleet-emulate down {start.fleet}"
            )
        owner = self._user(image)
        _own((start.etc, start.state), owner)
        size = start.limits.disk_mib
        if size is not None and disks.why_not() is None:
            disks.make_disk(start.fleet, start.device, start.state, size, owner)
        asked = ",".join(
            name for name in ("cores", "memory_mib", "disk_mib") if getattr(start.limits, name) is not None
        )
        labels = (*_labels(start, "link"), "--label", f"{_ASKED}={asked}")
        options = (*_BARE, *limits_of_users(), "--network", "none", "--pids-limit", "4", "--stop-timeout", "0", *_LOGS)
        user = f"{_NOBODY[0]}:{_NOBODY[1]}"
        words = (*labels, *options, "--user", user, "--entrypoint", "sleep", image, "infinity")
        self.client.begin(_link(start.fleet, start.device), words)

    def inside(self, start: Start) -> Inside:
        return INSIDE

    def start(self, start: Start, words: Sequence[str]) -> None:
        name = _name(start.fleet, start.device)
        now = self.condition(start.fleet, start.device).state
        if now in ("running", "paused"):
            raise EngineError(f"{start.fleet}/{start.device} runs already")
        if now == "ended":
            self.client.must("rm", "--force", "--volumes", name)
        self._forget(start.fleet, start.device)
        self._throttled.pop((start.fleet, start.device), None)
        self.client.begin(name, self._device_words(start, "device", words))

    def run(self, start: Start, words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        name = f"{_name(start.fleet, start.device)}.run"
        try:
            done = self.client.call(
                "run", "--name", name, *self._device_words(start, "run", words), timeout_s=timeout_s
            )
        except EngineError as error:
            said = f"{start.device}: {' '.join(words)} took more than {timeout_s:g} s"
            raise EngineError(said if "took more" in str(error) else str(error)) from None
        finally:
            self.client.call("rm", "--force", "--volumes", name)
        if done.returncode == 125:
            raise EngineError(f"{self.name} run {name}: {done.stderr.decode(errors='replace').strip()[-1000:]}")
        return subprocess.CompletedProcess(tuple(words), done.returncode, done.stdout, done.stderr)

    def listen(self, fleet: str, device: str, port: int) -> socket.socket:
        return listen_in(self._pid(fleet, device), port)

    def shape(self, fleet: str, device: str, shape: Shape) -> None:
        """Has netem work on its link, where the kernel can (`has_netem`); the proxy's own latency must then be none."""
        shape_in(self._pid(fleet, device), shape)

    def in_force(self, fleet: str, device: str) -> InForce:
        running = self._look(fleet, device)
        if running is None:
            raise EngineError(f"{fleet}/{device} does not run; its limits are the kernel's only while it does")
        link = self.client.inspect(_link(fleet, device)) or {}
        asked = str(_labels_of(link).get(_ASKED, "")).split(",")
        disk = disks.disk_of(fleet, device)
        group = running.cgroup
        got = Limits(group.cores(), group.memory_mib(), disk.size_mib if disk else None)
        reasons = {
            "cores": f"{self.name} set no quota (cpu controller)",
            "memory_mib": f"{self.name} set no limit (memory controller)",
            "disk_mib": disks.why_not() or "its state is not on a disk of its own",
        }
        why = {name: reasons[name] for name in reasons if name in asked and getattr(got, name) is None}
        if got.memory_mib is not None and (group.swap_mib() or 0) > 0:
            why["memory_mib"] = f"it may use {group.swap_mib()} MiB of swap beside it"
        return InForce(got, why)

    def throttle(self, fleet: str, device: str, cores: float | None) -> None:
        """Holds until the device is started with other words, through ends and starts by `again`."""
        running = self._look(fleet, device)
        if running is not None:
            try:
                running.cgroup.set_cores(cores)
            except CgroupError as error:
                raise EngineError(f"{fleet}/{device} cannot be throttled: {error}") from None
        self._throttled[fleet, device] = cores

    def kill(self, fleet: str, device: str) -> None:
        running = self._look(fleet, device)
        if running is None:
            return
        done = self.client.call("kill", "--signal", "KILL", _name(fleet, device))
        if done.returncode != 0 and running.session.running():
            raise EngineError(f"{self.name} kill {fleet}/{device}: {done.stderr.decode(errors='replace').strip()}")
        self._await_end(fleet, device)

    def cut_power(self, fleet: str, device: str) -> bool:
        self.kill(fleet, device)
        disk = disks.disk_of(fleet, device)
        if disk is None:
            return False
        disks.lose_power(disk)
        return True

    def stop(self, fleet: str, device: str, grace_s: float) -> None:
        if self._look(fleet, device) is None:
            return
        # Whole seconds; none is at once.
        self.client.must("stop", "--time", str(int(grace_s)), _name(fleet, device))
        self._await_end(fleet, device)

    def again(self, fleet: str, device: str) -> None:
        self._forget(fleet, device)
        self.client.must("start", _name(fleet, device))
        if (fleet, device) in self._throttled:
            self.throttle(fleet, device, self._throttled[fleet, device])

    def condition(self, fleet: str, device: str) -> Condition:
        key = fleet, device
        seen = self._running.get(key)
        if seen is not None and seen.session.running():
            self._last[key] = _condition(seen)
            return self._last[key]
        # It may have ended, or been started again by others.
        self._running.pop(key, None)
        found = self.client.inspect(_name(fleet, device))
        if found is None:
            there = self.client.inspect(_link(fleet, device)) is not None
            return Condition("created" if there else "absent")
        state: dict[str, Any] = found["State"]
        now = _STATES[state["Status"]]
        if now in ("running", "paused") and (running := _seen(found)) is not None:
            if now == "running":
                self._running[key] = running
            self._last[key] = replace(_condition(running), state=now)
            return self._last[key]
        if now == "created":
            return Condition("created")
        # What it took went with its group; we have what was seen last.
        return _ended(found, self._last.get(key, Condition("ended", started_at=_started_at(found))))

    def logs(self, fleet: str, device: str, *, follow: bool = False) -> Sequence[str]:
        return self.client.words("logs", *(("--follow",) if follow else ()), _name(fleet, device))

    def execute(self, fleet: str, device: str, words: Sequence[str], *, terminal: bool = False) -> Sequence[str]:
        options = ("--interactive", "--tty") if terminal else ("--interactive",)
        return self.client.words("exec", *options, _name(fleet, device), *words)

    def devices(self, fleet: str) -> tuple[str, ...]:
        names = self.client.names(f"{_FLEET}={fleet}")
        return tuple(sorted({name.split(".")[2] for name in names}))

    def fleets(self) -> tuple[str, ...]:
        named = {name.split(".")[1] for name in self.client.names(_FLEET)}
        return tuple(sorted(named | disks.fleets_with_disks()))

    def remove(self, fleet: str) -> None:
        """Devices before their networks, which they hold, and disks last."""
        for part in ("run", "device", "link"):
            if names := self.client.names(f"{_FLEET}={fleet}", f"{_PART}={part}"):
                self.client.must("rm", "--force", "--volumes", *names)
        for disk in disks.disks(fleet):
            disks.remove_disk(disk)
        for key in [key for key in (*self._last, *self._throttled) if key[0] == fleet]:
            self._forget(*key)
            self._throttled.pop(key, None)

    def _device_words(self, start: Start, part: str, words: Sequence[str]) -> tuple[str, ...]:
        """The options, image and command of a device, or of a command in one like it."""
        image = _image(start)
        owner = self._user(image)
        _own((start.etc, start.state), owner)
        limits = start.limits
        cores = () if limits.cores is None else ("--cpus", f"{limits.cores:.3f}")
        size = f"{limits.memory_mib}m"
        memory = () if limits.memory_mib is None else ("--memory", size, "--memory-swap", size)
        environment = {"HOME": str(INSIDE.state), "PYTHONUNBUFFERED": "1", **start.environment}
        return (
            *(*_labels(start, part), *_BARE, *_SCRATCH, *limits_of_users(), *_LOGS, *cores, *memory),
            *("--pids-limit", str(_PIDS), "--stop-timeout", "0", "--user", f"{owner[0]}:{owner[1]}"),
            *("--network", f"container:{_link(start.fleet, start.device)}", "--workdir", str(INSIDE.state)),
            *_mounts(start),
            *(word for name, value in environment.items() for word in ("--env", f"{name}={value}")),
            *("--entrypoint", words[0], image, *words[1:]),
        )

    def _user(self, image: str) -> tuple[int, int]:
        """Whom its image runs as; nobody where that is root."""
        if image in self._users:
            return self._users[image]
        done = self.client.call("image", "inspect", "--format", "{{.Config.User}}", image)
        if done.returncode != 0:
            raise EngineError(f"{image}: {self.name} has no such image; make it with fleet-emulate images")
        user = done.stdout.decode().strip()
        numbers = re.fullmatch(r"(\d+)(?::(\d+))?", user)
        if numbers:
            found = (int(numbers[1]), int(numbers[2] or numbers[1]))
        elif user:
            found = self._user_by_name(image)
        else:
            found = _NOBODY
        self._users[image] = _NOBODY if found[0] == 0 else found
        return self._users[image]

    def _user_by_name(self, image: str) -> tuple[int, int]:
        """Asked of the image itself, for a package gives its user whatever number is free."""
        name = f"sparsefleet.{os.getpid()}.user"
        options = (*_BARE, *limits_of_users(), "--network", "none", "--entrypoint", "sh")
        self.client.begin(name, (*options, image, "-c", "id -u; id -g"))
        try:
            self.client.must("wait", name)
            numbers = self.client.must("logs", name).split()
        finally:
            self.client.call("rm", "--force", name)
        return int(numbers[0]), int(numbers[1])

    def _look(self, fleet: str, device: str) -> _Running | None:
        """The device if it runs."""
        state = self.condition(fleet, device).state
        if state == "absent":
            raise EngineError(f"{fleet}/{device}: {self.name} has no such device")
        return self._running.get((fleet, device)) if state == "running" else None

    def _pid(self, fleet: str, device: str) -> int:
        """The process that holds its network."""
        found = self.client.inspect(_link(fleet, device))
        if found is None or not found["State"]["Pid"]:
            raise EngineError(f"{fleet}/{device}: {self.name} has no network for it; prepare it first")
        return int(found["State"]["Pid"])

    def _await_end(self, fleet: str, device: str) -> None:
        end = time.monotonic() + _END_S
        while self.condition(fleet, device).state != "ended":
            if time.monotonic() > end:
                raise EngineError(f"{fleet}/{device} has not ended {_END_S} s after it was killed")
            time.sleep(_POLL_S)

    def _forget(self, fleet: str, device: str) -> None:
        self._running.pop((fleet, device), None)
        self._last.pop((fleet, device), None)


def _name(fleet: str, device: str) -> str:
    # Names of fleets and devices have no dots.
    return f"sparsefleet.{fleet}.{device}"


def _link(fleet: str, device: str) -> str:
    return f"{_name(fleet, device)}.link"


def _labels(start: Start, part: str) -> tuple[str, ...]:
    pairs = {_FLEET: start.fleet, _DEVICE: start.device, _PART: part}
    return tuple(word for name, value in pairs.items() for word in ("--label", f"{name}={value}"))


def _labels_of(found: dict[str, Any]) -> dict[str, str]:
    return (found.get("Config") or {}).get("Labels") or {}


def _mounts(start: Start) -> Iterator[str]:
    places = [(start.etc, INSIDE.etc, ""), (start.state, INSIDE.state, ""), (start.data, INSIDE.data, ",readonly")]
    if start.clock is not None:
        places.append((start.clock, CLOCK, ",readonly"))
    for here, there, how in places:
        if "," in str(here):
            raise EngineError(f"{here}: a folder with a comma in its name cannot be given to a container; rename it")
        yield "--mount"
        yield f"type=bind,source={here.absolute()},target={there}{how}"


def _image(start: Start) -> str:
    if start.image is None:
        raise EngineError(f"{start.fleet}/{start.device} needs an image; make one with fleet-emulate images")
    return start.image


def _own(places: Sequence[Path], owner: tuple[int, int]) -> None:
    """Gives folders to whom the device runs as: what is private in them is that user's, as on a device."""
    for place in places:
        for path in (place, *place.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                os.chown(path, *owner, follow_symlinks=False)


def _seen(found: dict[str, Any]) -> _Running | None:
    """A container that runs by what the engine says; None if it has ended meanwhile."""
    pid = int(found["State"]["Pid"])
    session = Session.led_by(pid) if pid else None
    if session is None:
        return None
    return _Running(session, cgroup_of(pid, str(found["Id"])), _started_at(found))


def _started_at(found: dict[str, Any]) -> float:
    # Go writes nanoseconds and a zone; whole seconds and a zone are enough for us.
    text = re.sub(r"\.\d+", "", str(found["State"]["StartedAt"]))
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _ended(found: dict[str, Any], last: Condition) -> Condition:
    """How a container ended, with what was seen of it last."""
    state = found["State"]
    code = int(state["ExitCode"])
    here = bool(state.get("OOMKilled")) or (code == _KILLED and ran_out_of_memory(str(found["Id"])))
    limit = int(found["HostConfig"].get("Memory") or 0)
    # Whoever runs out of memory has used all of it.
    peak = limit / (1 << 20) if here and limit else last.peak_mib
    killed = here or last.out_of_memory
    return replace(last, state="ended", exit_code=code, out_of_memory=killed, memory_mib=None, peak_mib=peak)


def _condition(running: _Running) -> Condition:
    group = running.cgroup
    return Condition(
        "running",
        None,
        group.out_of_memory_kills() > 0,
        running.started_at,
        group.cpu_s() or 0.0,
        group.used_mib(),
        group.peak_mib(),
    )


def _must_be_root(name: str) -> None:
    if not is_root():
        raise EngineError(
            f"{name} needs root here, for limits that hold and for a device's own network: sudo fleet-emulate ..., "
            'or choose engine = "processes"'
        )
