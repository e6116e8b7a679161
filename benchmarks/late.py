"""Who waits for whom when one of five devices is ten times slower: rounds that wait for all, that over-select, that
take late updates, and buffered ones.

    python -m benchmarks.late --json

A real coordinator on a real store with agents that train by formula, in simulated time: what is measured is who waits
for whom, not how fast anything computes.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, options, progress_console, publish
from tests.coordinator.simulation import Simulation

FAST_S, SLOW_S, DEVICES, VERSIONS = 10.0, 100.0, 5, 30
# A horizon that no run here reaches, and a deadline that nobody misses.
_LONG: dict[str, Any] = {"deadline_s": 100_000.0, "late_rounds": 500}
MODES: dict[str, tuple[int, dict[str, Any]]] = {
    "wait for all": (5, {"late_hours": 0.0}),
    "over-select": (4, {"over_select": 1.25, "late_hours": 0.0}),
    "late": (4, {"over_select": 1.25}),
    "buffered": (5, {"mode": "buffered", "buffer": 3}),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for each mode."""
    chosen = options(str(__doc__).partition("\n\n")[0]).parse_args(arguments)
    versions, console, rows = 6 if chosen.quick else VERSIONS, progress_console(), list[Row]()
    with tempfile.TemporaryDirectory(prefix="late-") as root:
        for mode in MODES:
            rows.append(measure(mode, versions, Path(root) / mode.replace(" ", "-")))
            console.print(f"{mode}: {rows[-1]['seconds_a_version']} s a version")
    notes = [f"simulated seconds; {DEVICES} devices, of which {DEVICES - 1} take {FAST_S:g} s and one {SLOW_S:g}"]
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Who waits for whom", notes=notes)
    return 0


def measure(mode: str, versions: int, folder: Path) -> Row:
    """Runs one fleet to its last version. in_vain: tasks that no fold took, though they were begun."""
    devices, rounds = MODES[mode]
    fleet = Simulation.make(folder, 0, count=versions, **(_LONG | rounds))
    fleet.kill()
    fleet.settings = replace(fleet.settings, rounds=replace(fleet.settings.rounds, devices=devices))
    fleet.start()
    try:
        for number in range(DEVICES):
            fleet.add(f"dev-{number}").train_s = SLOW_S if number == 0 else FAST_S
        began = fleet.now
        fleet.until(lambda: fleet.coordinator.finished, turns=1_000_000)
        seconds, sql = fleet.now - began, fleet.store._sql
        (folded, late, behind, slow) = sql.execute(
            "SELECT count(*), sum(fold > round), coalesce(avg(CASE WHEN fold > round THEN fold - round END), 0.0), "
            "sum(device = 'dev-0') FROM updates WHERE fold IS NOT NULL"
        ).fetchone()
        (asked,) = sql.execute("SELECT count(*) FROM tasks").fetchone()
    finally:
        fleet.store.close()
    return {
        "mode": mode,
        "versions": versions,
        "seconds": round(seconds, 1),
        "seconds_a_version": round(seconds / versions, 2),
        "updates_a_minute": round(60 * folded / seconds, 1),
        "late": late,
        "versions_behind": round(behind, 2),
        "of_the_slow_one": slow,
        "in_vain": asked - folded,
    }


if __name__ == "__main__":
    sys.exit(main())
