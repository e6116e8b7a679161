"""Crash schedules in the simulator (tests/simulator), in all cores: what was receipted, lost and folded twice.

`kills` are processes and machines that died. `recovery_s_max`: in simulated seconds, at most so long after it was
started again a coordinator that was killed took in a message of a device, over the schedules in which nothing else
failed; how fast a disk and a processor are is not in it.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.simulator.faults import draw_schedule
from tests.simulator.world import Outcome, simulate

Progress = Callable[[str], None]
Row = Mapping[str, object]

# Of each seed of a benchmark run its own schedules, by seeds that no other has.
SEEDS_APART = 1_000_000
_BATCH = 50
NOTES = (
    "simulated: recovery in simulated seconds, from the start after a kill to the next message of a device, where only "
    "the coordinator was killed",
)
REPRODUCE = "python -m benchmarks.faults --replay-seed"


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one schedule, what goes from process to process. wrong: the first thing that is."""

    seed: int
    kills: int
    receipted: int
    lost: int
    doubled: int
    bit_identical: bool
    recovery_s: float
    wrong: str | None


def run(schedules: int, seed: int, progress: Progress) -> list[Row]:
    """One row. progress: told of every batch, and of every schedule that breaks an invariant."""
    first = seed * SEEDS_APART
    found: list[Summary] = []
    for batch in _summaries(range(first, first + schedules)):
        found.extend(batch)
        for summary in batch:
            if summary.wrong is not None:
                progress(f"seed {summary.seed}: {summary.wrong}; {REPRODUCE} {summary.seed}")
        progress(f"simulated {len(found)} of {schedules} schedules, {sum(s.kills for s in found)} kills")
    return [row_of(found)]


def row_of(found: Sequence[Summary]) -> Row:
    return {
        "kind": "simulated",
        "schedules": len(found),
        "kills": sum(summary.kills for summary in found),
        "receipted": sum(summary.receipted for summary in found),
        "lost": sum(summary.lost for summary in found),
        "doubled": sum(summary.doubled for summary in found),
        "bit_identical": all(summary.bit_identical for summary in found),
        "recovery_s_max": round(max(summary.recovery_s for summary in found), 3),
        "broken": sum(summary.wrong is not None for summary in found),
    }


def replay(seed: int, progress: Progress) -> Outcome:
    """One schedule, with all that the daemons log and the simulator's own log."""
    outcome = simulate(draw_schedule(seed), quiet=False)
    for line in outcome.log:
        progress(line)
    progress(f"{outcome.schedule}")
    for wrong in outcome.wrong:
        progress(f"wrong: {wrong}")
    return outcome


def _summaries(seeds: range) -> Iterator[list[Summary]]:
    batches = [seeds[start : start + _BATCH] for start in range(0, len(seeds), _BATCH)]
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        yield from pool.imap(_simulate, batches)


def _simulate(seeds: range) -> list[Summary]:
    return [_summary(seed, simulate(draw_schedule(seed))) for seed in seeds]


def _summary(seed: int, outcome: Outcome) -> Summary:
    return Summary(
        seed,
        outcome.kills,
        outcome.receipted,
        outcome.lost,
        outcome.doubled,
        outcome.bit_identical,
        outcome.recovery_s,
        outcome.wrong[0] if outcome.wrong else None,
    )
