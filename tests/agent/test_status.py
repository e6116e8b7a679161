"""The status record, how rarely it is written, and edge-agent status, which only reads."""

import json
import os
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_agent.cli import main
from edge_agent.daemon import LONGEST_WAIT_S, RETRY_SEEN_S, _loop
from edge_agent.findings import exit_code
from edge_agent.job import Job
from edge_agent.self_check import Given, broker, every_check, identity
from edge_agent.settings import load
from edge_agent.state_view import closed, kept, running, soundness
from edge_agent.status import (
    FILE,
    PAGE_BYTES,
    RARELY_S,
    RETRY_FILE,
    SOON_S,
    Gossip,
    Journal,
    Standing,
    Status,
    StatusKeeper,
    Verdict,
    read_status,
)
from edge_agent.store import AgentStore
from protocol.disk import LocalDisk
from protocol.messages import Receipt
from tests.agent.outbox_states import configured
from tests.agent.test_agent import ZEROS, Fleet, fleet  # noqa: F401  a fixture
from tests.agent.test_cli import GOOD

FIRST = Status(0, 3, "0.1", "device-01", "demo", "mqtt://127.0.0.1:1883", started_s=1000.0)


class Counting(LocalDisk):
    """Counts what is written, and may refuse it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.full = False

    def write_at(self, path: Path, data: bytes, start: int, size: int) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.writes += 1
        super().write_at(path, data, start, size)


def test_what_changes_all_the_time_is_written_rarely_and_the_rest_soon(tmp_path: Path) -> None:
    disk = Counting()
    keeper = StatusKeeper(tmp_path, FIRST, disk)
    standing = Standing(connected=True, phase="training", task="r/1", total=100_000)
    for second in range(600):
        keeper.note(replace(standing, done=second, heard=float(second)), 1000.0 + second, float(second))
    assert disk.writes <= 2 + 600 / RARELY_S
    said = read_status(tmp_path)
    assert said is not None
    assert 600 - RARELY_S <= said.done < 600
    assert (said.connected, said.task, said.pid) == (True, "r/1", os.getpid())
    before = disk.writes
    for second in range(60):
        keeper.note(replace(standing, done=600, connected=second % 2 == 0), 1600.0 + second, 600.0 + second)
    assert disk.writes - before <= 1 + 60 / SOON_S


def test_the_loop_is_woken_for_what_waits_to_be_written_and_for_nothing_else(tmp_path: Path) -> None:
    keeper = StatusKeeper(tmp_path, FIRST)
    keeper.note(Standing(), 1000.0, 0.0)
    assert keeper.wait_s(0.0) == float("inf")
    keeper.note(Standing(connected=True), 1001.0, 1.0)
    assert keeper.wait_s(1.0) == SOON_S - 1.0
    keeper.note(Standing(connected=True), 1005.0, SOON_S)
    assert keeper.wait_s(SOON_S) == float("inf")
    said = read_status(tmp_path)
    assert said is not None
    assert said.connected


def test_the_record_is_one_page_that_is_overwritten_whatever_the_words(tmp_path: Path) -> None:
    journal = Journal(why_not="x" * 100_000)
    journal.reported("r/1", "refused", "data", "y" * 100_000)
    journal.settled(Receipt(b"d" * 32, "r/2", "rejected", "norm", "z" * 100_000))
    keeper = StatusKeeper(tmp_path, FIRST)
    keeper.note(journal.standing(False, Job(), None, 0, None), 1000.0, 0.0)
    assert (tmp_path / FILE).stat().st_size == PAGE_BYTES
    said = read_status(tmp_path)
    assert said is not None
    assert said.refused is not None
    assert said.refused.reason == "data"


def test_a_disk_that_does_not_take_it_stops_nobody(tmp_path: Path) -> None:
    disk = Counting()
    disk.full = True
    keeper = StatusKeeper(tmp_path, FIRST, disk)
    keeper.note(Standing(connected=True), 1000.0, 0.0)
    disk.full = False
    keeper.note(Standing(), 1010.0, 10.0)
    assert disk.writes == 1


def test_what_became_of_updates_outlives_the_process(tmp_path: Path) -> None:
    keeper = StatusKeeper(tmp_path, FIRST)
    keeper.note(Standing(rejected=Verdict("r/1", "norm", "too far")), 1000.0, 0.0)
    keeper.end(1001.0, 1.0)
    keeper = StatusKeeper(tmp_path, replace(FIRST, boot=4))
    keeper.note(Standing(connected=True), 2000.0, 0.0)
    said = read_status(tmp_path)
    assert said is not None
    assert said.rejected == Verdict("r/1", "norm", "too far", 1000.0)
    assert (said.boot, said.stopped) == (4, False)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"pid": "x"}', b"[" * 60_000, b"\xff"])
def test_a_record_that_is_half_written_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    assert read_status(tmp_path) is None


def test_an_agent_tells_phase_task_steps_and_what_became_of_its_updates(fleet: Fleet) -> None:  # noqa: F811
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS, steps=5))
    seen: list[Standing] = []

    def settled() -> bool:
        seen.append(fleet.agent.standing())
        return bool(fleet.coordinator.payloads) and not fleet.store.outbox()

    fleet.until(settled)
    assert {one.phase for one in seen} >= {"idle", "fetching"}
    last = fleet.agent.standing()
    assert last.connected
    assert last.accepted is not None
    assert last.accepted.task.endswith("/1")
    assert last.heard is not None
    assert last.offered is not None
    fleet.coordinator.reject = "norm"
    fleet.coordinator.say(fleet.coordinator.task(2, ZEROS))
    fleet.until(lambda: fleet.agent.standing().rejected is not None)


def test_whoever_holds_the_lock_is_found_without_taking_it(tmp_path: Path) -> None:
    assert running(tmp_path) is None
    store = AgentStore(tmp_path, 1 << 20)
    assert running(tmp_path) in (os.getpid(), 0)
    store.close()
    assert running(tmp_path) is None


def test_status_of_a_stopped_agent_says_what_waits_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, (1, 2))
    before = sorted(path.name for path in (tmp_path / "state").rglob("*"))
    assert main(["status", "--config", str(config), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["running"], said["connected"], said["outbox"], said["outbox_bytes"]) == (False, False, 2, 24)
    assert said["certificate"] == "not needed"
    assert main(["status", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "does not run" in out
    assert "2 updates, 24 bytes" in out
    assert [name for name in sorted(path.name for path in (tmp_path / "state").rglob("*")) if "-" not in name] == before


def test_status_of_a_running_agent_follows_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path)
    store = AgentStore(tmp_path / "state", 1 << 20)
    keeper = StatusKeeper(tmp_path / "state", FIRST)
    keeper.note(Standing(why_not="mqtt://127.0.0.1:1883: refused"), 1000.0, 0.0)
    assert main(["status", "--config", str(config)]) == 4
    assert "not connected to mqtt://127.0.0.1:1883: mqtt://127.0.0.1:1883: refused" in capsys.readouterr().out
    keeper.note(Standing(connected=True), 1010.0, 10.0)
    assert main(["status", "--config", str(config)]) == 0
    store.close()


@pytest.mark.parametrize(
    ("gossip", "line"),
    [
        (Gossip(why="it has no task yet"), "waits: it has no task yet"),
        (Gossip(1, 4, 4, 0.25), "epoch 1, exchange 4, 0.25 from its neighbours"),
        (
            Gossip(1, 4, 4, 0.25, why="no task in hand"),
            "epoch 1, exchange 4, 0.25 from its neighbours, no task in hand",
        ),
        (
            Gossip(2, 1, 9, 0.5, ("desk", "shed"), refused=3),
            "epoch 2, exchange 9, 0.5 from its neighbours, waits for desk, shed, 3 messages refused",
        ),
    ],
)
def test_status_says_how_far_a_device_without_a_hub_is_and_whom_it_waits_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gossip: Gossip, line: str
) -> None:
    config = configured(tmp_path)
    StatusKeeper(tmp_path / "state", FIRST).note(Standing(gossip=gossip), 1000.0, 0.0)
    main(["status", "--config", str(config)])
    assert f"gossip         {line}\n" in capsys.readouterr().out
    main(["status", "--config", str(config), "--json"])
    assert json.loads(capsys.readouterr().out)["gossip"]["waits_for"] == list(gossip.waits_for)


def test_status_of_a_device_that_is_not_enrolled_ends_with_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, text=GOOD.replace("mqtt://", "mqtts://"))
    assert main(["status", "--config", str(config), "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["certificate"] == "none"


def test_status_of_a_device_whose_certificate_is_over_ends_with_5_unless_the_broker_thinks_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.identity.load_identity", lambda _: SimpleNamespace(ends_s=1000.0))
    config = configured(tmp_path, text=GOOD.replace("mqtt://", "mqtts://"))
    store = AgentStore(tmp_path / "state", 1 << 20)
    keeper = StatusKeeper(tmp_path / "state", FIRST)
    keeper.note(Standing(why_not="certificate expired"), 1000.0, 0.0)
    assert main(["status", "--config", str(config), "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["certificate"] == "expired"
    keeper.note(Standing(connected=True), 1010.0, 10.0)
    assert main(["status", "--config", str(config)]) == 0
    store.close()


def test_an_agent_that_has_just_started_is_asked_again_and_one_that_has_not_is_at_fault(tmp_path: Path) -> None:
    settings = load(configured(tmp_path))
    for after_s, found in ((2.0, ("warning", 0)), (60.0, ("error", 4))):
        given = Given(tmp_path / "agent.toml", settings, tmp_path, 7, FIRST.started_s + after_s, FIRST)
        said = broker(given)
        assert (said.status, exit_code({"broker": said})) == found


def test_without_an_identity_the_broker_is_not_tried_and_only_the_identity_is_at_fault(tmp_path: Path) -> None:
    settings = load(configured(tmp_path, text=GOOD.replace("mqtt://", "mqtts://")))
    given = Given(tmp_path / "agent.toml", settings, tmp_path / "state", None, 2e9, None)
    assert broker(given).status == "skipped"
    assert identity(given).exit_code == 5


def test_a_damaged_store_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path)
    (tmp_path / "state" / "agent.sqlite").write_bytes(b"no database" * 100)
    assert main(["status", "--config", str(config)]) == 3
    assert "agent.sqlite: is damaged" in capsys.readouterr().err


def test_a_store_is_read_beside_a_writer_and_on_a_folder_that_takes_nothing(tmp_path: Path) -> None:
    configured(tmp_path, (1,))
    state = tmp_path / "state"
    store = AgentStore(state, 1 << 20)
    found = kept(state)
    assert found is not None
    assert len(found.outbox) == 1
    store.close()
    assert soundness(state)["quick_check"] == "ok"
    assert closed(state) == ""
    assert closed(tmp_path / "nowhere") == ""
    with sqlite3.connect(state / "agent.sqlite") as sql:
        sql.execute("DELETE FROM meta")
    sql.close()
    assert soundness(state)["rows"] == {"meta": 0, "task": 0, "outbox": 1, "residual": 0, "settled": 0}


def test_a_folder_that_is_anothers_is_said_to_be_so_and_not_to_be_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, (1,))
    # As for whoever is neither its owner nor root.
    monkeypatch.setattr(os, "access", lambda *_: False)
    for command in (["status"], ["outbox", "list"]):
        assert main([*command, "--config", str(config)]) == 1
        assert "who may not use it; do this as the user that the agent runs as" in capsys.readouterr().err
    assert every_check(config)["state folder"].status == "error"


def test_an_agent_is_asked_to_offer_once(tmp_path: Path) -> None:
    keeper = StatusKeeper(tmp_path, FIRST)
    assert not keeper.asked_to_retry()
    (tmp_path / RETRY_FILE).touch()
    assert keeper.asked_to_retry()
    assert not keeper.asked_to_retry()


class Idle:
    """An agent that has nothing to do, with updates to offer or without, and its link: they end after one turn."""

    status = ""

    def __init__(self, *, offers: bool) -> None:
        self.offers, self.waits = offers, [0.0]
        self.number, self.waiting = None, False

    def advance(self, now: float) -> float:
        return 1000.0

    def standing(self) -> Standing:
        return Standing()

    def poll(self, timeout_s: float) -> None:
        self.waits.append(timeout_s)

    def received(self) -> bool:
        return self.waits[-1] > 0.0


def test_an_agent_looks_for_whoever_asks_within_seconds_if_it_has_something_to_offer(tmp_path: Path) -> None:
    for offers, expected in ((True, RETRY_SEEN_S), (False, LONGEST_WAIT_S)):
        idle, keeper = Idle(offers=offers), StatusKeeper(tmp_path, FIRST)
        # What it is about is written already.
        keeper.note(idle.standing(), 0.0, float("inf"))
        _loop(idle, idle, idle, status=keeper)  # type: ignore[arg-type]
        assert idle.waits[-1] == expected
