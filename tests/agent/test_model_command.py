"""`edge-agent model`, beside a running agent and after it: what it prints, changes and refuses."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.cli import main
from tests.agent.test_agent import DEVICE, ZEROS, Fleet
from tests.agent.test_trial import bad, begun, release, states, train
from tests.runtimes.test_reference import Wrong


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = begun(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def config(fleet: Fleet) -> list[str]:
    path = fleet.folder / "agent.toml"
    path.write_text(
        f"""
device = "{DEVICE}"
fleet = "test"
state = "state"
[broker]
url = "mqtt://127.0.0.1:1883"
[data]
path = "shard.npz"
"""
    )
    return ["--config", str(path)]


def facts(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    capsys.readouterr()
    assert main(["model", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_list_says_digest_state_age_and_size_of_every_slot(
    fleet: Fleet,
    config: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    release(fleet, 2)
    train(fleet, 2)
    listed = facts(capsys, "list", *config)
    assert listed["highest_version"] is None
    rows = listed["slots"]
    assert isinstance(rows, list)
    assert [(row["state"], row["current"]) for row in rows] == [("committed", True), ("committed", False)]
    assert all(row["bytes"] > 150_000 and re.match(r"20\d\d-", row["since"]) for row in rows)
    assert main(["model", "list", *config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["DIGEST", "VERSION", "STATE", "SINCE", "BYTES", "WHY"]
    assert [line.split()[2] for line in lines[1:]] == ["committed", "earlier"]


def test_show_has_the_facts_of_the_manifest_and_the_outcome_of_the_trial(
    fleet: Fleet,
    config: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (digest,) = [slot["digest"] for slot in facts(capsys, "list", *config)["slots"]]  # type: ignore[attr-defined]
    shown = facts(capsys, "show", digest[:6], *config)
    assert shown["state"] == "committed"
    assert shown["bundle"] == {
        "line": "tiny",
        "line_version": 1,
        "parameters": 8,
        "variants": ["full"],
        "backends": {"numpy": "numpy"},
        "record": True,
    }
    assert main(["model", "show", digest, *config]) == 0
    assert "backends    numpy (numpy)" in capsys.readouterr().out


def test_rollback_beside_a_running_agent_goes_back_and_the_bundle_is_not_taken_again_until_retry(
    fleet: Fleet,
    config: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    release(fleet, 2)
    assert train(fleet, 2) is None
    assert main(["model", "rollback", *config]) == 0
    assert "back on" in capsys.readouterr().out
    report = train(fleet, 3)
    assert report is not None
    assert report.reason == "trial"
    assert "by hand: rolled back with edge-agent model rollback" in report.detail
    assert main(["model", "rollback", *config]) == 2
    assert "no earlier bundle" in capsys.readouterr().err
    release(fleet, 1)
    assert train(fleet, 4) is None
    failed = [slot for slot in facts(capsys, "list", *config)["slots"] if slot["state"] == "failed"]  # type: ignore[attr-defined]
    assert main(["model", "retry", failed[0]["digest"], *config]) == 0
    release(fleet, 2)
    assert train(fleet, 5) is None
    assert states(fleet) == {1: "committed", 2: "committed"}


def test_a_bundle_that_was_off_its_record_is_compared_anew_after_retry(
    fleet: Fleet, config: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as wrong:
        bad(wrong, Wrong)
        release(fleet, 2)
        report = train(fleet, 2)
    assert report is not None
    assert ", parity: " in report.detail
    fleet.restart()
    (digest,) = [slot["digest"] for slot in facts(capsys, "list", *config)["slots"] if slot["state"] == "failed"]  # type: ignore[attr-defined]
    assert main(["model", "retry", digest, *config]) == 0
    assert train(fleet, 3) is None
    assert states(fleet) == {1: "committed", 2: "committed"}


def test_rollback_and_commit_end_a_trial_of_a_stopped_agent(
    fleet: Fleet,
    config: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_agent.agent.SLICE_S", 0.0)
    assert main(["model", "commit", *config]) == 2
    assert "no bundle is on trial" in capsys.readouterr().err
    for version, action, state in ((2, "rollback", "failed"), (3, "commit", "committed")):
        release(fleet, version)
        fleet.coordinator.say(fleet.coordinator.task(version, ZEROS, steps=9))
        fleet.until(lambda: fleet.agent.job.phase == "training")
        fleet.agent.stop()
        assert main(["model", action, *config]) == 0
        assert states(fleet)[version] == state
        fleet.restart()
    sent = len(fleet.coordinator.payloads)
    fleet.until(lambda: len(fleet.coordinator.payloads) > sent)


@pytest.mark.parametrize(
    ("action", "name", "says"),
    [
        ("show", "ffffffff", "no slot is called 'ffffffff'"),
        ("show", "f", "no slot is called 'f'"),
        ("retry", "", "only failed ones are tried again"),
        ("commit", "", "is committed and not on trial"),
    ],
)
def test_what_there_is_nothing_to_do_about_ends_with_2_and_says_why(
    fleet: Fleet,
    config: list[str],
    capsys: pytest.CaptureFixture[str],
    action: str,
    name: str,
    says: str,
) -> None:
    digest = facts(capsys, "list", *config)["slots"][0]["digest"]  # type: ignore[index]
    assert main(["model", action, name or digest, *config]) == 2
    assert says in capsys.readouterr().err


def test_a_device_without_a_state_or_a_bundle_has_nothing_to_list(
    fleet: Fleet,
    config: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for slot in facts(capsys, "list", *config)["slots"]:  # type: ignore[attr-defined]
        fleet.store.database.execute("DELETE FROM slot WHERE digest = ?", (bytes.fromhex(slot["digest"]),))
    fleet.store.database.commit()
    assert main(["model", "list", *config]) == 2
    assert "the coordinator's first task brings one" in capsys.readouterr().err
    (fleet.folder / "state").rename(fleet.folder / "gone")
    assert main(["model", "list", *config]) == 2
    assert "start one with edge-agent run" in capsys.readouterr().err
    assert not (fleet.folder / "state").exists(), "a look makes nothing"
    (fleet.folder / "gone").rename(fleet.folder / "state")


def test_a_damaged_database_is_said_to_be_one(
    fleet: Fleet,
    config: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    elsewhere = fleet.folder / "elsewhere"
    (elsewhere / "state").mkdir(parents=True)
    (elsewhere / "state" / "agent.sqlite").write_bytes(b"not a database at all" * 400)
    (fleet.folder / "agent.toml").rename(elsewhere / "agent.toml")
    assert main(["model", "list", "--config", str(elsewhere / "agent.toml")]) == 3
    assert "is damaged" in capsys.readouterr().err
