"""What faults cost: real processes killed by SIGKILL, and what became of every update that was receipted."""

from benchmarks import real_faults
from benchmarks.harness import options, progress_console, publish

KILLS = 500


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--kills", type=int, metavar="N", help=f"real SIGKILLs (default: {KILLS}, with --quick 25)")
    chosen = parser.parse_args()
    kills = chosen.kills if chosen.kills is not None else 25 if chosen.quick else KILLS
    console = progress_console()
    rows = real_faults.run(kills, chosen.seed, console.print)
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Faults", notes=real_faults.NOTES)


if __name__ == "__main__":
    main()
