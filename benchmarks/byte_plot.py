"""Accuracy by bytes up: a named point and its spread for each codec."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.harness import Row
from benchmarks.panels import points, save_panels

_FAMILIES = {"all": "C0", "topk": "C3", "randk": "C2", "powersgd": "C4"}


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Draws the rows; the same rows give the same file."""
    save_panels(rows, path, (6.4, 4.2), _draw)


def _draw(axes: Axes, rows: Sequence[Row]) -> None:
    for family, colour in _FAMILIES.items():
        own = [row for row in rows if row["codec"].split("/")[0].split(":")[0] == family]
        if own:
            points(axes, [1 / row["uplink_ratio_to_dense"] for row in own], own, colour)
    for row in rows:
        where = (1 / row["uplink_ratio_to_dense"], 100 * row["accuracy_mean"])
        axes.annotate(row["codec"], where, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set_xscale("log")
    # Names stand to the right of their points.
    axes.set_xlim(0.8, 10 * max(1 / row["uplink_ratio_to_dense"] for row in rows))
    axes.set_xlabel("times fewer bytes up than dense float32")
    axes.grid(alpha=0.3)
