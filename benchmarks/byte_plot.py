"""Accuracy by bytes up as an SVG: a panel for each data set, a named point and its spread for each codec."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.harness import Row

_FAMILIES = ("all", "topk", "randk", "powersgd")


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Draws the rows; the same rows give the same file."""
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    with mpl.rc_context({"svg.hashsalt": "bytes", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4 * len(names), 4.2), layout="constrained")
        for place, name in enumerate(names, 1):
            axes = figure.add_subplot(1, len(names), place)
            own = [row for row in rows if row["dataset"] == name]
            for family, colour in zip(_FAMILIES, ("C0", "C3", "C2", "C4"), strict=True):
                points = [row for row in own if row["codec"].split("/")[0].split(":")[0] == family]
                if points:
                    at = [1 / row["uplink_ratio_to_dense"] for row in points]
                    means = [100 * row["accuracy_mean"] for row in points]
                    spreads = [100 * row["accuracy_sd"] for row in points]
                    axes.errorbar(at, means, spreads, fmt="o", color=colour, markersize=4, capsize=2, linewidth=1)
            for row in own:
                where = (1 / row["uplink_ratio_to_dense"], 100 * row["accuracy_mean"])
                axes.annotate(row["codec"], where, xytext=(4, 4), textcoords="offset points", fontsize=7)
            axes.set_xscale("log")
            # Names stand to the right of their points.
            axes.set_xlim(0.8, 10 * max(1 / row["uplink_ratio_to_dense"] for row in own))
            axes.set_xlabel("times fewer bytes up than dense float32")
            axes.set_ylabel("accuracy, %")
            axes.set_title(name)
            axes.grid(alpha=0.3)
        figure.savefig(path, format=path.suffix.lstrip(".") or "svg", metadata={"Date": None})
