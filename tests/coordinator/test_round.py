"""The round table: each row by example, and its laws over any order of events."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from coordinator.round import (
    OPEN,
    PENDING,
    Accepted,
    Close,
    Decision,
    Delivered,
    Event,
    Extend,
    Invite,
    Returned,
    Round,
    SendAgain,
    Stopped,
    Tick,
    decide,
    open_round,
)

NAMES = ("a", "b", "c", "d", "e", "f")


def opened(spare: str = "abc", goal: int = 3, minimum: int = 2, over_select: float = 1.0) -> Round:
    state, decisions = decide(open_round(1, goal, minimum, over_select, 60.0, 0.0), Tick(), 0.0, spare)
    assert all(isinstance(d, Invite) for d in decisions)
    return state


def test_the_first_in_line_are_invited_up_to_the_goal() -> None:
    state, decisions = decide(open_round(1, 2, 1, 1.0, 60.0, 0.0), Tick(), 0.0, "cab")
    assert decisions == (Invite("c"), Invite("a"))
    assert state.seats == {"c": "invited", "a": "invited"}


def test_over_selection_rounds_up() -> None:
    assert len(opened("abcdef", goal=3, over_select=1.3).seats) == 4
    assert len(opened("abcdef", goal=3, over_select=1.0).seats) == 3


def test_a_device_that_stops_is_replaced_at_once_by_one_without_a_seat() -> None:
    state, decisions = decide(opened(), Stopped("b"), 1.0, "abcd")
    assert decisions == (Invite("d"),)
    assert state.seats["b"] == "out"


def test_a_seat_that_could_not_be_filled_is_filled_when_a_device_comes() -> None:
    _, decisions = decide(opened("ab"), Returned("c"), 1.0, "abc")
    assert decisions == (Invite("c"),)


def test_it_closes_at_the_goal_and_withdraws_the_rest() -> None:
    state = opened("abcd", goal=2, over_select=2.0)
    state, decisions = decide(state, Delivered("d"), 1.0, ())
    assert decisions == ()
    state, decisions = decide(state, Delivered("a"), 2.0, ())
    assert decisions == (Close(("a", "d"), ("b", "c")),)
    assert decide(state, Delivered("b"), 3.0, "ef") == (state, ())


def test_a_deadline_with_the_minimum_closes_it() -> None:
    state = opened()
    for device in "ab":
        state, _ = decide(state, Delivered(device), 1.0, ())
    assert decide(state, Tick(), 59.9, ())[1] == ()
    assert decide(state, Tick(), 60.0, ())[1] == (Close(("a", "b"), ("c",)),)


def test_a_deadline_with_too_few_extends_and_asks_others_then_those_who_stopped() -> None:
    state = opened("abcd", goal=4, minimum=2)
    state, _ = decide(state, Delivered("a"), 1.0, ())
    state, _ = decide(state, Stopped("b"), 1.0, ())
    state, decisions = decide(state, Tick(), 60.0, "bef")
    assert decisions == (Extend(1, ("c", "d")), SendAgain("c"), SendAgain("d"), Invite("e"), Invite("f"), Invite("b"))
    assert state.deadline == 120.0
    state, decisions = decide(state, Delivered("c"), 61.0, ())
    assert decisions == (Close(("a", "c"), ("b", "d", "e", "f")),)


def test_when_nobody_is_left_the_minimum_is_enough() -> None:
    state = opened()
    state, _ = decide(state, Stopped("c"), 1.0, ())
    state, _ = decide(state, Delivered("a"), 1.0, ())
    assert decide(state, Delivered("b"), 2.0, ())[1] == (Close(("a", "b"), ()),)
    assert decide(state, Delivered("b"), 2.0, "d")[1] == (Invite("d"),)


def test_a_device_that_returns_is_sent_its_open_task_again_and_no_other() -> None:
    state = opened()
    assert decide(state, Returned("a"), 1.0, ())[1] == (SendAgain("a"),)
    state, _ = decide(state, Delivered("a"), 1.0, ())
    assert decide(state, Returned("a"), 2.0, ())[1] == ()


def test_what_means_nothing_changes_nothing() -> None:
    state = opened()
    for event in (Accepted("z"), Stopped("z"), Delivered("z"), Returned("z")):
        assert decide(state, event, 1.0, ()) == (state, ())


devices = st.sampled_from(NAMES)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Accepted, devices),
    st.builds(Stopped, devices),
    st.builds(Delivered, devices),
    st.builds(Returned, devices),
    st.just(Tick()),
)
steps = st.lists(st.tuples(events, st.floats(0, 50), st.permutations(NAMES), st.integers(0, 6)), max_size=40)
rounds = st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1.0, 1.3, 2.0])).filter(
    lambda r: r[1] <= r[0]
)


def play(
    rules: tuple[int, int, float], script: list[tuple[Event, float, list[str], int]]
) -> list[tuple[Round, Decision]]:
    """Every decision with the state it was made in; laws of single steps are checked on the way."""
    state, now = open_round(1, *rules, 60.0, 0.0), 0.0
    made: list[tuple[Round, Decision]] = []
    for event, pause, line, present in script:
        now += pause
        before = state
        state, decisions = decide(before, event, now, line[:present])
        assert decide(before, event, now, line[:present]) == (state, decisions), "a pure function"
        check_step(before, state, decisions, line[:present])
        made.extend((state, decision) for decision in decisions)
    return made


def check_step(before: Round, after: Round, decisions: tuple[Decision, ...], spare: list[str]) -> None:
    assert set(before.devices("done")) <= set(after.devices("done")), "nothing delivered is given back"
    invited = [d.device for d in decisions if isinstance(d, Invite)]
    assert set(invited) <= set(spare)
    assert len(set(invited)) == len(invited)
    assert all(before.seats.get(d) in (None, "out") for d in invited), "nobody is asked who has a task"
    if not before.closed:
        filled = len(after.devices("done", *PENDING))
        assert filled <= max(after.wanted, len(before.devices("done", *PENDING)) + 1)
    if before.closed:
        assert (after, decisions) == (before, ())


@given(rounds, steps)
def test_it_closes_once_with_at_least_the_minimum_and_exactly_what_was_delivered(
    rules: tuple[int, int, float], script: list[tuple[Event, float, list[str], int]]
) -> None:
    closes = [(state, d) for state, d in play(rules, script) if isinstance(d, Close)]
    assert len(closes) <= 1
    for state, close in closes:
        assert state.closed
        assert len(close.delivered) >= rules[1]
        assert close.delivered == state.devices("done")
        assert close.withdrawn == state.devices(*OPEN)


@given(rounds, steps)
def test_whatever_happened_enough_devices_that_deliver_bring_it_to_a_close(
    rules: tuple[int, int, float], script: list[tuple[Event, float, list[str], int]]
) -> None:
    state, now = open_round(1, *rules, 60.0, 0.0), 0.0
    for event, pause, line, present in script:
        now += pause
        state, _ = decide(state, event, now, line[:present])
    for _ in range(10):
        now = max(now, state.deadline)
        state, _ = decide(state, Tick(), now, NAMES)
        for device in state.devices(*OPEN):
            state, _ = decide(state, Delivered(device), now, NAMES)
    assert state.closed


@given(rounds, steps)
def test_a_round_taken_up_again_from_its_seats_decides_alike(
    rules: tuple[int, int, float], script: list[tuple[Event, float, list[str], int]]
) -> None:
    state, now = open_round(1, *rules, 60.0, 0.0), 0.0
    for event, pause, line, present in script:
        now += pause
        state, _ = decide(state, event, now, line[:present])
    again = open_round(1, *rules, 60.0, now, state.seats, state.extensions)
    same = replace(state, deadline=again.deadline, closed=False)
    assert decide(again, Tick(), now, NAMES) == decide(same, Tick(), now, NAMES)
