"""The fleet in memory: who is known, who is there, and what was last heard of each device."""

from collections.abc import Iterable
from dataclasses import replace

from coordinator.rows import DeviceActivity
from protocol.messages import INELIGIBLE, Hello, TaskReport

# Memory and disk of a coordinator are made for so many; strangers beyond are refused by name.
MAX_KNOWN = 10_000
# When all come back at once, so many greet in a second: what a small server answers while it also works.
GREETINGS_PER_S = 200.0


class Fleet:
    """Every device that ever said hello. What changes here is written to the store from time to time."""

    def __init__(self, known: Iterable[DeviceActivity]) -> None:
        self._devices = {d.device: replace(d, present=False) for d in known}
        self._boots: dict[str, int] = {}
        self._memory_mib: dict[str, int] = {}
        self._skills: dict[str, frozenset[str]] = {}
        self._changed: set[str] = set()
        self._present: set[str] = set()

    def knows(self, device: str) -> bool:
        return device in self._devices

    def has(self, device: str) -> bool:
        """Whether the device is there now."""
        return device in self._present

    @property
    def full(self) -> bool:
        return len(self._devices) >= MAX_KNOWN

    @property
    def spread_s(self) -> float:
        """Over how long all that are known should spread their greetings."""
        return len(self._devices) / GREETINGS_PER_S

    def __getitem__(self, device: str) -> DeviceActivity:
        return self._devices[device]

    def memory_mib(self, device: str) -> int | None:
        """What training may use on the device, if it said so since the coordinator started."""
        return self._memory_mib.get(device)

    def skills(self, device: str) -> frozenset[str] | None:
        """What a task may ask of the device that older agents cannot do, as it said when it came; None where it has not
        greeted since the coordinator started, though something of it came."""
        return self._skills.get(device)

    def present(self) -> tuple[str, ...]:
        return tuple(sorted(self._present))

    @property
    def present_count(self) -> int:
        return len(self._present)

    def hello(self, device: str, said: Hello, wall_s: float) -> None:
        """Takes a device in, or notes what it says of itself now."""
        before = self._devices.get(device)
        self._skills[device] = frozenset(said.skills)
        if said.memory_mib is not None:
            self._memory_mib[device] = said.memory_mib
        # A hello names the backend wished for; a report on a task, the one found.
        backend = before.backend if before is not None and said.backend == "auto" else said.backend
        if before is None:
            before = DeviceActivity(device, said.agent, backend, True, None, wall_s)
        self._put(replace(before, agent=said.agent, backend=backend, present=True, last_seen_s=wall_s))

    def reported(self, device: str, report: TaskReport) -> bool:
        """Notes what a report says of the device's data and backend, and whether it may train; True when the first are
        news."""
        before = self._devices[device]
        accepted = report.state == "accepted"
        before = replace(before, paused=report.detail if accepted and report.reason == INELIGIBLE else None)
        self._put(before)
        if not accepted or report.examples <= 0:
            return False
        backend, left_out = report.backend or before.backend, report.left_out or 0
        self._put(replace(before, examples=report.examples, backend=backend, left_out=left_out))
        return (before.examples, before.backend) != (self[device].examples, self[device].backend)

    def heard(self, device: str, boot: int, wall_s: float, *, greeting: bool = False) -> None:
        """A message came: the device is there. A greeting's boot counts even if it is lower than the last one: a device
        whose disk was replaced begins again at one."""
        self._boots[device] = boot if greeting else max(boot, self._boots.get(device, 0))
        self._put(replace(self._devices[device], present=True, last_seen_s=wall_s))

    def left(self, device: str, boot: int) -> None:
        """The device, or the broker in its name, says it is gone. A will of an earlier boot says nothing of now."""
        if boot >= self._boots.get(device, 0):
            self._put(replace(self._devices[device], present=False))

    def turned_away(self, device: str) -> None:
        """The device is not heard any more, whatever it says."""
        self._put(replace(self._devices[device], present=False))

    def rests(self, device: str, day: int | None) -> None:
        """Notes the UTC day whose bytes the device has used up, or None when it has not, or no more."""
        if self._devices[device].resting_day != day:
            self._put(replace(self._devices[device], resting_day=day))

    def doubled(self, device: str, wall_s: float | None) -> None:
        """Notes when two agents were heard under its name, or None when there is one."""
        if self._devices[device].doubled_s != wall_s:
            self._put(replace(self._devices[device], doubled_s=wall_s))

    def take_changed(self) -> tuple[DeviceActivity, ...]:
        """The devices that changed since the last call."""
        changed = tuple(self._devices[d] for d in sorted(self._changed))
        self._changed.clear()
        return changed

    def _put(self, device: DeviceActivity) -> None:
        self._devices[device.device] = device
        self._changed.add(device.device)
        if device.present:
            self._present.add(device.device)
        else:
            self._present.discard(device.device)
