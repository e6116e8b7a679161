"""Accuracy by bytes of the algorithms: a panel for each data set and split, a colour for each topology."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks import harness
from benchmarks.algorithm_rows import Row
from benchmarks.panels import points, save_panels


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Draws the rows; the same rows give the same file."""
    panels = [{**asdict(row), "dataset": f"{row.dataset}, {row.split}"} for row in rows]
    save_panels(panels, path, (6.4, 4.4), _draw)


def _draw(axes: Axes, rows: Sequence[harness.Row]) -> None:
    for place, topology in enumerate(sorted({row["topology"] for row in rows})):
        own = [row for row in rows if row["topology"] == topology]
        points(axes, [row["bytes"] / 1e6 for row in own], own, f"C{place}", topology)
    for row in rows:
        name = row["algorithm"] if row["codec"] == "all/float32" else f"{row['algorithm']} {row['codec']}"
        where = (row["bytes"] / 1e6, 100 * row["accuracy_mean"])
        axes.annotate(name, where, xytext=(4, 4), textcoords="offset points", fontsize=6)
    axes.set_xscale("log")
    axes.set_xlabel("MB that a device sends and receives")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
