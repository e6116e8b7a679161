"""Links as data: how fast, how late and how broken a connection is, and when that changes. Read from TOML, or built in.

The words are those of toxiproxy where it has one: latency and jitter, bandwidth, slicer, limit_data, timeout (here
`half-open`), reset_peer (here `reset`), down (here `refused`).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from protocol.errors import ConfigurationError
from protocol.records import RecordError, read_record, write_record

# open: all passes. stalled: nothing does, and nothing is lost. half-open: connections stay and every byte is swallowed,
# and one that lost a byte never passes another. refused: connections are reset as they come.
Mode = Literal["open", "stalled", "half-open", "refused"]
# cut: both ends see an orderly end. reset: both see a reset.
Break = Literal["cut", "reset"]
BREAKS: Mapping[str, Break] = {name: name for name in get_args(Break)}


@dataclass(frozen=True, slots=True)
class Link:
    """What holds on a link at one time. Up is from the side that connects; None is without limit.

    Lost packets are modelled as TCP shows them: as stalls, about every `stall_every_s` seconds, for `stall_s`.
    """

    mode: Mode = "open"
    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    up_kbit_s: float | None = None
    down_kbit_s: float | None = None
    slice_bytes: int | None = None
    limit_bytes: int | None = None
    stall_every_s: float = 0.0
    stall_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("latency_ms", "jitter_ms", "stall_every_s", "stall_s"):
            if not 0 <= getattr(self, name) <= 3_600_000:
                raise ValueError(f"{name}: {getattr(self, name)} is outside 0..3600000")
        if self.jitter_ms > self.latency_ms:
            raise ValueError(f"jitter_ms: {self.jitter_ms} is more than latency_ms, {self.latency_ms}")
        for name in ("up_kbit_s", "down_kbit_s"):
            rate = getattr(self, name)
            if rate is not None and not 0.1 <= rate <= 1e8:
                raise ValueError(f'{name}: {rate} is outside 0.1..1e8; mode = "stalled" lets nothing pass')
        if self.slice_bytes is not None and not 1 <= self.slice_bytes <= 1 << 20:
            raise ValueError(f"slice_bytes: {self.slice_bytes} is outside 1..{1 << 20}")
        if self.limit_bytes is not None and not 0 <= self.limit_bytes <= 1 << 50:
            raise ValueError(f"limit_bytes: {self.limit_bytes} is outside 0..{1 << 50}")


@dataclass(frozen=True, slots=True)
class Step:
    """From `at_s` after the start, or after each repetition's: what happens once, and what holds from then on."""

    at_s: float
    do: Break | None = None
    link: Link | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """A link and its timeline, in the order of time. repeat_s: the timeline begins anew so often; 0 is once."""

    link: Link = field(default_factory=Link)
    steps: tuple[Step, ...] = ()
    repeat_s: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        times = [step.at_s for step in self.steps]
        if times != sorted(times) or any(at < 0 for at in times):
            raise ValueError(f"steps: at_s must not be negative, nor fall: {times}")
        if self.repeat_s and self.repeat_s < max([1e-3, *times]):
            raise ValueError(f"repeat_s: {self.repeat_s} s end before the last step, at {max([1e-3, *times])} s")


# `source` says where each figure comes from; "ours" is no measurement but a case worth trying.
_WEBPAGETEST = "WebPageTest, connectivity.ini.sample; half its round trip each way"
PROFILES: Mapping[str, Profile] = {
    "lte": Profile(Link("open", 35.0, 0.0, 12_000.0, 12_000.0), source=f"LTE of {_WEBPAGETEST}"),
    "lte-poor": Profile(
        Link("open", 85.0, 60.0, 300.0, 1_500.0, stall_every_s=20.0, stall_s=1.5),
        source=f"the round trip is that of 4G of {_WEBPAGETEST}; rates, jitter and stalls are ours: a cell's edge",
    ),
    "3g-slow": Profile(Link("open", 200.0, 0.0, 400.0, 400.0), source=f"3G Slow of {_WEBPAGETEST}"),
    "edge": Profile(Link("open", 420.0, 0.0, 200.0, 240.0), source=f"Mobile EDGE of {_WEBPAGETEST}"),
    "satellite": Profile(
        Link("open", 260.0, 15.0, 1_000.0, 10_000.0),
        source="latency: one hop by a geostationary satellite (ITU-T G.114); rates and jitter are ours",
    ),
    "flaky-wifi": Profile(
        Link("open", 5.0, 4.0, 10_000.0, 10_000.0, stall_every_s=15.0, stall_s=3.0),
        steps=(Step(45.0, do="reset"),),
        repeat_s=60.0,
        source="ours: an access point at the end of the garden that throws everyone out once a minute",
    ),
}


def named_profile(name: str) -> Profile:
    """A built-in profile, or one in a TOML file. Raises ConfigurationError that names the file and the key."""
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(
            f"profile: {name}: cannot be read ({error.strerror}); name a TOML file, or one of {', '.join(PROFILES)}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML ({error})") from None
    try:
        return read_record(Profile, _laid_over(table))
    except RecordError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def changed(link: Link, said: str) -> Link:
    """A link after a word such as `stalled` or `up_kbit_s=100`; KEY=none lifts a limit. Raises ValueError."""
    key, equals, value = said.partition("=")
    key, value = (key.strip(), value.strip()) if equals else ("mode", key.strip())
    table: dict[str, Any] = dict(write_record(link))
    table[key] = value if key == "mode" else _number(key, value)
    return read_record(Link, table)


def worsened(link: Link, **values: object) -> Link:
    """The link with what is not None of the values."""
    return replace(link, **{key: value for key, value in values.items() if value is not None})  # type: ignore[arg-type]


def _number(key: str, value: str) -> float | int | None:
    if value == "none":
        return None
    number = float(value)
    return int(number) if key.endswith("_bytes") and number.is_integer() else number


def _laid_over(table: dict[str, Any]) -> dict[str, Any]:
    """The table with each step's link completed by what held before it, so that a step says only what changes."""
    held = table.get("link", {})
    steps = []
    for step in table.get("steps", ()):
        if isinstance(step, dict) and isinstance(step.get("link"), dict) and isinstance(held, dict):
            held = held | step["link"]
            step = step | {"link": held}
        steps.append(step)
    return table | ({"steps": steps} if steps else {})
