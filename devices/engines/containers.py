"""The engine of containers, for podman and docker alike: a device is two containers, its network and itself.

The first has a network namespace with a loopback and nothing else, and lives until the fleet is removed; the second,
which comes and goes, shares it. So the listening end of its link stays, whatever becomes of the device.
"""

import contextlib
import math
import os
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from devices.engines import container_options as options
from devices.engines import container_state as state
from devices.engines import disks
from devices.engines.cgroups import CgroupError
from devices.engines.client import Client, is_root, limits_of_users
from devices.engines.container_check import check
from devices.engines.container_options import CLOCK as CLOCK
from devices.engines.engine import Condition, EngineError, Finding, InForce, Inside, Limits, Start
from devices.engines.namespaces import Shape, listen_in, shape_in

_POLL_S = 0.05
_END_S = 60
# At what is to be removed, before what the engine says of it is an error.
_LOOKS = 5
# A quota is a whole number of microseconds, and the least of them 1000 (`bandwidth`).
_TOLERANCE = 0.01
# What the commands themselves end with when they could not do it.
_REFUSED = 125


class Containers:
    """Devices as containers of podman or docker, as root. name: which of the two."""

    def __init__(self, name: Literal["podman", "docker"]) -> None:
        self.name: str = name
        self.client = Client(name)
        self._users: dict[str, tuple[int, int]] = {}
        self._running: dict[tuple[str, str], state.Running] = {}
        self._last: dict[tuple[str, str], Condition] = {}
        self._throttled: dict[tuple[str, str], float | None] = {}

    def check(self) -> tuple[Finding, ...]:
        return check(self.client)

    def prepare(self, start: Start) -> None:
        """As root. The disk is made with what is in the state's folder."""
        if not is_root():
            raise EngineError(
                f"{self.name} needs root here, for limits that hold and for a device's own network: run this with "
                'sudo, or choose engine = "processes"'
            )
        owner = self._user(options.image_of(start))
        link = options.link_of(start.fleet, start.device)
        if self.client.inspect(link) is not None or disks.disk_of(start.fleet, start.device) is not None:
            raise EngineError(
                f"{start.fleet}/{start.device} is there already; take it away with fleet-emulate down {start.fleet}"
            )
        _own((start.etc, start.state), owner)
        size = start.limits.disk_mib
        if size is not None and disks.why_not() is None:
            disks.make_disk(start.fleet, start.device, start.state, size, owner)
        self.client.begin(link, options.link_words(start))

    def inside(self, start: Start) -> Inside:
        return options.INSIDE if start.clock is None else replace(options.INSIDE, clock=CLOCK)

    def start(self, start: Start, words: Sequence[str]) -> None:
        name = options.name_of(start.fleet, start.device)
        now = self.condition(start.fleet, start.device).state
        if now in ("running", "paused"):
            raise EngineError(f"{start.fleet}/{start.device} runs already")
        if now == "ended":
            self.client.must("rm", "--force", "--volumes", name)
        self._forget(start.fleet, start.device)
        self._throttled.pop((start.fleet, start.device), None)
        self.client.begin(name, self._words(start, words))

    def run(self, start: Start, words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        name = f"{options.name_of(start.fleet, start.device)}.run"
        command = ("run", "--name", name, *self._words(start, words))
        try:
            done = self.client.call(*command, timeout_s=timeout_s)
        finally:
            self.client.call("rm", "--force", "--volumes", name)
        if done.returncode == _REFUSED:
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
        found = self.client.inspect(options.name_of(fleet, device)) or {}
        asked = options.read_asked(state.labels(found).get(options.ASKED, ""))
        disk, group = disks.disk_of(fleet, device), running.cgroup
        got = Limits(group.cores(), group.memory_mib(), disk.size_mib if disk else None)
        why = {}
        for name, wanted in asked.items():
            value = getattr(got, name)
            if value is None:
                why[name] = self._lack(name)
            elif abs(value - wanted) > _TOLERANCE * wanted and not (
                name == "cores" and (fleet, device) in self._throttled
            ):
                why[name] = f"{wanted:g} was asked for, and the kernel has {value:g}"
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
        if not self._is_up(fleet, device):
            return
        done = self.client.call("kill", "--signal", "KILL", options.name_of(fleet, device))
        if done.returncode != 0 and (running := self._running.get((fleet, device))) and running.session.running():
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
        if not self._is_up(fleet, device):
            return
        # Whole seconds; none is at once.
        self.client.must("stop", "--time", str(math.ceil(grace_s)), options.name_of(fleet, device))
        self._await_end(fleet, device)

    def again(self, fleet: str, device: str) -> None:
        self._forget(fleet, device)
        self.client.must("start", options.name_of(fleet, device))
        if (fleet, device) in self._throttled:
            self.throttle(fleet, device, self._throttled[fleet, device])

    def condition(self, fleet: str, device: str) -> Condition:
        key = fleet, device
        seen = self._running.get(key)
        if seen is not None and seen.session.running():
            self._last[key] = seen.condition()
            return self._last[key]
        # It may have ended, or been started again by others.
        self._running.pop(key, None)
        found = self.client.inspect(options.name_of(fleet, device))
        if found is None:
            there = self.client.inspect(options.link_of(fleet, device)) is not None
            return Condition("created" if there else "absent")
        now = state.STATES[found["State"]["Status"]]
        if now == "created":
            return Condition("created")
        if now in ("running", "paused"):
            running = state.running(found)
            if running is None:
                # Its process has ended, and the engine has not noted yet how.
                return replace(self._last.get(key, Condition("running")), state=now)
            if now == "running":
                self._running[key] = running
            self._last[key] = replace(running.condition(), state=now)
            return self._last[key]
        # What it took went with its group; we have what was seen last.
        return state.ended(found, self._last.get(key, Condition("ended", started_at=state.started_at(found))))

    def logs(self, fleet: str, device: str, *, follow: bool = False) -> Sequence[str]:
        return self.client.words("logs", *(("--follow",) if follow else ()), options.name_of(fleet, device))

    def execute(self, fleet: str, device: str, words: Sequence[str], *, terminal: bool = False) -> Sequence[str]:
        how = ("--interactive", "--tty") if terminal else ("--interactive",)
        return self.client.words("exec", *how, options.name_of(fleet, device), *words)

    def devices(self, fleet: str) -> tuple[str, ...]:
        names = self.client.names(f"{options.FLEET}={fleet}")
        return tuple(sorted({name.split(".")[2] for name in names}))

    def fleets(self) -> tuple[str, ...]:
        named = {name.split(".")[1] for name in self.client.names(options.FLEET)}
        return tuple(sorted(named | disks.fleets_with_disks()))

    def remove(self, fleet: str) -> None:
        """Devices before their networks, which they hold, and disks last."""
        looks = 0
        # Who is killed while it starts or takes away may leave us one more, or one that is gone before we come to it.
        while names := self.client.names(f"{options.FLEET}={fleet}"):
            looks += 1
            links = tuple(name for name in names if options.is_link(name))
            for some in (tuple(name for name in names if name not in links), links):
                done = self.client.call("rm", "--force", "--volumes", *some) if some else None
                if done is not None and done.returncode != 0 and looks >= _LOOKS:
                    raise EngineError(f"{self.name} rm: {done.stderr.decode(errors='replace').strip()[-1000:]}")
            if looks > _LOOKS:
                raise EngineError(f"{self.name} rm: {', '.join(names)} are there again and again; who starts them?")
        for disk in disks.disks(fleet):
            disks.remove_disk(disk)
        for key in [key for key in (*self._last, *self._throttled) if key[0] == fleet]:
            self._forget(*key)
            self._throttled.pop(key, None)

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
            found = options.NOBODY
        self._users[image] = options.NOBODY if found[0] == 0 else found
        return self._users[image]

    def _user_by_name(self, image: str) -> tuple[int, int]:
        """Asked of the image itself, for a package gives its user whatever number is free."""
        name = f"sparsefleet.{uuid.uuid4().hex}.user"
        how = (*options.BARE, *limits_of_users(), "--network", "none", "--entrypoint", "sh")
        self.client.begin(name, (*how, image, "-c", "id -u; id -g"))
        try:
            self.client.must("wait", name)
            numbers = self.client.must("logs", name).split()
        finally:
            self.client.call("rm", "--force", name)
        return int(numbers[0]), int(numbers[1])

    def _words(self, start: Start, words: Sequence[str]) -> tuple[str, ...]:
        """The options, image and command of a device; its folders are its user's then."""
        user = self._user(options.image_of(start))
        _own((start.etc, start.state), user)
        return options.device_words(start, words, user)

    def _lack(self, name: str) -> str:
        """Why there is no such limit at all."""
        if name == "disk_mib":
            return disks.why_not() or "its state is not on a disk of its own"
        return f"{self.name} set none: the kernel lacks the controller, or the engine may not use it"

    def _is_up(self, fleet: str, device: str) -> bool:
        """Whether there is something of it to end."""
        now = self.condition(fleet, device).state
        if now == "absent":
            raise EngineError(f"{fleet}/{device}: {self.name} has no such device")
        return now in ("running", "paused")

    def _look(self, fleet: str, device: str) -> state.Running | None:
        """The device if it runs."""
        return self._running.get((fleet, device)) if self._is_up(fleet, device) else None

    def _pid(self, fleet: str, device: str) -> int:
        """The process that holds its network."""
        found = self.client.inspect(options.link_of(fleet, device))
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


def _own(places: Sequence[Path], owner: tuple[int, int]) -> None:
    """Gives folders to whom the device runs as: what is private in them is that user's, as on a device."""
    for place in places:
        for path in (place, *place.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                os.chown(path, *owner, follow_symlinks=False)
