"""The fleet-coordinator command: what it prints, its exit codes, what it does not import, and how it ends."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coordinator.cli import main
from coordinator.schema import DATABASE
from protocol.mqtt import free_port
from tests.coordinator.simulation import Simulation
from tests.tiny import write_bundle, write_shard

CONFIG = """\
fleet = "test"
bundle = "bundle"
state = "state"
[broker]
url = "{url}"
port = {port}
[rounds]
count = 3
devices = 3
deadline_s = 60
[training]
batch_size = 4
learning_rate = 0.1
local_steps = 2
[evaluation]
data = "test.npz"
"""


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The configuration of a run that is over."""
    fleet = Simulation.make(tmp_path)
    fleet.finish()
    fleet.coordinator.stop()
    fleet.store.close()
    config = tmp_path / "coordinator.toml"
    config.write_text(CONFIG.format(url="auto", port=1883))
    return config


def ask(config: Path, *command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main([*command, "--config", str(config), "--json"]) == 0
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


def test_the_store_is_asked_by_command_in_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = ask(finished, "status", capsys=capsys)
    assert (status["version"], status["rounds"], status["running"]) == (3, 3, False)
    rounds = ask(finished, "rounds", capsys=capsys)["rounds"]
    assert isinstance(rounds, list)
    assert {
        "round",
        "version",
        "devices",
        "accuracy",
        "loss",
        "seconds",
        "overhead_s",
        "bytes_up",
        "bytes_down",
    } <= set(rounds[1])
    devices = ask(finished, "devices", capsys=capsys)["devices"]
    assert isinstance(devices, list)
    assert set(devices[0]) == {
        *("device", "present", "examples", "backend", "variant", "rounds", "accepted", "rejected"),
        *("bytes_up", "bytes_down", "codec", "bytes_today", "rests", "last_loss", "step_ms", "last_seen_s"),
        *("late", "discarded", "warning", "left_out"),
    }
    detail = ask(finished, "round", "2", capsys=capsys)
    assert isinstance(detail["devices"], list)
    assert [row["device"] for row in detail["devices"]] == ["dev-0", "dev-1", "dev-2"]


def test_costs_are_asked_for_in_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ask(finished, "costs", capsys=capsys)
    assert {"version", "models", "training", "bytes_up", "bytes_down"} <= set(found)
    assert isinstance(found["models"], list)
    assert [model["model"] for model in found["models"]] == ["dense"]


def test_what_codecs_will_cost_is_known_before_any_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "coordinator.toml"
    config.write_text(CONFIG.format(url="auto", port=1883) + "[limits]\ndevice_bytes_per_day = 3000000\n")
    write_bundle(tmp_path / "bundle")
    found = ask(
        config, "plan", "--codec", "all/float32", "--codec", "topk:0.5/ternary", "--devices", "6", capsys=capsys
    )
    assert (found["round_s"], found["round_s_is"], found["devices"]) == (60.0, "rounds.deadline_s, assumed", 6)
    rows = found["plan"]
    assert isinstance(rows, list)
    assert [row["codec"] for row in rows if row["variant"] == "full"] == ["all/float32", "topk:0.5/ternary"]
    dense, lean = (row for row in rows if row["variant"] == "full")
    assert (dense["ratio_to_dense"], dense["rounds_a_day"]) == (1.0, 720.0), "three of six in each of 1440 rounds"
    assert dense["bytes_a_day"] == round(720 * (dense["bytes_up"] + dense["bytes_down"]))
    assert lean["bytes_up"] < dense["bytes_up"]
    assert dense["link_s"] == pytest.approx((dense["bytes_up"] + dense["bytes_down"]) / 125_000)
    assert all(row["fits"] is (row["bytes_a_day"] <= 3_000_000) for row in rows)
    assert main(["plan", "--config", str(config), "--round-s", "3600"]) == 0
    shown = capsys.readouterr().out
    assert "topk:0.06/int4" in shown
    assert "rounds of 3600 s (given)" in shown


def test_what_was_measured_is_what_a_plan_goes_by(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(finished.parent / "other")
    finished.write_text(finished.read_text().replace('"bundle"', '"other"'))
    found = ask(finished, "plan", capsys=capsys)
    assert found["round_s_is"] == "measured"
    rows = found["plan"]
    assert isinstance(rows, list)
    assert all(row["fits"] is None for row in rows), "there is no budget"


def test_a_plan_of_what_cannot_be_names_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "coordinator.toml"
    config.write_text(CONFIG.format(url="auto", port=1883))
    write_bundle(tmp_path / "bundle")
    for wrong, said in (
        (["--codec", "zip"], "--codec: codec: 'zip' is not a codec"),
        (["--codec", "mask/int4"], "mask/int4 needs a mask"),
        (["--devices", "0"], "--devices: 0 must be at least 1"),
        (["--link-kbit", "-1"], "--link-kbit: -1.0 must be"),
        (["--round-s", "nan"], "--round-s: nan must be"),
    ):
        assert main(["plan", "--config", str(config), *wrong]) == 3
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [["status"], ["devices"], ["rounds"], ["round", "1"], ["costs"]])
def test_the_store_is_asked_by_command_in_tables(
    command: list[str], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--config", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "accuracy" in out or "dev-2" in out
    assert "gzip_bytes" in out or command != ["costs"]


def test_tables_show_figures_of_devices_apart_and_only_where_there_are_any(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seldom = ("device_mean", "personal_mean", "mixed_worst", "own_mean", "distance", "epoch", "members")

    def shown(*command: str) -> list[str]:
        assert main([*command, "--config", str(finished)]) == 0
        return capsys.readouterr().out.split()

    for command in (["rounds"], ["round", "1"], ["status"]):
        assert set(seldom).isdisjoint(shown(*command))
    with sqlite3.connect(finished.parent / "state" / DATABASE) as sql:
        sql.execute("INSERT INTO consensus VALUES (2, 1, 3, 0.0, 1, 2)")
        sql.execute("INSERT INTO own_held_out VALUES (2, 'dev-1', 10, 1.5, 0.0)")
    sql.close()
    for command in (["rounds"], ["round", "2"]):
        words = shown(*command)
        assert {"own_mean", "own_worst", "distance"} <= set(words)
        assert {"device_mean", "personal_mean", "mixed_worst"}.isdisjoint(words)
        assert words.index("bytes_up") < words.index("round", words.index("bytes_up")) < words.index("own_mean")


def test_a_model_is_exported_with_its_bytes_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from coordinator.next_model import first_model
    from coordinator.settings import load
    from coordinator.store import Store

    config = tmp_path / "coordinator.toml"
    config.write_text(CONFIG.format(url="auto", port=1883))
    bundle = write_bundle(tmp_path / "bundle")
    store = Store(tmp_path / "state", load(config).limits)
    first_model(store, bundle, load(config), None)
    store.close()
    out = tmp_path / "out.onnx"
    said = ask(config, "export-model", "--out", str(out), "--version", "0", capsys=capsys)
    assert said == {"version": 0, "path": str(out), "bytes": 32}
    assert np.array_equal(np.frombuffer(out.read_bytes(), "<f4"), np.zeros(8))
    assert main(["export-model", "--config", str(config), "--out", str(tmp_path / "no" / "where")]) == 3
    assert "--out" in capsys.readouterr().err


def test_exit_codes_say_what_is_wrong(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(finished)
    assert main(["round", "9", "--config", config]) == 2
    assert main(["export-model", "--config", config, "--out", "x", "--version", "9"]) == 2
    assert main(["status", "--config", str(tmp_path / "nowhere.toml")]) == 3
    assert "fleet-coordinator: " in capsys.readouterr().err
    for wrong in (["nonsense"], ["round", "x", "--config", config]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 3
    fresh = tmp_path / "fresh.toml"
    fresh.write_text(CONFIG.format(url="auto", port=1883).replace('"state"', '"none"'))
    assert main(["status", "--config", str(fresh)]) == 2


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "plan", "status", "devices", "rounds", "round", "export-model", "evaluate-model"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert "example: fleet-coordinator" in capsys.readouterr().out


def test_a_run_on_wrong_data_or_a_broken_bundle_ends_with_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "coordinator.toml"
    config.write_text(CONFIG.format(url="auto", port=1883))
    assert main(["run", "--config", str(config)]) == 3
    assert "manifest.json cannot be read" in capsys.readouterr().err
    write_bundle(tmp_path / "bundle")
    assert main(["run", "--config", str(config)]) == 3
    assert "evaluation.data: " in capsys.readouterr().err
    (tmp_path / "bundle" / "numpy" / "graph.bin").write_bytes(b"x")
    assert main(["run", "--config", str(config)]) == 3
    assert "truncated or altered" in capsys.readouterr().err


def test_the_daemon_imports_neither_torch_nor_onnx() -> None:
    program = """
import sys
import coordinator.cli, coordinator.process, edge_agent.runtimes.inference
from edge_agent.runtimes.onnx_session import import_onnxruntime
import_onnxruntime()
print([name for name in ("torch", "onnx", "onnxscript", "amqtt") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.real
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_daemon_says_where_it_listens_and_ends_cleanly_on_a_signal(number: int, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    write_shard(tmp_path / "test.npz")
    config = tmp_path / "coordinator.toml"
    config.write_text(CONFIG.format(url="embedded", port=free_port()))
    command = [sys.executable, "-m", "coordinator", "run", "--config", str(config), "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path.cwd(), env=os.environ.copy()
    ) as process:
        assert process.stdout is not None
        listening = json.loads(process.stdout.readline())
        assert listening["event"] == "listening"
        assert set(listening) == {"event", "broker", "url", "run"}
        process.send_signal(number)
        assert process.wait(timeout=20) == (0 if number == signal.SIGTERM else 130)
    broker = tmp_path / "state" / "broker"
    assert broker.is_dir()
