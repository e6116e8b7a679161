"""Many devices at once: what each message costs the coordinator does not grow with the fleet."""

import sys
from pathlib import Path
from types import FrameType

from protocol.messages import Envelope, Hello, encode
from protocol.transport import Connected, Incoming
from tests.coordinator.simulation import TOPICS, Simulation, make_settings, write_bundle


def calls_of_hellos(fleet: Simulation, first: int, last: int) -> int:
    """How many functions the coordinator calls while devices first..last say hello."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    hellos = [
        Incoming(TOPICS.device(f"dev-{index}", "up"), encode(Envelope(1, 1, 0, Hello("test", "auto"))))
        for index in range(first, last)
    ]
    sys.setprofile(count)
    try:
        for hello in hellos:
            fleet.coordinator.handle(hello, fleet.now)
    finally:
        sys.setprofile(None)
    return calls


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
