"""Runs a target's inputs in a child process: a decoder that dies, or does not come back, takes only the child along.

Input i of a target follows from (seed, target, i) alone: where a child died, the next one goes on behind it, and every
input can be made again by its number.
"""

import mmap
import multiprocessing
import os
import resource
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random

from benchmarks.fuzzing.target import Prepared, Target
from protocol.errors import Rejection

HANG_S = 1.0
# Of processor time without a next input, after which a child is given up.
_GIVE_UP_S = 5.0
# One input in so many is decoded under tracemalloc, which counts NumPy's arrays too and takes several times the time.
TRACED = 20
# Beside what the process has and four times a target's limit: for the allocator and whatever else the process does.
_SPARE_BYTES = 256 << 20
_RATIO = 4
CORPUS = Path(__file__).resolve().parents[2] / "tests" / "fuzz" / "corpus"
_COUNTER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that a decoder failed on. kind: `crash` or `hang`."""

    kind: str
    said: str
    data: bytes


@dataclass(slots=True)
class Tally:
    """What came of a target's inputs. peak_ratio: of the traced ones, most bytes allocated over the declared limit."""

    inputs: int = 0
    taken: int = 0
    peak_ratio: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return sum(failure.kind == kind for failure in self.failures)


def corpus_of(target: Target) -> list[Path]:
    """Files that the target was once wrong about, or valid inputs that cannot be drawn; their names say which."""
    return sorted((CORPUS / slug(target.name)).glob("*.bin"))


def slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def prepare(target: Target) -> Prepared:
    """With the corpus among the seeds, and what the decoder imports at its first use imported."""
    ready = target.prepare()
    seeds = [*ready.seeds, *(path.read_bytes() for path in corpus_of(target))]
    for data in seeds:
        with suppress(*target.refusals):
            ready.decode(data)
    return Prepared(ready.decode, seeds, ready.limit_bytes)


def made(target: Target, ready: Prepared, seed: int, number: int) -> bytes:
    """Input `number` of a run: the seeds themselves first."""
    if number < len(ready.seeds):
        return ready.seeds[number]
    rng = Random(f"{seed}/{target.name}/{number}")
    return target.mutation(rng.choice(ready.seeds), rng, ready.seeds)


def attempt(target: Target, ready: Prepared, data: bytes, tally: Tally, *, traced: bool) -> None:
    """Decodes one input, and counts what came of it."""
    if traced:
        tracemalloc.start()
    began = time.thread_time()
    try:
        outcome = ready.decode(data)
        tally.taken += outcome is not None and not isinstance(outcome, Rejection)
    except target.refusals:
        pass
    except Exception as error:  # noqa: BLE001 - whatever else a decoder raises is what is looked for
        tally.failures.append(Failure("crash", f"{type(error).__name__}: {error}"[:300], data))
    took_s = time.thread_time() - began
    if traced:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        tally.peak_ratio = max(tally.peak_ratio, peak / ready.limit_bytes)
        if peak > _RATIO * ready.limit_bytes:
            said = f"allocated {peak} bytes, {peak / ready.limit_bytes:.1f} times the limit of {ready.limit_bytes}"
            tally.failures.append(Failure("allocation", said, data))
    elif took_s > HANG_S:
        tally.failures.append(Failure("hang", f"{took_s:.1f} s", data))
    tally.inputs += 1


class Fuzzing:
    """So many inputs of a target, in as many children as it takes, one after another."""

    def __init__(self, target: Target, inputs: int, seed: int) -> None:
        self.target, self.tally = target, Tally()
        self._inputs, self._seed, self._ready = inputs, seed, prepare(target)
        # Where the child is, by its own word.
        self._shared = mmap.mmap(-1, _COUNTER_BYTES)
        self._seen, self._since_s = -1, 0.0
        self._start(0)

    def step(self) -> bool:
        """Takes in what the child says, and looks whether it still gets on; False when all is done."""
        try:
            while self.inbox.poll():
                said = self.inbox.recv()
                if said is None:
                    self._child.join()
                    return False
                _add(self.tally, said)
        except EOFError:
            return self._next("crash")
        at, used_s = self._number(), _cpu_s(self._child.pid)
        if at != self._seen:
            self._seen, self._since_s = at, used_s
        elif used_s - self._since_s > _GIVE_UP_S:
            self._child.kill()
            return self._next("hang")
        return True

    def _next(self, died: str) -> bool:
        """Notes the input that the child ended with, and goes on behind it."""
        self._child.join()
        at = self._number()
        how = f"killed after {_GIVE_UP_S:.0f} s" if died == "hang" else f"the process ended with {self._child.exitcode}"
        self.tally.failures.append(Failure(died, how, made(self.target, self._ready, self._seed, at)))
        self.tally.inputs += 1
        if at + 1 < self._inputs:
            self._start(at + 1)
            return True
        return False

    def _start(self, begin: int) -> None:
        context = multiprocessing.get_context("fork")
        self.inbox, theirs = context.Pipe(duplex=False)
        numbers = range(begin, self._inputs)
        given = (self.target, self._ready, numbers, self._seed, self._shared, theirs)
        self._child = context.Process(target=_work, args=given)
        self._child.start()
        theirs.close()

    def _number(self) -> int:
        return int.from_bytes(self._shared[:_COUNTER_BYTES], "little")


def fuzz(
    targets: Sequence[Target], inputs: Sequence[int], seed: int, at_once: int, progress: Callable[[str, int], None]
) -> list[Tally]:
    """So many inputs of each target, `at_once` targets at a time. progress: told a name and how many are done."""
    waiting = list(zip(targets, inputs, strict=True))[::-1]
    running: list[Fuzzing] = []
    tallies: dict[str, Tally] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(Fuzzing(*waiting.pop(), seed))
            tallies[running[-1].target.name] = running[-1].tally
        wait([one.inbox for one in running], 0.2)
        running = [one for one in running if one.step()]
        progress(running[0].target.name if running else "", sum(tally.inputs for tally in tallies.values()))
    return [tallies[target.name] for target in targets]


def _work(target: Target, ready: Prepared, numbers: range, seed: int, shared: mmap.mmap, out: Connection) -> None:
    """The child: says now and then, and at the end, what it found since it last said so."""
    _bound_memory(ready.limit_bytes)
    tally, told = Tally(), time.monotonic()
    for number in numbers:
        shared[:_COUNTER_BYTES] = number.to_bytes(_COUNTER_BYTES, "little")
        data = made(target, ready, seed, number)
        attempt(target, ready, data, tally, traced=number % TRACED == 0)
        if tally.failures or time.monotonic() - told > 0.5:
            out.send(tally)
            tally, told = Tally(), time.monotonic()
    out.send(tally)
    out.send(None)
    out.close()
    # What the parent has open, its console above all, is not flushed twice.
    os._exit(0)


def _bound_memory(limit_bytes: int) -> None:
    """What a decoder takes beyond this ends in a MemoryError, in whatever input."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    most = held + _RATIO * limit_bytes + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _add(total: Tally, part: Tally) -> None:
    total.inputs += part.inputs
    total.taken += part.taken
    total.peak_ratio = max(total.peak_ratio, part.peak_ratio)
    total.failures += part.failures


def _cpu_s(pid: int | None) -> float:
    """Processor time of a process; 0 where it is gone."""
    try:
        spent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(spent[11]) + int(spent[12])) / os.sysconf("SC_CLK_TCK")


def shares(targets: Sequence[Target], inputs: int) -> list[int]:
    """How many of a run's inputs each target gets; at least one, and together no fewer than all."""
    whole = sum(target.share for target in targets)
    return [max(1, -(-int(inputs * target.share) // int(whole))) for target in targets]
