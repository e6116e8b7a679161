"""Quantities as people read them; None, and what is no finite number, is a dash."""

import math
import re

MISSING = "-"
# What XML has no place for and a terminal obeys, and what turns the direction of the text after it.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def plain_text(text: str) -> str:
    """Text that only says something: a sign stands for each character that does something."""
    return _UNFIT.sub("\ufffd", text)


def bytes_text(size: float | None) -> str:
    """Three digits and a decimal unit: 0 B, 950 B, 1.40 MB."""
    if size is None or not math.isfinite(size):
        return MISSING
    value, unit = _scaled(size)
    return f"{value:.{0 if unit == 'B' or value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def bytes_tick(size: float) -> str:
    """The same beside an axis, where steps are round: 0 B, 1.4 MB."""
    value, unit = _scaled(size)
    return f"{value:g} {unit}"


def duration_text(seconds: float | None) -> str:
    """9.4 s, 1 min 05 s, 2 h 03 min."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def percent_text(share: float | None) -> str:
    """A share of 1 in percent, with one digit; never rounded up to 100 % or to a target it has missed."""
    if share is None or not math.isfinite(share):
        return MISSING
    return f"{int(share * 1000 + 1e-6) / 10:.1f} %"


def number_text(value: int | None) -> str:
    """Thousands set apart."""
    return MISSING if value is None else f"{value:,}".replace(",", "\u202f")


def decimal_text(value: float | None, digits: int, unit: str = "") -> str:
    """A number with so many digits after the point, and its unit."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}{unit}"


def _scaled(size: float) -> tuple[float, str]:
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return value, unit
        value /= 1000
    return value, "TB"
