"""When a device may train: pure rules over its conditions, with a margin between pausing and going on again.

Nothing here reads the device; `conditions.py` does. What is not known breaks no rule, but for a clock that is wrong.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Word = Literal["power", "temperature", "load", "memory", "disk", "metered", "window", "bytes", "writes"]

# Above a limit training pauses; it goes on when there is so much room again, so that it does not flap.
BATTERY_MARGIN_PERCENT = 5.0
TEMPERATURE_MARGIN_C = 5.0
LOAD_MARGIN = 0.1
DISK_MARGIN_MIB = 64.0
DAY_S = 86_400
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class EligibilitySettings:
    """What must hold for a task to be trained, before and while it is. Every rule is off by default.

    power: "mains" asks for mains; least_battery_percent is asked of a battery that is in use. most_load: of the other
    work, per core. window: of the day, in local time. bytes_per_day: either way over the link; writes_mib_per_day: to
    the disk. metered: "avoid" waits while the way out leads over one of metered_interfaces. interval_s: between two
    looks while a task is in hand. wait_s: for how long a task that has not begun waits before it is refused.
    """

    power: Literal["any", "mains"] = "any"
    least_battery_percent: float = 0.0
    most_temperature_c: float = 0.0
    most_load: float = 0.0
    least_memory_mib: int = 0
    least_disk_mib: int = 0
    metered: Literal["use", "avoid"] = "use"
    metered_interfaces: tuple[str, ...] = ("wwan*", "ppp*", "rmnet*")
    window: str = ""
    bytes_per_day: int = 0
    writes_mib_per_day: int = 0
    interval_s: float = 30.0
    wait_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.least_battery_percent <= 100:
            raise ValueError(f"least_battery_percent: {self.least_battery_percent} is outside 0..100; 0 asks for none")
        for name in ("most_temperature_c", "most_load"):
            if not 0 <= getattr(self, name) <= 1000:
                raise ValueError(f"{name}: {getattr(self, name)} is outside 0..1000; 0 is no limit")
        for name in ("least_memory_mib", "least_disk_mib", "bytes_per_day", "writes_mib_per_day"):
            if not 0 <= getattr(self, name) <= 1 << 50:
                raise ValueError(f"{name}: {getattr(self, name)} is below 0 or beyond all devices; 0 is no limit")
        if self.window and (not _WINDOW.fullmatch(self.window) or len(set(self.window.split("-"))) == 1):
            raise ValueError(f'window: {self.window!r} must be two times of day, for example "22:00-06:00"')
        if not 1 <= self.interval_s <= 3600:
            raise ValueError(f"interval_s: {self.interval_s} is outside 1..3600 seconds")
        if not 0 <= self.wait_s <= DAY_S:
            raise ValueError(f"wait_s: {self.wait_s} is outside 0..{DAY_S} seconds; 0 refuses at once")

    @property
    def any(self) -> bool:
        """Whether there is anything to look at."""
        return bool(
            self.power == "mains"
            or self.metered == "avoid"
            or self.window
            or self.least_battery_percent
            or self.most_temperature_c
            or self.most_load
            or self.least_memory_mib
            or self.least_disk_mib
            or self.bytes_per_day
            or self.writes_mib_per_day
        )


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a device is, each value None where nobody knows.

    load: the last minute's, of other work than training, per core. memory_mib: that is free; own_mib: that the agent
    and its children have. interface: over which the way out leads. second_of_day: local time, None where the clock is
    plainly wrong. bytes_today, writes_today: since midnight, local time, writes in bytes.
    """

    on_mains: bool | None = None
    battery_percent: float | None = None
    temperature_c: float | None = None
    load: float | None = None
    memory_mib: float | None = None
    own_mib: float | None = None
    disk_mib: float | None = None
    interface: str | None = None
    metered: bool | None = None
    second_of_day: int | None = None
    bytes_today: int = 0
    writes_today: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What training waits for already. own_mib: what it gave back when it began to wait."""

    words: frozenset[Word] = frozenset()
    own_mib: float = 0.0


@dataclass(frozen=True, slots=True)
class Reason:
    """A rule that is broken, in a word and for people. passes_s: in how many seconds it is over, if that is known."""

    word: Word
    detail: str
    passes_s: float = 0.0


def broken(settings: EligibilitySettings, now: Conditions, held: Held = Held()) -> tuple[Reason, ...]:
    """Every rule that does not hold. One that is broken already must hold with a margin."""
    return (*_power(settings, now, held), *_machine(settings, now, held), *_link(settings, now), *_time(settings, now))


def _power(settings: EligibilitySettings, now: Conditions, held: Held) -> Iterator[Reason]:
    if settings.power == "mains" and now.on_mains is False:
        yield Reason("power", "on battery, and eligibility.power asks for mains")
        return
    least, left = settings.least_battery_percent, now.battery_percent
    if not least or left is None or now.on_mains:
        return
    # A full battery must do.
    due = min(100.0, least + (BATTERY_MARGIN_PERCENT if "power" in held.words else 0.0))
    if left < due:
        yield Reason("power", f"the battery has {left:.0f} %, under {due:.0f} %")


def _machine(settings: EligibilitySettings, now: Conditions, held: Held) -> Iterator[Reason]:
    hottest = settings.most_temperature_c - (TEMPERATURE_MARGIN_C if "temperature" in held.words else 0.0)
    if settings.most_temperature_c and now.temperature_c is not None and now.temperature_c > hottest:
        yield Reason("temperature", f"{now.temperature_c:.0f} C, over {hottest:.0f} C")
    most = settings.most_load * (1 - LOAD_MARGIN if "load" in held.words else 1.0)
    if settings.most_load and now.load is not None and now.load > most:
        yield Reason("load", f"other work has a load of {now.load:.2f} a core, over {most:.2f}")
    # What training took is free while it waits, and would be taken again.
    least = settings.least_memory_mib + (held.own_mib if "memory" in held.words else 0.0)
    if settings.least_memory_mib and now.memory_mib is not None and now.memory_mib < least:
        yield Reason("memory", f"{now.memory_mib:.0f} MiB of memory are free, under {least:.0f} MiB")
    room = settings.least_disk_mib + (DISK_MARGIN_MIB if "disk" in held.words else 0.0)
    if settings.least_disk_mib and now.disk_mib is not None and now.disk_mib < room:
        yield Reason("disk", f"{now.disk_mib:.0f} MiB of disk are free, under {room:.0f} MiB")


def _link(settings: EligibilitySettings, now: Conditions) -> Iterator[Reason]:
    if settings.metered == "avoid" and now.metered:
        yield Reason("metered", f"the way out leads over {now.interface}, which is metered")


def _time(settings: EligibilitySettings, now: Conditions) -> Iterator[Reason]:
    midnight_s = 0.0 if now.second_of_day is None else DAY_S - now.second_of_day
    if settings.window:
        wait_s = _until_open(settings.window, now.second_of_day)
        if wait_s is None:
            yield Reason("window", f"the clock is not set, so that {settings.window} cannot be kept")
        elif wait_s > 0:
            yield Reason("window", f"it is not {settings.window}, for another {wait_s / 60:.0f} minutes", wait_s)
    if settings.bytes_per_day and now.bytes_today >= settings.bytes_per_day:
        said = f"{now.bytes_today:,} bytes went over the link today, of {settings.bytes_per_day:,}"
        yield Reason("bytes", said, midnight_s)
    writes = settings.writes_mib_per_day << 20
    if writes and now.writes_today is not None and now.writes_today >= writes:
        said = f"{now.writes_today >> 20:,} MiB were written today, of {settings.writes_mib_per_day:,}"
        yield Reason("writes", said, midnight_s)


def _until_open(window: str, second: int | None) -> float | None:
    """Seconds until the window opens, 0 while it is open, None without a clock."""
    if second is None:
        return None
    match = _WINDOW.fullmatch(window)
    assert match is not None
    hours = [int(part) for part in match.groups()]
    opens, closes = hours[0] * 3600 + hours[1] * 60, hours[2] * 3600 + hours[3] * 60
    # It may reach over midnight.
    is_open = opens <= second < closes if opens < closes else second >= opens or second < closes
    return 0.0 if is_open else float((opens - second) % DAY_S)
