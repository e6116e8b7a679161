"""What faults cost: crash schedules in the simulator, and SIGKILLs of real processes; what became of every update.

python -m benchmarks.faults --json --simulated 10000 --kills 500 --seed 1
python -m benchmarks.faults --replay-seed 1000042       # one simulated schedule, with all that happened
"""

import argparse
import logging
import sys

from benchmarks import real_faults, simulated_faults
from benchmarks.harness import Row, options, progress_console, publish

SIMULATED, KILLS = 10_000, 500
QUICK_SIMULATED, QUICK_KILLS = 100, 25


def main() -> int:
    """Prints a row for each kind of fault; 1 where an update was lost or folded twice, or a bit differs."""
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--simulated", type=int, metavar="N", help=f"schedules (default: {SIMULATED}, 0 for none)")
    parser.add_argument("--kills", type=int, metavar="N", help=f"of real processes (default: {KILLS}, 0 for none)")
    parser.add_argument("--replay-seed", type=int, metavar="N", help="run one simulated schedule and print all of it")
    chosen = parser.parse_args()
    console = progress_console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if chosen.replay_seed is not None:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
        return 1 if simulated_faults.replay(chosen.replay_seed, say).wrong else 0
    simulated, kills = chosen.simulated, chosen.kills
    if simulated is None:
        simulated = QUICK_SIMULATED if chosen.quick else SIMULATED
    if kills is None:
        kills = QUICK_KILLS if chosen.quick else KILLS
    rows: list[Row] = []
    if simulated:
        rows += simulated_faults.run(simulated, chosen.seed, say)
    if kills:
        rows += real_faults.run(kills, chosen.seed, say)
    if not rows:
        parser.error("nothing to do: --simulated 0 and --kills 0")
    notes = (*simulated_faults.NOTES, *real_faults.NOTES)
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Faults", notes=notes)
    return 1 if any(row["broken"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
