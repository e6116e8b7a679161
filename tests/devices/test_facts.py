"""The demo reads what the coordinator prints, though neither imports the other: both ends of it, held together."""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import pytest

from coordinator import cli, events, reports
from devices import facts
from protocol.records import write_record
from tests.coordinator.simulation import Simulation

# One of each event, no field at its default, so that a field that is lost or renamed is missed.
SAID: tuple[events.Event, ...] = (
    events.Listening("mosquitto 2.0.11 (private)", "mqtt://127.0.0.1:1883", "run1"),
    events.DeviceSeen("device-01", 40, "numpy"),
    events.RoundOpened(3, 5),
    events.RoundCommitted(3, 4, 5, 0.75, 0.5, 1.25, 0.125, 1000, 2000),
    events.UpdateRejected("device-01", 3, "nonfinite", "NaN among the values"),
    events.Finished("target-accuracy", 4),
)
HEARD = {
    events.Listening: facts.Listening,
    events.DeviceSeen: facts.DeviceJoined,
    events.RoundOpened: facts.RoundOpened,
    events.RoundCommitted: facts.RoundCommitted,
    events.UpdateRejected: facts.UpdateRejected,
    events.Finished: facts.Finished,
}


def test_there_is_a_sample_of_every_event_and_the_demo_knows_them_all() -> None:
    assert {type(event) for event in SAID} == set(get_args(events.Event)) == set(HEARD)
    assert set(HEARD.values()) == set(get_args(facts.Event))


@pytest.mark.parametrize("event", SAID, ids=lambda event: type(event).__name__)
def test_the_demo_reads_every_field_it_knows_from_the_line_the_coordinator_prints(event: events.Event) -> None:
    said = write_record(event)
    heard = facts.parse_event(json.dumps(events.as_json(event)).encode())
    assert type(heard) is HEARD[type(event)]
    assert heard is not None
    read = write_record(heard)
    assert read == {name: said[name] for name in read}


def test_a_number_that_is_not_finite_reaches_the_demo_as_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    committed = next(event for event in SAID if isinstance(event, events.RoundCommitted))
    cli._print_json_event(dataclasses.replace(committed, loss=float("nan")))
    heard = facts.parse_event(capsys.readouterr().out.encode())
    assert isinstance(heard, facts.RoundCommitted)
    assert heard.loss is None


def test_the_demo_reads_the_devices_as_the_coordinators_command_prints_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = Simulation.make(tmp_path, count=1)
    fleet.finish()
    fleet.coordinator.stop()
    fleet.store.close()
    config = tmp_path / "coordinator.toml"
    config.write_text(
        'fleet = "test"\nbundle = "bundle"\nstate = "state"\n[rounds]\ncount = 1\ndevices = 3\ndeadline_s = 60\n'
        "[training]\nbatch_size = 4\nlearning_rate = 0.1\nlocal_steps = 2\n"
    )
    assert cli.main(["devices", "--config", str(config), "--json"]) == 0
    heard = facts.parse_devices(capsys.readouterr().out.encode())
    with reports.Reports(tmp_path / "state") as kept:
        said = [write_record(row) for row in kept.devices()]
    assert [row.device for row in heard] == ["dev-0", "dev-1", "dev-2"]
    assert all(row.examples and row.bytes_up and row.accepted == 1 for row in heard)
    for row, whole in zip(heard, said, strict=True):
        read = write_record(row)
        assert read == {name: whole[name] for name in read}
