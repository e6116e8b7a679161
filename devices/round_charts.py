"""Charts over rounds that every report has: bytes added up, and seconds with the share that was no work."""

from devices.charts import Chart, Series, bar_chart, line_chart, nice_step, nice_top
from devices.facts import RoundCommitted
from devices.page import card, legend
from devices.text import bytes_text, bytes_tick


def traffic_card(rounds: tuple[RoundCommitted, ...], dense_update_bytes: int | None = None) -> str:
    """Bytes up and down, added up; dense_update_bytes: what one update would weigh as dense float32, for comparison."""
    entries = [("first", "up"), ("second", "down")]
    if dense_update_bytes:
        entries.append(("reference", "up, were it dense float32"))
    chart = _bytes_chart(rounds, dense_update_bytes)
    return card("Traffic", "all devices together, added up over rounds", chart, legend(*entries))


def seconds_card(rounds: tuple[RoundCommitted, ...], note: str = "seconds a round") -> str:
    """How long rounds took, and how much of it was not compute."""
    return card("Time", note, _seconds_chart(rounds), legend(("first block", "work"), ("second block", "overhead")))


def _bytes_chart(rounds: tuple[RoundCommitted, ...], dense_update_bytes: int | None) -> str:
    up = _cumulated([r.bytes_up for r in rounds])
    down = _cumulated([r.bytes_down for r in rounds])
    series = [Series("up", tuple(up), "first"), Series("down", tuple(down), "second")]
    if dense_update_bytes:
        dense = _cumulated([dense_update_bytes * r.devices for r in rounds])
        series.insert(0, Series("up as dense float32", tuple(dense), "reference"))
    top = nice_top([v for s in series for v in s.values if v is not None])
    return line_chart(
        Chart(
            name="Bytes over rounds, cumulated",
            description=f"{bytes_text(up[-1] if up else 0)} up and {bytes_text(down[-1] if down else 0)} down in all",
            rounds=tuple(r.round for r in rounds),
            series=tuple(series),
            hover=tuple(
                f"After round {r.round}: " + ", ".join(f"{bytes_text(s.values[i])} {s.label}" for s in reversed(series))
                for i, r in enumerate(rounds)
            ),
            tick=bytes_tick,
            low=0.0,
            high=top,
        )
    )


def _seconds_chart(rounds: tuple[RoundCommitted, ...]) -> str:
    overhead = tuple(min(r.overhead_s or 0.0, r.seconds) for r in rounds)
    work = tuple(r.seconds - over for r, over in zip(rounds, overhead, strict=True))
    top = nice_top([r.seconds for r in rounds])
    digits = 0 if nice_step(top) >= 1 else 1 if nice_step(top) >= 0.1 else 2
    return bar_chart(
        Chart(
            name="Seconds a round",
            description=f"{sum(r.seconds for r in rounds) / max(1, len(rounds)):.2f} s on average",
            rounds=tuple(r.round for r in rounds),
            series=(Series("work", work, "first"), Series("overhead", overhead, "second")),
            hover=tuple(
                f"Round {r.round}: {r.seconds:.2f} s"
                + ("" if r.overhead_s is None else f", overhead {r.overhead_s:.2f} s")
                for r in rounds
            ),
            tick=lambda v: f"{v:.{digits}f} s",
            low=0.0,
            high=top,
        )
    )


def _cumulated(values: list[int]) -> list[float]:
    total, result = 0.0, []
    for value in values:
        total += value
        result.append(total)
    return result
