"""Figures of benchmarks as SVG: a panel for each data set. The same rows give the same file."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.harness import Row

Draw = Callable[[Axes, Sequence[Row]], None]


def save_panels(
    rows: Sequence[Row], path: Path, size: tuple[float, float], draw: Draw, columns: int | None = None
) -> None:
    """Draws the rows of each data set into a panel of its own. size: of a panel, in inches. columns: of panels; without
    it all are beside each other."""
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    across = min(columns or len(names), len(names))
    down = -(-len(names) // across)
    with mpl.rc_context({"svg.hashsalt": "sparsefleet", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(size[0] * across, size[1] * down), layout="constrained")
        for place, name in enumerate(names, 1):
            axes = figure.add_subplot(down, across, place)
            axes.set_title(name)
            axes.set_ylabel("accuracy, %")
            draw(axes, [row for row in rows if row["dataset"] == name])
        figure.savefig(path, format=path.suffix.lstrip(".") or "svg", metadata={"Date": None})


def points(axes: Axes, at: Sequence[float], rows: Sequence[Row], colour: str | None = None, label: str = "") -> None:
    """A point and its spread for each row, at a place on the other axis."""
    means, spreads = [100 * row["accuracy_mean"] for row in rows], [100 * row["accuracy_sd"] for row in rows]
    axes.errorbar(at, means, spreads, fmt="o", color=colour, markersize=4, capsize=2, linewidth=1, label=label)
