"""Which codec a device packs its next update with: a pure function of its link, its bytes today, and the ladder.

The richest codec whose round ends in time and takes no more than the device's share of what is left of its bytes today;
the leanest where none does. A device whose day has no room for even that rests until the next one begins, at midnight
UTC of the coordinator's clock.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.wire_bytes import RoundBytes
from protocol.errors import Rejection

DAY_S = 86_400
# What `codec = "auto"` stands for: of each size the codec that docs/codecs.md recommends, from half of dense float32's
# bytes to less than a hundredth, each about a third of the one before. MASKED: for a fleet under a mask.
LADDER = ("all/float16", "all/int4@64", "topk:0.2/int4", "topk:0.06/int4", "topk:0.02/int4")
MASKED_LADDER = ("mask/float16", "mask/int4@64", "mask/sign")


@dataclass(frozen=True, slots=True)
class Rung:
    """A codec by name, and what a round under it is predicted to cost the device."""

    codec: str
    bytes: RoundBytes


@dataclass(frozen=True, slots=True)
class Spending:
    """What is known of a device. codec: of its last update, None before the first. link_bytes_s: bytes a second
    through its link, None where it was not measured. train_s: of its last training. today_bytes: sent and received
    since the day began."""

    codec: str | None = None
    link_bytes_s: float | None = None
    train_s: float = 0.0
    today_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a round may take. day_bytes: of one device in a day, 0 without a limit. target_s: for training and bytes.
    rounds_left: in how many rounds the device is likely to be asked today, this one included. hysteresis: a device
    changes its codec only if a prediction is off by more than this share, so that noise does not flap."""

    target_s: float
    day_bytes: int = 0
    rounds_left: float = 1.0
    hysteresis: float = 0.15

    def __post_init__(self) -> None:
        assert self.target_s > 0, "a round takes time"
        assert self.day_bytes >= 0, "a budget is not negative"
        assert self.rounds_left >= 1, "this round is one"
        assert 0 <= self.hysteresis < 1


def day_of(wall_s: float) -> int:
    """The number of the UTC day since 1970."""
    return int(wall_s // DAY_S)


def rounds_left(wall_s: float, round_s: float, remaining: int, chance: float) -> float:
    """In how many rounds a device is likely to be asked before the day ends, the next included.

    round_s: how long rounds take. remaining: rounds of the run. chance: that a device is asked in a round.
    """
    until_midnight = DAY_S - wall_s % DAY_S
    return max(1.0, chance * min(float(remaining), math.ceil(until_midnight / max(round_s, 1e-3))))


def choose(name: str, device: Spending, ladder: Sequence[Rung], allowance: Allowance) -> str | Rejection:
    """The codec of a device's next task, or why it gets no task. ladder: the richest first."""
    assert ladder, "a fleet has at least one codec"
    left = math.inf if not allowance.day_bytes else allowance.day_bytes - device.today_bytes
    leanest = min(ladder, key=lambda rung: rung.bytes.both)
    if leanest.bytes.both > left:
        return Rejection(
            "budget",
            f"{name} has {max(0, int(left))} of {allowance.day_bytes} bytes left today and a round takes "
            f"{leanest.bytes.both} with {leanest.codec}; it rests until midnight UTC, or raise "
            "limits.device_bytes_per_day",
        )
    at = next((place for place, rung in enumerate(ladder) if rung.codec == device.codec), None)
    for place, rung in enumerate(ladder):
        # Richer than now only with room to spare, and as now until it is clearly too much.
        spare = 1.0
        if at is not None and place <= at:
            spare += allowance.hysteresis if place == at else -allowance.hysteresis
        if rung.bytes.both <= left and _fits(rung, device, allowance, left, spare):
            return rung.codec
    return leanest.codec


def _fits(rung: Rung, device: Spending, allowance: Allowance, left: float, spare: float) -> bool:
    link_s = rung.bytes.both / device.link_bytes_s if device.link_bytes_s else 0.0
    in_time = device.train_s + link_s <= allowance.target_s * spare
    return in_time and rung.bytes.both <= left / allowance.rounds_left * spare
