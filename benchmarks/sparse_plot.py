"""Accuracy by sparsity and method as an SVG: a panel for each data set, a point and its spread for each row."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.harness import Row

DENSE = "dense"


def save_plot(rows: Sequence[Row], path: Path) -> None:
    """Draws the rows; the same rows give the same file."""
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    with mpl.rc_context({"svg.hashsalt": "sparse", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(5.2 * len(names), 3.4), layout="constrained")
        for place, name in enumerate(names, 1):
            axes = figure.add_subplot(1, len(names), place)
            own = [row for row in rows if row["dataset"] == name]
            methods = list(dict.fromkeys(row["method"] for row in own if row["method"] != DENSE))
            sparsities = sorted({row["sparsity"] for row in own if row["method"] != DENSE})
            for row in own:
                if row["method"] == DENSE:
                    axes.axhline(100 * row["accuracy_mean"], color="black", linewidth=1, label=DENSE)
            for i, method in enumerate(methods):
                points = [row for row in own if row["method"] == method]
                # Beside each other around their sparsity, so that spreads do not cover one another.
                at = [sparsities.index(row["sparsity"]) + 0.09 * (i - (len(methods) - 1) / 2) for row in points]
                means = [100 * row["accuracy_mean"] for row in points]
                spreads = [100 * row["accuracy_sd"] for row in points]
                axes.errorbar(at, means, spreads, fmt="o", markersize=4, capsize=2, linewidth=1, label=method)
            axes.set_xticks(range(len(sparsities)), [f"{s:.0%} sparse" for s in sparsities])
            axes.set_title(name)
            axes.set_ylabel("accuracy, %")
            axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
        figure.savefig(path, format=path.suffix.lstrip(".") or "svg", metadata={"Date": None})
