"""A committed round as a line on screen, and the heading above such lines."""

from devices.facts import RoundCommitted
from devices.text import bytes_text, decimal_text, percent_text

_COLUMNS = "{:>9}  {:>8}  {:>6}  {:>7}  {:>8}  {:>8}  {:>7}"
HEADING = _COLUMNS.format("round", "accuracy", "loss", "devices", "up", "down", "seconds")


def round_line(event: RoundCommitted, rounds: int) -> str:
    """The round among `rounds` that there will be at most."""
    return _COLUMNS.format(
        f"{event.round}/{rounds}",
        percent_text(event.accuracy),
        decimal_text(event.loss, 3),
        event.devices,
        bytes_text(event.bytes_up),
        bytes_text(event.bytes_down),
        f"{event.seconds:.2f}",
    )
