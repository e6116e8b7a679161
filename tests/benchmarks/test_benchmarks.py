"""Benchmarks: what they print, what a row holds, and that memory is the kernel's own account."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.federation import Measured, _dataset, _plan, _row
from benchmarks.harness import Row, options, publish
from benchmarks.memory import PeakSampler, pss_mib
from devices.datasets import DATA_VARIABLE
from devices.facts import RoundCommitted
from tests.waiting import until

ROWS: list[Row] = [
    {"agents": 2, "accuracy": 0.95, "codec": "all/float16"},
    {"agents": 5, "accuracy": None, "codec": "all/float16"},
]


def test_the_json_says_machine_versions_date_and_seed_beside_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    publish(ROWS, seed=7, as_json=True, title="What it costs", notes=["on digits"])
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"machine", "versions", "date", "seed", "notes", "rows"}
    assert said["rows"] == ROWS
    assert said["seed"] == 7
    assert said["machine"]["cores"] == os.cpu_count()
    assert {"python", "numpy"} <= set(said["versions"])


def test_the_table_has_every_row_and_note(capsys: pytest.CaptureFixture[str]) -> None:
    publish(ROWS, seed=7, as_json=False, title="What it costs", notes=["on digits"])
    said = capsys.readouterr().out
    for part in ("What it costs", "agents", "0.950", "None", "on digits", "seed 7"):
        assert part in said


def test_every_benchmark_takes_json_quick_and_a_seed() -> None:
    chosen = options("some").parse_args(["--json", "--quick", "--seed", "3"])
    assert (chosen.json, chosen.quick, chosen.seed) == (True, True, 3)


def test_a_row_has_the_documented_keys_and_medians_of_rounds() -> None:
    rounds = tuple(RoundCommitted(i, 2, float(i), 200, 400, i, 0.5 + i / 10, 1.0, 0.1 * i) for i in (1, 2, 3))
    row = _row(_plan("digits", 2, 3, "all/float16"), Measured(rounds, (), 50.0, 90.0, 80.0, "mosquitto"))
    assert {
        *("agents", "rounds", "overhead_s_per_round", "bytes_up_per_device_round", "bytes_down_per_device_round"),
        *("codec", "downlink", "bytes_down_per_device_last_round"),
        *("agent_idle_pss_mib", "agent_peak_pss_mib", "coordinator_pss_mib", "accuracy"),
    } <= set(row)
    assert (row["agents"], row["rounds"], row["seconds_per_round"], row["accuracy"]) == (2, 3, 2.0, 0.8)
    assert (row["bytes_up_per_device_round"], row["bytes_down_per_device_round"]) == (100, 200)


def test_where_hapt_is_not_at_hand_the_benchmark_runs_on_digits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    name, dataset, notes = _dataset(None)
    assert name == dataset.name == "digits"
    assert "hapt is not at hand" in notes[0]


def test_memory_is_read_of_a_living_process_and_of_no_other() -> None:
    mine = pss_mib(os.getpid())
    assert mine is not None
    assert mine > 1
    assert pss_mib(1 << 30) is None


def test_the_sampler_keeps_the_peak_of_each_process_it_can_see() -> None:
    with PeakSampler({"me": os.getpid(), "nobody": 1 << 30}) as sampler:
        until(lambda: sampler.peaks, "a first sample was taken")
    assert sampler.peaks["me"] > 1
    assert "nobody" not in sampler.peaks
