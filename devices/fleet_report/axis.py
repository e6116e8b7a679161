"""The axis of time: where its ticks are and how they are written, of emulated or of real seconds."""

import math

from devices.charts import nice_step
from devices.fleet.record import FleetRecord

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200)
# A run of a thousand years is a mistake in the record, and must still be drawn.
_LONGEST_S = 4e10


def horizon(record: FleetRecord) -> float:
    """The last emulated second of which the record says anything; 1 for an empty one."""
    ends = [span.end_s for device in record.devices for span in device.presence]
    ends += [happening.at_s for happening in record.happenings]
    ends += [committed.at_s for committed in record.rounds]
    ends += [sample.at_s for device in record.devices for sample in device.memory]
    return min(max((end for end in ends if math.isfinite(end) and end > 0), default=1.0), _LONGEST_S)


def factor(record: FleetRecord) -> float:
    """Real seconds of an emulated one; 1 where the record has no such number."""
    return record.clock if math.isfinite(record.clock) and record.clock > 0 else 1.0


def ticks(end_s: float, most: int) -> list[tuple[float, str]]:
    """At most `most` + 1 round times from 0 to the end, each with its text; the unit is one for all."""
    step = _step(end_s, most)
    unit, name = next(((u, n) for u, n in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")) if step >= u), (1, "s"))
    count = math.floor(end_s / step + 1e-9)
    return [(i * step, f"{_short(i * step / unit)} {name}" if i else "0") for i in range(count + 1)]


def _step(end_s: float, most: int) -> float:
    if end_s / most > _STEPS[-1]:
        return max(1.0, nice_step(end_s / _DAY, most)) * _DAY
    if end_s / most < 1:
        return nice_step(end_s, most)
    return next(step for step in _STEPS if end_s / step <= most)


def _short(value: float) -> str:
    return f"{value:.10g}" if value < 1e5 else f"{value:.0f}"
