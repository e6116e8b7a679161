"""Accuracy and bytes of the algorithms, a line each: a panel for each data set and split."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks import harness
from benchmarks.algorithm_rows import Row
from benchmarks.panels import save_panels


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Draws the rows; the same rows give the same file."""
    panels = [{**row.published(), "dataset": f"{row.dataset}, {row.split}"} for row in rows]
    lines = max(sum(panel["dataset"] == other["dataset"] for other in panels) for panel in panels)
    save_panels(panels, path, (6.4, 0.9 + 0.22 * lines), _draw, columns=2)


def _draw(axes: Axes, rows: Sequence[harness.Row]) -> None:
    places = range(len(rows))
    means, spreads = [100 * row["accuracy_mean"] for row in rows], [100 * row["accuracy_sd"] for row in rows]
    worst = [100 * row["accuracy_worst_device"] for row in rows]
    axes.hlines(places, worst, means, color="0.8", linewidth=1)
    axes.errorbar(means, places, xerr=spreads, fmt="o", color="C0", markersize=4, capsize=2, label="averaged model")
    axes.plot(worst, places, "o", color="C1", markersize=4, fillstyle="none", label="worst device")
    axes.set_yticks(places, [_name(row) for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_ylabel("")
    axes.set_xlabel("accuracy, %")
    axes.legend(fontsize=7)
    axes.grid(axis="x", alpha=0.3)


def _name(row: harness.Row) -> str:
    codec = "" if row["codec"] == "all/float32" else f", {row['codec']}"
    return f"{row['algorithm']}{codec}: {row['bytes'] / 1e6:.3g} MB"
