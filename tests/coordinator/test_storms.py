"""Many devices at once: what each message costs the coordinator does not grow with the fleet."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from protocol.envelope import Envelope, encode
from protocol.messages import Hello, TaskReport
from protocol.transport import Connected, Incoming
from tests.coordinator.simulation import TOPICS, Simulation, make_settings, write_bundle


def calls_of_hellos(fleet: Simulation, first: int, last: int) -> int:
    """How many functions the coordinator calls while devices first..last say hello."""
    hellos = [
        Incoming(TOPICS.device(f"dev-{index}", "up"), encode(Envelope(1, 1, 0, Hello("test", "auto"))))
        for index in range(first, last)
    ]

    def handled() -> None:
        for hello in hellos:
            fleet.coordinator.handle(hello, fleet.now)

    return calls_of(handled)


def test_a_hello_costs_the_same_whether_ten_devices_are_there_or_a_thousand(tmp_path: Path) -> None:
    # No round can open before all are there, which is when looking at each of them at every hello would cost most.
    fleet = Simulation(tmp_path, make_settings(tmp_path, devices=2000), write_bundle(tmp_path / "bundle"))
    fleet.start()
    fleet.coordinator.handle(Connected(), fleet.now)
    few = calls_of_hellos(fleet, 0, 10)
    calls_of_hellos(fleet, 10, 990)
    many = calls_of_hellos(fleet, 990, 1000)
    fleet.store.close()
    assert many <= few * 1.1


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called by it."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def calls_of_answers(folder: Path, devices: int) -> int:
    """How many functions the coordinator calls for the answers of ten devices to their tasks, in a round of so many."""
    fleet = Simulation(folder, make_settings(folder, devices=devices), write_bundle(folder / "bundle"))
    fleet.start()
    coordinator = fleet.coordinator
    coordinator.handle(Connected(), fleet.now)
    calls_of_hellos(fleet, 0, devices)
    coordinator.advance(fleet.now)
    assert coordinator._course.round is not None
    taken = TaskReport(f"{fleet.store.run}/1", "accepted", 10, "none")
    answers = [Incoming(TOPICS.device(f"dev-{i}", "up"), encode(Envelope(1, 2, 0, taken))) for i in range(10)]

    def answered() -> None:
        for answer in answers:
            coordinator.handle(answer, fleet.now)
            coordinator.advance(fleet.now)

    calls = calls_of(answered)
    assert coordinator._course.round.count("invited") == devices - 10
    fleet.store.close()
    return calls


def test_an_answer_costs_the_same_in_a_round_of_twenty_devices_and_of_a_thousand(tmp_path: Path) -> None:
    few, many = calls_of_answers(tmp_path / "few", 20), calls_of_answers(tmp_path / "many", 1000)
    assert many <= few * 1.1
