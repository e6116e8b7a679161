"""What is fuzzed: a decoder, what it may be given, what it may say no with, and what it may allocate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.fuzzing.bytes_mutations import Mutation, mutate

Decode = Callable[[bytes], object]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A target, ready: its decoder, valid inputs to start from, and what it declares that it may take, in bytes."""

    decode: Decode
    seeds: Sequence[bytes]
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """prepare: called once a process. refusals: exceptions that say no; a Rejection that is returned says no as well,
    and anything else is a crash. limit: in words, what `limit_bytes` is. share: of a run's inputs, against the others'.
    """

    name: str
    prepare: Callable[[], Prepared]
    limit: str
    refusals: tuple[type[Exception], ...] = ()
    mutation: Mutation = mutate
    share: float = 1.0
