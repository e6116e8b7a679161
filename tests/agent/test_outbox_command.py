"""edge-agent outbox: what waits is shown, exported and offered; nothing is let go of but by purge, which is counted."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from edge_agent.cli import main
from edge_agent.outbox_command import PURGED
from edge_agent.state_view import kept
from edge_agent.status import RETRY_FILE, Standing, Status, StatusKeeper
from edge_agent.store import AgentStore
from tests.agent.outbox_states import configured
from tests.agent.test_store import LAYOUT

DAY_S = 86400.0


def asked(config: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["outbox", arguments[0], "--config", str(config), *arguments[1:]])
    said = capsys.readouterr()
    return code, said.out + said.err


def waiting(folder: Path) -> list[str]:
    found = kept(folder / "state")
    assert found is not None
    return [one.offer.task for one in found.outbox]


def age(folder: Path, round_: int, days: float) -> None:
    found = kept(folder / "state")
    assert found is not None
    for one in found.outbox:
        if one.offer.round == round_:
            path = folder / "state" / "blobs" / one.offer.blob.digest.hex()
            then = path.stat().st_mtime - days * DAY_S
            os.utime(path, (then, then))


def test_list_and_show_say_what_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, (1, 2))
    code, said = asked(config, capsys, "list", "--json")
    rows = json.loads(said)["updates"]
    assert code == 0
    assert [row["task"] for row in rows] == ["run/1", "run/2"]
    assert rows[0]["bytes"] == len("payload of 1")
    assert rows[0]["offered_s"] is None
    keeper = StatusKeeper(tmp_path / "state", Status(0, 1, "", "", "", "", 0.0))
    keeper.note(Standing(offered=5.0), rows[1]["since_s"] + 5.0, 5.0)
    code, said = asked(config, capsys, "show", "2", "--json")
    assert json.loads(said)["offered_s"] == pytest.approx(rows[1]["since_s"] + 5.0)
    assert json.loads(said)["codec"] == "all/float32"
    assert asked(config, capsys, "show", "3")[0] == 3
    assert "run/1" in asked(config, capsys, "list")[1]


def test_an_empty_outbox_is_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path)
    for arguments in (("list",), ("retry",), ("purge", "--yes")):
        assert asked(config, capsys, *arguments)[0] == 2


def test_export_copies_the_payload_and_what_is_known_of_it_for_this_user_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, (1,))
    out = tmp_path / "update.tar"
    assert asked(config, capsys, "export", "run/1", "-o", str(out))[0] == 0
    assert out.stat().st_mode & 0o077 == 0
    with tarfile.open(out) as archive:
        payload, offer = (archive.extractfile(name) for name in ("payload", "offer.json"))
        assert payload is not None
        assert offer is not None
        assert payload.read() == b"payload of 1"
        assert json.loads(offer.read())["round"] == 1
    assert asked(config, capsys, "export", "run/1", "-o", str(out))[0] == 3
    assert waiting(tmp_path) == ["run/1"]


def test_retry_asks_the_running_agent_and_says_when_a_stopped_one_will(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, (1,))
    code, said = asked(config, capsys, "retry")
    assert (code, "when the agent starts" in said) == (0, True)
    assert not (tmp_path / "state" / RETRY_FILE).exists()
    store = AgentStore(tmp_path / "state", 1 << 20)
    assert "within seconds" in asked(config, capsys, "retry")[1]
    assert (tmp_path / "state" / RETRY_FILE).exists()
    store.close()


def test_purge_is_asked_twice_and_counted_and_leaves_the_residual_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, (1, 2))
    code, said = asked(config, capsys, "purge")
    assert (code, "with --yes" in said) == (1, True)
    assert waiting(tmp_path) == ["run/1", "run/2"]
    age(tmp_path, 1, 40)
    code, said = asked(config, capsys, "purge", "--older", "30d", "--yes", "--json")
    assert code == 0
    assert '{"purged": ["run/1"]}' in said
    assert waiting(tmp_path) == ["run/2"]
    found = kept(tmp_path / "state")
    assert found is not None
    assert found.settled == {"rejected": {PURGED: 1}}
    store = AgentStore(tmp_path / "state", 1 << 20)
    assert not np.any(store.residual(LAYOUT, 2))
    assert len(list(store.blobs.root.iterdir())) == 1
    store.close()


def test_purge_leaves_what_a_running_agent_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, (1,))
    store = AgentStore(tmp_path / "state", 1 << 20)
    code, said = asked(config, capsys, "purge", "--yes")
    assert (code, "another edge-agent is using this state folder" in said) == (3, True)
    assert len(store.outbox()) == 1
    store.close()


@pytest.mark.parametrize("text", ["", "30", "d", "-3d", "3w", "1.5h"])
def test_an_age_that_cannot_be_read_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    config = configured(tmp_path, (1,))
    assert asked(config, capsys, "purge", f"--older={text}", "--yes")[0] == 3
    assert waiting(tmp_path) == ["run/1"]


def test_what_asks_for_a_retry_follows_no_link_out_of_the_state_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, state = configured(tmp_path, (1,)), tmp_path / "state"
    (state / RETRY_FILE).symlink_to(tmp_path / "victim")
    store = AgentStore(state, 1 << 20)
    assert asked(config, capsys, "retry")[0] == 1
    assert not (tmp_path / "victim").exists()
    store.close()
