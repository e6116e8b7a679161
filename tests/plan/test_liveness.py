"""Peak memory: graphs small enough to say by hand what is alive when, and an arena whose blocks can be drawn."""

import pytest

from export.plan.arena import Arena
from export.plan.liveness import Use, peak

MIB = 1 << 20


def size_of(*uses: Use, held: frozenset[str] = frozenset({"x"}), **sizes: int) -> int:
    return peak(uses, sizes, held).size


def test_a_chain_needs_two_tensors_at_once() -> None:
    chain = [Use("Conv", ["x"], ["a"]), Use("Conv", ["a"], ["b"]), Use("Conv", ["b"], ["c"]), Use("Conv", ["c"], ["y"])]
    assert size_of(*chain, a=10, b=20, c=30, y=1) == 50


def test_what_is_read_late_lives_long() -> None:
    uses = [
        Use("Conv", ["x"], ["a"]),
        Use("Conv", ["a"], ["b"]),
        Use("Conv", ["b"], ["c"]),
        Use("Conv", ["a", "c"], ["y"]),
    ]
    assert size_of(*uses, a=10, b=20, c=30, y=5) == 60
    assert peak(uses, {"a": 10, "b": 20, "c": 30, "y": 5}, {"x"}).at == 2


def test_an_elementwise_result_takes_the_place_of_an_operand_that_ends() -> None:
    assert size_of(Use("Conv", ["x"], ["a"]), Use("Relu", ["a"], ["b"]), a=10, b=10) == 10
    assert (
        size_of(Use("Conv", ["x"], ["a"]), Use("Relu", ["a"], ["b"]), Use("Add", ["a", "b"], ["c"]), a=9, b=9, c=9)
        == 18
    )
    assert size_of(Use("Conv", ["x"], ["a"]), Use("Softmax", ["a"], ["b"]), a=10, b=10) == 20


def test_a_view_shares_memory_and_keeps_it_alive() -> None:
    uses = [
        Use("Conv", ["x"], ["a"]),
        Use("Reshape", ["a"], ["v"]),
        Use("Conv", ["x"], ["b"]),
        Use("Conv", ["v", "b"], ["c"]),
    ]
    assert size_of(*uses, a=10, v=10, b=20, c=1) == 31


def test_what_the_agent_holds_costs_the_runtime_nothing() -> None:
    uses = [Use("Conv", ["x"], ["a"]), Use("Conv", ["a"], ["gradient"])]
    assert size_of(*uses, held=frozenset({"x", "gradient"}), x=1000, a=10, gradient=500) == 10
    assert size_of(Use("Reshape", ["x"], ["v"]), x=1000, v=1000) == 0


def test_scratch_counts_while_its_operator_runs() -> None:
    assert size_of(Use("Conv", ["x"], ["a"], 100), Use("Conv", ["a"], ["b"]), a=10, b=20) == 110


def test_an_unread_result_is_let_go_at_once() -> None:
    assert size_of(Use("Split", ["x"], ["a", "b"]), Use("Conv", ["a"], ["c"]), a=10, b=50, c=10) == 60


def test_a_graph_of_nothing_needs_nothing() -> None:
    assert size_of() == 0


@pytest.mark.parametrize(("sizes", "resident"), [((1000,), 1000), ((1000, 500), 1024 + 500), ((3 * MIB,), 3 * MIB)])
def test_an_arena_touches_what_is_taken_at_multiples_of_256(sizes: tuple[int, ...], resident: int) -> None:
    arena = Arena()
    for i, size in enumerate(sizes):
        arena.take(str(i), size)
    assert arena.resident == resident


def test_an_arena_serves_again_what_was_freed() -> None:
    arena = Arena()
    for _ in range(10):
        arena.take("a", 100_000)
        arena.free("a")
    assert arena.resident == 100_000


def test_an_arena_joins_free_neighbours() -> None:
    arena = Arena()
    for name in "abc":
        arena.take(name, 256 << 10)
    for name in "acb":
        arena.free(name)
    arena.take("d", MIB)
    assert arena.resident == MIB


def test_a_block_that_is_too_large_by_less_than_half_is_given_whole() -> None:
    arena = Arena()
    arena.take("a", MIB)
    arena.free("a")
    arena.take("b", 700 << 10)
    arena.take("c", 100 << 10)
    assert arena.resident == MIB + (100 << 10)
