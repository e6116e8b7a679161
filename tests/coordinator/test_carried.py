"""Carried seats and the round table together, over any order of events: one seat a device, and every seat ends."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import carried as seats
from coordinator import round as rounds
from coordinator.carried import Carried, CarriedSeat
from coordinator.round import OPEN, Accepted, Close, Delivered, DeliveredLate, Event, Invite, Returned, Stopped, Tick

NAMES = ("a", "b", "c", "d", "e", "f")
DEADLINE_S, HORIZON_S, MOST_ROUNDS = 60.0, 500.0, 5


@dataclass
class Course:
    """What the coordinator does with both tables, and no more. delivered: how often each task was."""

    goal: int
    minimum: int
    wanted: int
    buffered: bool
    now: float = 0.0
    carried: Carried = field(default_factory=dict)
    folds: list[int] = field(default_factory=list)
    tasks: dict[tuple[int, str], int] = field(default_factory=dict)
    waiting: int = 0

    def __post_init__(self) -> None:
        self.open(1)

    def open(self, number: int) -> None:
        self.round = rounds.Round(
            *(number, self.goal, self.minimum, self.wanted, DEADLINE_S, self.now + DEADLINE_S),
            late=self.waiting,
            carry=True,
            buffered=self.buffered,
        )

    def happens(self, event: Event, line: list[str]) -> None:
        for device in seats.past(self.carried, self.now, self.round.number, MOST_ROUNDS):
            self.carried = seats.without(self.carried, device)
        late = None if isinstance(event, Tick) else self.carried.get(event.device)
        if late is not None:
            assert not isinstance(event, Tick)
            if isinstance(event, Delivered | Stopped):
                self.carried = seats.without(self.carried, event.device)
            if isinstance(event, Delivered):
                self.tasks[late.number, event.device] += 1
                self.waiting += 1
            event = DeliveredLate(event.device) if isinstance(event, Delivered) else Tick()
        elif isinstance(event, Delivered):
            if self.round.seats.get(event.device) not in OPEN:
                return
            self.tasks[self.round.number, event.device] += 1
            self.waiting += 1
        spare = (device for device in line if device not in self.carried)
        self.round, decisions = rounds.decide(self.round, event, self.now, spare, seats.busy(self.carried, self.now))
        for decision in decisions:
            match decision:
                case Invite(device):
                    assert device not in self.carried, "a device has one seat"
                    self.tasks[self.round.number, device] = 0
                case Close(_, withdrawn, left):
                    assert not withdrawn
                    self.close(left, line)
                case _:
                    pass
        if self.buffered:
            at_work = len(self.round.devices(*rounds.PENDING)) + seats.busy(self.carried, self.now)
            assert at_work <= self.wanted, "no more work at once than there are places"

    def close(self, left: tuple[str, ...], line: list[str]) -> None:
        assert self.waiting >= self.minimum
        assert self.waiting == self.round.gathered, "the fold takes what the table counted"
        self.folds.append(self.waiting)
        self.waiting = 0
        seat = CarriedSeat(self.round.number, self.round.deadline, self.now + HORIZON_S)
        self.carried = seats.carry(self.carried, left, seat, self.round.devices("late"), self.now)
        self.open(self.round.number + 1)
        self.happens(Tick(), line)


devices = st.sampled_from(NAMES)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Accepted, devices),
    st.builds(Stopped, devices),
    st.builds(Delivered, devices),
    st.builds(Delivered, devices),
    st.builds(Returned, devices),
    st.just(Tick()),
)
steps = st.lists(st.tuples(events, st.floats(0, 40), st.permutations(NAMES), st.integers(1, 6)), max_size=60)
courses = st.builds(
    lambda goal, less, more, buffered: Course(goal, max(1, goal - less), goal + more, buffered),
    *(st.integers(1, 4), st.integers(0, 3), st.integers(0, 2), st.booleans()),
)


@given(courses, steps)
@settings(deadline=None)
def test_a_device_has_one_seat_and_each_update_is_in_one_fold(
    course: Course, script: list[tuple[Event, float, list[str], int]]
) -> None:
    for event, pause, line, present in script:
        course.now += pause
        course.happens(event, line[:present])
        own = {d for d, phase in course.round.seats.items() if phase in OPEN}
        assert not own & course.carried.keys()
    assert all(count <= 1 for count in course.tasks.values())
    assert sum(course.folds) + course.waiting == sum(course.tasks.values())


@given(courses, steps)
@settings(deadline=None)
def test_every_carried_seat_ends(course: Course, script: list[tuple[Event, float, list[str], int]]) -> None:
    for event, pause, line, present in script:
        course.now += pause
        course.happens(event, line[:present])
    left = dict(course.carried)
    course.now += HORIZON_S
    course.happens(Tick(), [])
    assert not left.items() & course.carried.items()


@given(courses, steps)
@settings(deadline=None)
def test_whatever_happened_devices_that_deliver_make_versions(
    course: Course, script: list[tuple[Event, float, list[str], int]]
) -> None:
    for event, pause, line, present in script:
        course.now += pause
        course.happens(event, line[:present])
    before = len(course.folds)
    for _ in range(10):
        course.now = max(course.now, course.round.deadline)
        course.happens(Tick(), list(NAMES))
        for device in NAMES:
            course.happens(Delivered(device), list(NAMES))
    assert len(course.folds) > before
