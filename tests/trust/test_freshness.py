"""What is of now, message by message: on devices, which know no time, and in the coordinator."""

from hypothesis import given
from hypothesis import strategies as st

from coordinator.freshness import MOST_HELLOS
from coordinator.freshness import Freshness as OfDevices
from edge_agent.freshness import Freshness
from protocol.envelope import Envelope
from protocol.errors import Rejection
from protocol.freshness import REMEMBERED, Window
from protocol.messages import (
    Body,
    CoordinatorState,
    DeviceState,
    Hello,
    Later,
    Welcome,
)

LATER = Later(bytes(32), 1.0)
INSTANCE = 7


def said(boot: int, sequence: int, body: Body = LATER) -> Envelope:
    return Envelope(boot, sequence, 0, body)


def welcome(boot: int, sequence: int, hello: int | None, instance: int | None = INSTANCE) -> Envelope:
    return said(boot, sequence, Welcome("r", 0.0, None, instance, hello))


def hello(boot: int, sequence: int, instance: int | None = INSTANCE) -> Envelope:
    return said(boot, sequence, Hello("0.2.0", "auto", instance=instance))


def refused(why: Rejection | None) -> bool:
    assert why is None or why.reason == "replay"
    return why is not None


@given(st.lists(st.integers(0, 2000)))
def test_no_number_is_new_twice(numbers: list[int]) -> None:
    window = Window()
    taken = [number for number in numbers if window.take(number)]
    assert len(taken) == len(set(taken))


@given(st.permutations(range(REMEMBERED)))
def test_messages_that_are_mixed_up_are_all_new_once(order: list[int]) -> None:
    window = Window()
    assert all(window.take(number) for number in order)


def test_a_window_keeps_few_numbers_however_many_come() -> None:
    window = Window()
    assert all(window.take(number) for number in range(10 * REMEMBERED))
    assert len(window._seen) == REMEMBERED
    assert not window.take(5)


def test_a_device_believes_a_start_that_answers_its_hello_and_no_other() -> None:
    device = Freshness(INSTANCE)
    assert refused(device.check(said(1, 5)))
    device.greeted(3)
    assert refused(device.check(welcome(1, 6, None))), "of an older coordinator"
    assert refused(device.check(welcome(1, 6, 3, instance=8))), "to another start of ours"
    assert refused(device.check(welcome(1, 6, 4))), "to a hello that was not said yet"
    assert not refused(device.check(welcome(1, 6, 3)))
    assert refused(device.check(welcome(1, 7, 3))), "answered before"
    assert refused(device.check(said(1, 5))), "of before the hello"
    assert not refused(device.check(said(1, 8)))
    assert refused(device.check(said(1, 8)))
    assert refused(device.check(said(2, 9))), "of a start that answered nothing"


def test_a_coordinator_that_counts_anew_is_believed_when_it_answers() -> None:
    device = Freshness(INSTANCE)
    for greeting, boot, first in ((1, 9, 5000), (2, 3, 4), (3, 3, 1)):
        device.greeted(greeting)
        assert not refused(device.check(welcome(boot, first, greeting)))
        assert not refused(device.check(said(boot, first + 1)))


def test_what_a_coordinator_says_to_everyone_is_heard_at_any_time() -> None:
    device = Freshness(INSTANCE)
    for _ in range(2):
        assert not refused(device.check(said(4, 2, CoordinatorState(4, accepting=True))))


def test_a_message_of_a_device_counts_once_and_not_when_its_start_is_over() -> None:
    ear = OfDevices()
    assert not refused(ear.check("pi", hello(1, 1)))
    assert not refused(ear.check("pi", said(1, 2)))
    assert refused(ear.check("pi", said(1, 2)))
    assert refused(ear.check("pi", hello(1, 1)))
    assert not refused(ear.check("pi", said(2, 1)))
    assert refused(ear.check("pi", said(0, 9)))
    assert not refused(ear.check("other", said(1, 2))), "of another device"


def test_a_device_whose_state_is_new_counts_anew_from_its_hello_on() -> None:
    ear = OfDevices()
    for sequence in (1, 2, 3):
        assert not refused(ear.check("pi", hello(5, sequence)))
    assert refused(ear.check("pi", said(1, 1)))
    assert not refused(ear.check("pi", hello(1, 2, instance=8)))
    assert not refused(ear.check("pi", said(1, 3)))
    assert refused(ear.check("pi", hello(5, 3))), "the start before"


def test_a_last_will_may_come_at_each_loss_but_not_of_an_earlier_start() -> None:
    ear, lost = OfDevices(), DeviceState("lost")
    assert not refused(ear.check("pi", hello(2, 1)))
    for _ in range(2):
        assert not refused(ear.check("pi", said(2, 0, lost)))
    assert refused(ear.check("pi", said(1, 0, lost)))
    assert not refused(ear.check("new", said(1, 0, lost)))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans(), st.integers(0, 9)), max_size=60))
def test_what_is_remembered_of_a_device_is_bounded(messages: list[tuple[int, int, bool, int]]) -> None:
    ear = OfDevices()
    for boot, sequence, greets, instance in messages:
        ear.check("pi", hello(boot, sequence, instance) if greets else said(boot, sequence))
    if messages:
        assert len(ear._of["pi"].boots) <= 4
        assert len(ear._of["pi"].hellos) <= MOST_HELLOS


def test_the_first_hello_of_a_device_is_no_new_one_after_any_number_of_its_restarts() -> None:
    ear = OfDevices()
    for start in range(1, 51):
        assert not refused(ear.check("pi", hello(start, 1, instance=start)))
        assert not refused(ear.check("pi", said(start, 2)))
    for start in range(1, 51):
        assert refused(ear.check("pi", hello(start, 1, instance=start)))
    assert refused(ear.check("pi", said(50, 2))), "the numbers of its present start are known still"


def test_starts_that_were_not_known_push_out_older_ones_and_not_the_present_one() -> None:
    ear = OfDevices()
    assert not refused(ear.check("pi", hello(9, 1, instance=9)))
    assert not refused(ear.check("pi", said(9, 2)))
    for start in range(1, 9):
        # As recorded before the coordinator's restart.
        assert not refused(ear.check("pi", hello(start, 1, instance=start)))
    assert refused(ear.check("pi", said(9, 2)))
    assert refused(ear.check("pi", said(1, 2)))


def test_a_last_will_of_a_device_whose_state_is_new_is_heard() -> None:
    ear, lost = OfDevices(), DeviceState("lost")
    for boot in (8, 1):
        assert not refused(ear.check("pi", hello(boot, 1, instance=boot)))
    assert not refused(ear.check("pi", said(1, 0, lost)))


def test_hellos_are_remembered_up_to_a_bound() -> None:
    ear = OfDevices()
    for start in range(MOST_HELLOS + 10):
        ear.check("pi", hello(start, 1, instance=start))
    assert len(ear._of["pi"].hellos) == MOST_HELLOS
