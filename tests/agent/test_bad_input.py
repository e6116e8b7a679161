"""What a device may be given, each by a real process: its own message, exit code and remedy."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent import self_check
from edge_agent.identity import store_identity
from edge_agent.self_check import CHECKS
from edge_agent.settings import load
from edge_agent.state_view import running
from edge_agent.trying import CHECKS as TRIED
from protocol.enrolment import Issued
from protocol.manifest import FORMAT, MANIFEST_FILE
from tests.agent.outbox_states import checks, configured, edge_agent, edge_agent_by_clock
from tests.agent.test_cli import GOOD, write
from tests.tiny import write_bundle, write_shard
from tests.waiting import until

pytestmark = [pytest.mark.real, pytest.mark.native]

NOW_S = time.time()
DAY_S = 86400.0
# Nothing listens there.
OFFLINE = GOOD.replace("1883", "1")
ENROLLED = OFFLINE.replace("mqtt://", "mqtts://")


def enrolled(state: Path, *, ends_s: float = NOW_S + 30 * DAY_S, device: str = "device-01") -> None:
    folder = state / "identity"
    folder.mkdir(mode=0o700, parents=True)
    (folder / "pending.pem").write_bytes(b"key")
    issued = Issued(b"certificate", (b"root",), "demo", "mqtts://h:1", NOW_S - 30 * DAY_S, ends_s)
    store_identity(state, device, "h:1", issued)


def check(config: Path) -> "tuple[int, Callable[[str], tuple[str, str, str]]]":
    """Exit code, and what each check says: its status, its words and its remedy."""
    done = edge_agent("check", "--config", str(config), "--json")
    found = checks(done)
    assert list(found) == ["configuration", *CHECKS, *TRIED]
    for name, one in found.items():
        assert one["status"] != "error" or one["remedy"], name
    return done.returncode, lambda name: (found[name]["status"], found[name]["said"], found[name]["remedy"])


def holding(state: Path, **of_bundle: bool) -> None:
    """A bundle on the device, as a task would have brought it."""
    write_bundle(state / "bundles" / "abc", **of_bundle)  # type: ignore[arg-type]


def test_a_device_with_all_it_needs_but_a_broker_has_one_error_and_ends_with_4(tmp_path: Path) -> None:
    config = configured(tmp_path, text=OFFLINE)
    write_shard(tmp_path / "shard.npz")
    holding(tmp_path / "state")
    before = (tmp_path / "state" / "agent.sqlite").read_bytes()
    code, of = check(config)
    assert code == 4
    assert of("broker")[:2] == ("error", "mqtt://127.0.0.1:1: Connection refused")
    assert of("data")[:2] == ("ok", "40 examples, labels in range, every value finite")
    assert of("backend")[1].startswith("numpy: ")
    assert of("step")[1].endswith("every gradient finite")
    assert of("parity")[0] == "warning"
    assert (tmp_path / "state" / "agent.sqlite").read_bytes() == before
    assert not list((tmp_path / "state").glob(".check*"))


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("check", 'device = "kitchen-pi"\n', "agent.toml: fleet: missing; set it there"),
        ("run", GOOD.replace('[data]\npath = "shard.npz"\n', ""), "agent.toml: data: missing; set it there"),
        ("status", GOOD.replace('path = "shard.npz"', ""), "data.path: give either path"),
        ("run", GOOD + "[limits]\ndisc_mib = 7\n", "limits.disc_mib: unknown key; did you mean limits.disk_mib?"),
    ],
)
def test_a_half_configured_device_is_told_what_to_set_and_ends_with_3(
    tmp_path: Path, command: str, text: str, said: str
) -> None:
    done = edge_agent(command, "--config", str(write(tmp_path, text)))
    assert done.returncode == 3
    assert said in done.stdout + done.stderr


def test_a_device_without_a_configuration_is_told_whether_it_would_do_at_all(tmp_path: Path) -> None:
    code, of = check(tmp_path / "agent.toml")
    assert code == 3
    assert "cannot be read" in of("configuration")[1]
    assert [of(name)[0] for name in ("clock", "runtime")] == ["ok", "ok"]
    assert of("memory")[1].endswith("MiB are available")
    assert of("data") == ("skipped", "not without a configuration", "")


def test_a_device_that_is_not_enrolled_ends_with_5_and_says_how_to_enrol(tmp_path: Path) -> None:
    config = configured(tmp_path, text=ENROLLED)
    code, of = check(config)
    assert code == 5
    assert "enrol it: edge-agent enroll --url" in of("identity")[1]
    done = edge_agent("run", "--config", str(config))
    assert (done.returncode, "enrol it: edge-agent enroll" in done.stderr) == (5, True)


def test_an_identity_of_another_device_is_a_configuration_to_mend(tmp_path: Path) -> None:
    config = configured(tmp_path, text=ENROLLED)
    enrolled(tmp_path / "state", device="device-02")
    code, of = check(config)
    assert code == 3
    assert "device-02 of demo" in of("identity")[1]


def test_a_key_that_others_may_read_is_named_with_the_remedy(tmp_path: Path) -> None:
    config = configured(tmp_path, text=ENROLLED)
    enrolled(tmp_path / "state")
    key = tmp_path / "state" / "identity" / "identity.pem"
    key.chmod(0o644)
    code, of = check(config)
    assert code == 3
    assert f"{key}: has mode 0644" in of("identity")[1]
    assert "chmod 600" in of("identity")[2]


def test_a_certificate_that_is_over_ends_with_5_and_the_agent_waits_to_be_enrolled_again(tmp_path: Path) -> None:
    config = configured(tmp_path, text=ENROLLED)
    enrolled(tmp_path / "state", ends_s=NOW_S - DAY_S)
    code, of = check(config)
    assert code == 5
    assert "the certificate of device-01 ended" in of("identity")[1]
    assert "fleet-coordinator token --device device-01" in of("identity")[2]
    with agent(config) as process:
        assert "the certificate of device-01 ended" in line_of(process, "certificate")


def test_a_clock_in_1970_is_named_before_what_follows_from_it(tmp_path: Path) -> None:
    config = configured(tmp_path, text=ENROLLED)
    enrolled(tmp_path / "state")
    done = edge_agent_by_clock(-time.time(), tmp_path, "check", "--config", str(config), "--json")
    assert done.returncode == 1
    assert checks(done)["clock"]["said"].startswith("it is 1970-01-01 00:0")
    assert "timedatectl set-ntp true" in checks(done)["clock"]["remedy"]


def test_a_clock_that_went_back_is_named_by_what_was_seen(tmp_path: Path) -> None:
    config = configured(tmp_path, text=ENROLLED)
    enrolled(tmp_path / "state")
    early = self_check.Given(config, load(config), tmp_path / "state", None, NOW_S - 60 * DAY_S, None)
    assert "and has been" in self_check.clock(early).said
    assert self_check.clock(replace(early, now_s=NOW_S)).status == "ok"


def test_a_missing_data_folder_ends_with_3_and_the_agent_waits_for_it(tmp_path: Path) -> None:
    text = OFFLINE.replace("shard.npz", "/no/such/disk/*.npz")
    config = configured(tmp_path, text=text)
    done = edge_agent("check", "--config", str(config), "--json")
    found = checks(done)
    assert found["data"]["said"] == "data.path: /no/such/disk: nothing is there"
    assert "is its disk mounted?" in found["data"]["remedy"]
    # The broker's is the first error.
    assert done.returncode == 4
    done = edge_agent("train", "--bundle", str(write_bundle(tmp_path / "b").root), "--data", "/no/such", "--steps", "1")
    assert done.returncode == 3
    with agent(config) as process:
        assert "/no/such/disk is not there" in line_of(process, "data.path")


def test_labels_that_the_model_cannot_have_are_found_before_a_task(tmp_path: Path) -> None:
    config = configured(tmp_path, text=OFFLINE)
    np.savez(tmp_path / "shard.npz", x=np.zeros((4, 3), np.float32), y=np.array([0, 1, 2, 1]))
    holding(tmp_path / "state")
    _, of = check(config)
    assert of("data")[0] == "error"
    assert "y[2] is 2, out of 0 to 1" in of("data")[1]
    assert of("step") == ("skipped", "no data to take it on", "")


def test_what_is_left_out_and_what_is_held_out_is_seen_before_a_task(tmp_path: Path) -> None:
    config = configured(tmp_path, text=OFFLINE.replace('"shard.npz"', '"shard.npz"\nhold_out_path = "held.npz"'))
    x = np.zeros((40, 3), np.float32)
    x[7, 1] = np.nan
    np.savez(tmp_path / "shard.npz", x=x, y=np.zeros(40, np.int64))
    holding(tmp_path / "state")
    _, of = check(config)
    assert of("data")[0] == "error"
    assert "held.npz" in of("data")[1]
    np.savez(tmp_path / "held.npz", x=x[:5], y=np.zeros(5, np.int64))
    _, of = check(config)
    assert of("data")[0] == "warning"
    assert of("data")[1].startswith("39 examples, and 5 held out, left out: labels=0 non_finite=1")


def test_a_bundle_of_a_newer_format_is_named_by_its_number(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "bundle").root
    manifest = json.loads((root / MANIFEST_FILE).read_text())
    (root / MANIFEST_FILE).write_text(json.dumps(manifest | {"format": FORMAT + 1, "colour": "red"}))
    for command in (["check"], ["train", "--data", "x.npz", "--steps", "1"]):
        done = edge_agent(*command, "--bundle", str(root))
        assert done.returncode == 3
        said = f"format: {FORMAT + 1} is not the format this version reads ({FORMAT}); upgrade what reads it"
        assert said in done.stderr


def test_a_second_agent_on_one_state_folder_ends_with_3_and_check_says_who_has_it(tmp_path: Path) -> None:
    config = configured(tmp_path, text=OFFLINE)
    with agent(config) as first:
        until(lambda: running(tmp_path / "state") is not None)
        second = edge_agent("run", "--config", str(config))
        assert second.returncode == 3
        assert "another edge-agent is using this state folder" in second.stderr
        line_of(first, "disconnected")
        until(lambda: "Connection refused" in edge_agent("status", "--config", str(config)).stdout)
        code, of = check(config)
        assert code == 4
        assert "not disturbed" in of("agent")[1]
        assert "the running agent is not connected: mqtt://127.0.0.1:1: Connection refused" in of("broker")[1]
        assert first.poll() is None


@pytest.mark.parametrize(
    ("module", "said", "remedy"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "was killed by SIGILL", "built for this processor"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL", "memory was used up"),
        ("raise ImportError('libonnx.so: wrong ELF class: ELFCLASS64')", "wrong ELF class", "install one for Python"),
        ("raise SystemError('nobody foresaw this')", "nobody foresaw this", "see what it says"),
    ],
)
def test_a_runtime_for_another_processor_is_a_finding_and_no_crash(
    tmp_path: Path, module: str, said: str, remedy: str
) -> None:
    config = configured(tmp_path, text=OFFLINE)
    fake = tmp_path / "wheels" / "onnxruntime"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text(module + "\n")
    done = edge_agent("check", "--config", str(config), "--json", PYTHONPATH=str(fake.parent))
    found = checks(done)["runtime"]
    assert found["status"] == "error"
    assert said in found["said"]
    assert remedy in found["remedy"]
    assert checks(done)["memory"]["status"] in ("ok", "warning")


class agent:  # noqa: N801  reads as a statement
    """An agent at work, ended at the end of the block."""

    def __init__(self, config: Path) -> None:
        self.config = config

    def __enter__(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edge_agent", "run", "--config", str(self.config)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


def line_of(process: "subprocess.Popen[str]", words: str) -> str:
    """The next line of a process's log with these words."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"ended without {words!r}")
