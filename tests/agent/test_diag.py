"""edge-agent diag collect: everything that helps, and none of the secrets that lie everywhere around it."""

import gzip
import json
import os
import tarfile
from pathlib import Path

import pytest

from edge_agent.cli import main
from edge_agent.identity import store_identity
from protocol.enrolment import Issued
from tests.agent.outbox_states import configured, edge_agent
from tests.agent.test_cli import GOOD, write
from tests.tiny import write_shard

pytestmark = pytest.mark.real

CANARY = "CaNaRy"


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device with a canary in every place where a secret may be."""
    config = configured(tmp_path, (1, 2), text=GOOD + f"# password = {CANARY}1\n# url = mqtts://u:{CANARY}2@h\n")
    state = tmp_path / "state"
    (state / "identity").mkdir(mode=0o700)
    pending = state / "identity" / "pending.pem"
    pending.write_text(f"-----BEGIN PRIVATE KEY-----\n{CANARY}3\n-----END PRIVATE KEY-----\n")
    issued = Issued(f"{CANARY}4".encode(), (f"{CANARY}5".encode(),), "demo", "mqtts://h:1", 1.0, 4e9)
    store_identity(state, "device-01", "h:1", issued)
    pending.write_text(f"{CANARY}6")
    (tmp_path / "agent.d").mkdir()
    token = f"sft1{CANARY}7aaaaaaaaaaaaaaaaaaaaaaaaaaa".lower()
    (tmp_path / "agent.d" / "1.toml").write_text(f"# {token}\n# --token {CANARY}8\n[limits]\ndisk_mib = 64\n")
    write_shard(tmp_path / "shard.npz")
    for blob in (state / "blobs").iterdir():
        blob.write_bytes(f"{CANARY}9".encode())
    (state / "bundles").mkdir()
    (state / "bundles" / "x.bin").write_text(f"{CANARY}10")
    assert config.exists()
    return tmp_path


def contents(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        return {m.name: f.read() for m in opened.getmembers() for f in [opened.extractfile(m)] if f is not None}


def test_the_archive_has_what_helps_and_no_secret(device: Path) -> None:
    out = device / "diag.tar.gz"
    secret = {"SOME_TOKEN": f"{CANARY}11", "EDGE_AGENT_DATA_PATH": "shard.npz"}
    done = edge_agent("diag", "collect", "--config", str(device / "agent.toml"), "-o", str(out), **secret)
    assert done.returncode == 0, done.stderr
    files = contents(out)
    assert {"config.json", "status.json", "check.json", "versions.json", "outbox.json", "database.json"} <= set(files)
    assert {"environment.json", "log.txt", "folder.json", "config/agent.toml", "config/agent.d/1.toml"} <= set(files)
    assert CANARY.lower() not in gzip.decompress(out.read_bytes()).decode(errors="replace").lower()
    assert CANARY.lower() not in (done.stdout + done.stderr).lower()
    assert json.loads(files["environment.json"]) == {"EDGE_AGENT_DATA_PATH": "shard.npz"}
    assert [row["task"] for row in json.loads(files["outbox.json"])] == ["run/1", "run/2"]
    assert json.loads(files["database.json"])["quick_check"] == "ok"
    assert json.loads(files["config.json"])["limits.disk_mib"]["value"] == 64
    assert json.loads(files["check.json"])["checks"]["configuration"]["status"] == "ok"
    assert b"disk_mib = 64" in files["config/agent.d/1.toml"]
    assert out.stat().st_mode & 0o077 == 0


def test_a_device_whose_configuration_is_wrong_is_collected_too_and_its_password_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, GOOD.replace("127.0.0.1:1883", f"user:{CANARY}@host:1883"))
    out = tmp_path / "diag.tar.gz"
    assert main(["diag", "collect", "--config", str(config), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(out)
    assert json.loads(contents(out)["check.json"])["checks"]["configuration"]["status"] == "error"
    assert CANARY not in gzip.decompress(out.read_bytes()).decode(errors="replace")
    for command in (["config", "validate"], ["config", "show"], ["check"], ["run"], ["status"]):
        assert main([*command, "--config", str(config)]) == 3
        said = capsys.readouterr()
        assert CANARY not in said.out + said.err


def test_an_archive_is_never_written_over_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path)
    out = tmp_path / "diag.tar.gz"
    out.write_text("mine")
    assert main(["diag", "collect", "--config", str(config), "-o", str(out)]) == 3
    assert out.read_text() == "mine"
    assert os.fspath(out) in capsys.readouterr().err
