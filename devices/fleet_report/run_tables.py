"""Tables of the run: its rounds, and all that happened."""

import math

from devices.fleet.record import FleetRecord
from devices.page import Html, clean, folded, table
from devices.text import MISSING, bytes_text, decimal_text, duration_text, percent_text

# Names of folded devices, over all rounds of the table; a record of thousands of rounds must stay a page.
_NAMES = 10_000


def happenings_table(record: FleetRecord) -> str:
    """All happenings in the order of time."""
    if not record.happenings:
        return ""
    ordered = sorted(record.happenings, key=lambda h: h.at_s if math.isfinite(h.at_s) else math.inf)
    rows = [(duration_text(h.at_s), h.device or "fleet", h.what, h.detail or MISSING) for h in ordered]
    content = table("Happenings", ("At", "Device", "What", "In detail"), rows)
    return folded(f"Happenings ({len(rows)})", f'<div class="words">{content}</div>')


def rounds_table(record: FleetRecord) -> str:
    """All committed rounds, with who was folded."""
    head = ("Round", "At", "Real time", "Accuracy", "Loss", "Folded", "Sent up", "Sent down", "Seconds", "Devices")
    most = max(3, _NAMES // max(1, len(record.rounds)))
    rows = [
        (
            str(c.round.round),
            duration_text(c.at_s),
            duration_text(c.at_s * record.clock),
            percent_text(c.round.accuracy),
            decimal_text(c.round.loss, 3),
            str(c.round.devices),
            bytes_text(c.round.bytes_up),
            bytes_text(c.round.bytes_down),
            decimal_text(c.round.seconds, 2, " s"),
            Html(f'<span class="who">{_names(c.devices, most)}</span>'),
        )
        for c in record.rounds
    ]
    return folded(f"Rounds ({len(rows)})", table("Rounds", head, rows)) if rows else ""


def _names(devices: tuple[str, ...], most: int) -> str:
    more = f" and {len(devices) - most} more" if len(devices) > most else ""
    return clean(", ".join(devices[:most])) + more or MISSING
