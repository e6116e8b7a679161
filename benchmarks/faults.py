"""What faults cost: crash schedules in the simulator, and what became of every update that was receipted."""

import logging
import sys

from benchmarks import simulated_faults
from benchmarks.harness import Row, options, progress_console, publish

SIMULATED = 10_000
NOTES = ("simulated: recovery in simulated seconds, from a death to the next message taken in, the outage included",)


def main() -> int:
    parser = options(__doc__ or "")
    parser.add_argument(
        "--simulated", type=int, metavar="N", help=f"crash schedules in the simulator (default: {SIMULATED}, quick 100)"
    )
    parser.add_argument("--replay-seed", type=int, metavar="N", help="run one simulated schedule and print all of it")
    chosen = parser.parse_args()
    console = progress_console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if chosen.replay_seed is not None:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
        return 1 if simulated_faults.replay(chosen.replay_seed, say).wrong else 0
    simulated = chosen.simulated if chosen.simulated is not None else 100 if chosen.quick else SIMULATED
    rows: list[Row] = []
    if simulated:
        rows += simulated_faults.run(simulated, chosen.seed, say)
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Faults", notes=NOTES)
    return 1 if any(row.get("broken") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
