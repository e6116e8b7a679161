"""The thesis' algorithms beside each other on real data: what each costs in bytes, and how good its model is.

    python -m benchmarks.algorithms --json --seeds 3
    python -m benchmarks.algorithms --only hub --data fashion --kept algorithms.jsonl --plot algorithms.svg

All run on the portable engine of devices, many virtual devices in one process. Parts (--only), data sets and seeds are
finished one by one, and --kept holds what is finished, so that what was broken off goes on. Settings were chosen on
people or examples taken from the training part (`problem(validate=True)`). The whole takes some half an hour of one
processor for each seed, the better part of it hub and masking.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic

from benchmarks import algorithm_feddf, algorithm_gossip, algorithm_head, algorithm_hub, algorithm_masking
from benchmarks.algorithm_plot import save_plot
from benchmarks.algorithm_rows import SPLITS, Row, Rows, over_seeds
from benchmarks.harness import options, progress_console, publish

PARTS: Mapping[str, Rows] = {
    "hub": algorithm_hub.rows,
    "gossip": algorithm_gossip.rows,
    "feddf": algorithm_feddf.rows,
    "head": algorithm_head.rows,
    "masking": algorithm_masking.rows,
}


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _options().parse_args(arguments)
    seeds = range(chosen.seed, chosen.seed + (1 if chosen.quick else chosen.seeds))
    console, started, kept, rows = progress_console(), monotonic(), Kept(chosen.kept), list[Row]()
    for seed in seeds:
        # Seed by seed, so that what is broken off still compares all algorithms.
        for name in chosen.only or PARTS:
            for dataset in chosen.data or SPLITS:
                key = f"{name} {dataset} {seed} quick={chosen.quick}"
                found = kept.get(key)
                if found is None:
                    found = []
                    for row in PARTS[name](dataset, (seed,), chosen.quick):
                        console.print(f"{monotonic() - started:6.0f} s  seed {seed} {_said(row)}", markup=False)
                        found.append(row)
                    kept.put(key, found)
                rows += found
    merged = over_seeds(rows)
    if chosen.plot is not None:
        save_plot(merged, chosen.plot)
    notes = [
        f"seeds {', '.join(map(str, seeds))}; accuracy of the averaged model on what is held out",
        "bytes: sent and received by a device in the whole run; worst device: see benchmarks/algorithm_rows.py",
    ]
    own = [f"{_named(row)} {row.own_mean:.4f}" for row in merged if row.own_mean is not None]
    if own:
        notes.append(f"mean of the devices' own models: {'; '.join(own)}")
    table = [row.published() for row in merged]
    publish(table, seed=chosen.seed, as_json=chosen.json, title="Algorithms", notes=notes)


class Kept:
    """Finished rows in a file of JSON lines, by part, data set and seed; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._known = path, dict[str, list[Row]]()
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                said = json.loads(line)
                self._known[said["key"]] = [Row(**row) for row in said["rows"]]

    def get(self, key: str) -> list[Row] | None:
        return self._known.get(key)

    def put(self, key: str, rows: Sequence[Row]) -> None:
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, "rows": [asdict(row) for row in rows]}) + "\n")


def _named(row: Row) -> str:
    return f"{row.dataset}, {row.split}, {row.topology}, {row.algorithm}, {row.codec}:"


def _said(row: Row) -> str:
    own = "" if row.own_mean is None else f"own models {row.own_mean:.4f}, "
    return (
        f"{_named(row)} {row.accuracy_mean:.4f}, {own}worst {row.accuracy_worst_device:.4f}, {row.bytes:,} bytes in "
        f"{row.rounds} rounds"
    )


def _options() -> argparse.ArgumentParser:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --seed on (default: 3)")
    parser.add_argument("--only", choices=sorted(PARTS), action="append", help="again for more (default: all)")
    parser.add_argument("--data", choices=sorted(SPLITS), action="append", help="again for more (default: all)")
    parser.add_argument("--kept", type=Path, help="keep finished rows in this file, and do not repeat them")
    parser.add_argument("--plot", type=Path, help="draw accuracy by bytes, as SVG")
    return parser


if __name__ == "__main__":
    main()
