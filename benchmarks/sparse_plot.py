"""Accuracy by sparsity and method: a point and its spread for each row."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks.harness import Row
from benchmarks.panels import points, save_panels

DENSE = "dense"


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Draws the rows; the same rows give the same file."""
    save_panels(rows, path, (5.2, 3.4), _draw)


def _draw(axes: Axes, rows: Sequence[Row]) -> None:
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != DENSE))
    sparsities = sorted({row["sparsity"] for row in rows if row["method"] != DENSE})
    for row in rows:
        if row["method"] == DENSE:
            axes.axhline(100 * row["accuracy_mean"], color="black", linewidth=1, label=DENSE)
    for i, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        # Beside each other around their sparsity, so that spreads do not cover one another.
        at = [sparsities.index(row["sparsity"]) + 0.09 * (i - (len(methods) - 1) / 2) for row in own]
        points(axes, at, own, label=method)
    axes.set_xticks(range(len(sparsities)), [f"{s:.0%} sparse" for s in sparsities])
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
