"""Who holds which labels, as SVG: a bar for each device, as long as its examples, in a colour for each label."""

from collections.abc import Mapping, Sequence
from html import escape

from devices.datasets import Ints

# Okabe and Ito's colours, which people tell apart whatever their eyes, then lighter ones of the same.
_OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
_COLOURS = (*_OKABE_ITO, "#7fb8d8", "#f2cf80")
_WIDTH, _LEFT, _RIGHT, _TOP, _BAR, _GAP, _BOTTOM = 640, 96, 56, 44, 14, 4, 12


def label_plot(title: str, counts: Mapping[str, Sequence[int]]) -> str:
    """counts: of each device, how many examples it has of label 0, 1, and so on. The same counts give the same text."""
    most = max(1, *(sum(own) for own in counts.values()))
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    height = _TOP + len(counts) * (_BAR + _GAP) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="10">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="14" font-size="12">{escape(title)}</text>',
    ]
    labels = len(next(iter(counts.values())))
    for label in range(labels):
        x = _LEFT + label * (_WIDTH - _LEFT - _RIGHT) / labels
        parts.append(f'<rect x="{x:.1f}" y="22" width="9" height="9" fill="{_colour(label)}"/>')
        parts.append(f'<text x="{x + 12:.1f}" y="30">{label}</text>')
    for row, (device, own) in enumerate(counts.items()):
        parts += _bar(device, own, _TOP + row * (_BAR + _GAP), scale)
    return "".join([*parts, "</svg>\n"])


def counts_of(y: Ints, classes: int) -> list[int]:
    """How many examples there are of each label."""
    return [int((y == label).sum()) for label in range(classes)]


def _bar(device: str, own: Sequence[int], y: float, scale: float) -> list[str]:
    parts, x = [f'<text x="{_LEFT - 6}" y="{y + 11:.1f}" text-anchor="end">{escape(device)}</text>'], float(_LEFT)
    for label, count in enumerate(own):
        if count:
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{count * scale:.1f}" height="{_BAR}" fill="{_colour(label)}">'
                f"<title>{escape(device)}: {count} of label {label}</title></rect>"
            )
        x += count * scale
    return [*parts, f'<text x="{x + 4:.1f}" y="{y + 11:.1f}">{sum(own)}</text>']


def _colour(label: int) -> str:
    return _COLOURS[label % len(_COLOURS)]
