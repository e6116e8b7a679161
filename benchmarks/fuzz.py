"""Fuzzes every decoder that reads bytes from outside: what crashes, hangs, or allocates more than it declares.

python -m benchmarks.fuzz --json --inputs 1000000 --seed 1
python -m benchmarks.fuzz --target graph --inputs 50000 --save found
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.fuzzing.run import TRACED, Tally, fuzz, shares, slug
from benchmarks.fuzzing.target import Target
from benchmarks.fuzzing.targets import TARGETS
from benchmarks.harness import Row, options, progress_console, publish

INPUTS, QUICK = 1_000_000, 20_000
NOTES = (
    "crashes: any exception that the decoder does not state, or the end of its process. hangs: over 1 s of processor "
    f"time. max_alloc_ratio: of one input in {TRACED}, the peak of tracemalloc over the declared limit; over 4 counts "
    "as a crash too. All inputs ran under a limit on address space.",
)


def main() -> int:
    """Prints a row for each target; 1 where one crashed, hung or allocated over four times its limit."""
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--inputs", type=int, metavar="N", help=f"of all targets together (default: {INPUTS})")
    parser.add_argument("--target", action="append", default=[], help="only targets whose name begins so; repeatable")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="where inputs that failed are written")
    chosen = parser.parse_args()
    targets = [t for t in TARGETS if not chosen.target or any(t.name.startswith(name) for name in chosen.target)]
    if not targets:
        parser.error(f"--target: none begins so; known are {', '.join(t.name for t in TARGETS)}")
    inputs = chosen.inputs or (QUICK if chosen.quick else INPUTS)
    tallies = _run(targets, inputs, chosen.seed)
    for target, tally in zip(targets, tallies, strict=True):
        _tell(target, tally, chosen.save)
    rows = [_row(target, tally) for target, tally in zip(targets, tallies, strict=True)]
    taken = sum(tally.taken for tally in tallies) / max(1, sum(tally.inputs for tally in tallies))
    notes = (*NOTES, f"{sum(t.inputs for t in tallies):,} inputs, of which {taken:.0%} were taken for valid")
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Fuzzing", notes=notes)
    return 1 if any(tally.failures for tally in tallies) else 0


def _run(targets: Sequence[Target], inputs: int, seed: int) -> list[Tally]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    each, cores = shares(targets, inputs), len(os.sched_getaffinity(0))
    # Without a thread of its own, which a fork would leave in pieces.
    with Progress(*columns, console=progress_console(), auto_refresh=False) as bar:
        task = bar.add_task("", total=sum(each))

        def tell(name: str, done: int) -> None:
            bar.update(task, description=name, completed=done, refresh=True)

        return fuzz(targets, each, seed, cores, tell)


def _row(target: Target, tally: Tally) -> Row:
    return {
        "target": target.name,
        "inputs": tally.inputs,
        "crashes": len(tally.failures) - tally.count("hang"),
        "hangs": tally.count("hang"),
        "max_alloc_ratio": round(tally.peak_ratio, 3),
    }


def _tell(target: Target, tally: Tally, folder: Path | None) -> None:
    """What failed, once for each way of failing."""
    console, seen = progress_console(), set[str]()
    for failure in tally.failures:
        if failure.said[:60] in seen:
            continue
        seen.add(failure.said[:60])
        name = hashlib.sha256(failure.data).hexdigest()[:12]
        console.print(f"{target.name}: {failure.kind}: {failure.said} ({name})", markup=False, soft_wrap=True)
        if folder is not None:
            place = folder / slug(target.name)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{failure.kind}-{name}.bin").write_bytes(failure.data)


if __name__ == "__main__":
    sys.exit(main())
