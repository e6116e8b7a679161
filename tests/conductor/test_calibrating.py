"""Calibration carried out, with an engine whose steps take what their quota makes of them."""

import json
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from devices.conductor.calibrating import Bench, Calibrated, calibrate
from devices.engines.engine import EngineError, Start
from devices.fleet.forecast import Machine
from tests.conductor.fake_engine import FakeEngine
from tests.conductor.plans import plan_of

FULL_SPEED_MS = 1.5
MORE = """
[[devices]]
board = "raspberry-pi-zero-2-w"
name = "zero"

[[devices]]
board = "raspberry-pi-5"
name = "given"
cores = 0.25
"""


@dataclass
class Timed(FakeEngine):
    """A step takes `tax` times as long as the quota alone would have it. together: how many kinds are timed at once."""

    tax: float = 1.4
    together: int = 2
    timed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._met = threading.Barrier(self.together)

    def run(self, start: Start, words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        cores = start.limits.cores
        if cores is None:
            return self._says(words, FULL_SPEED_MS)
        if start.device not in self.timed:
            self.timed.add(start.device)
            self._met.wait(20)
        return self._says(words, FULL_SPEED_MS / cores * self.tax)

    def _says(self, words: Sequence[str], ms: float) -> subprocess.CompletedProcess[bytes]:
        said = json.dumps({"mean_ms_per_step": ms, "cpu_ms_per_step": ms}).encode()
        return subprocess.CompletedProcess(tuple(words), 0, said, b"")


def calibrated(folder: Path, engine: FakeEngine) -> tuple[Calibrated, list[str]]:
    (folder / "bundle").mkdir()
    (folder / "shard.npz").write_bytes(b"examples")
    bench = Bench(engine, {"amd64": "image"}, folder / "devices", folder / "bundle", folder / "shard.npz")
    said: list[str] = []
    return calibrate(plan_of(folder, MORE), bench, Machine("amd64", 2, 8192, {}), said.append), said


def test_each_kind_of_board_has_a_corrected_quota_and_all_kinds_are_timed_at_once(tmp_path: Path) -> None:
    engine = Timed()
    found, said = calibrated(tmp_path, engine)
    assert found.shares.keys() == {"pi4-1", "pi4-2", "zero", "given"}
    assert found.shares["pi4-1"] is found.shares["pi4-2"]
    assert found.shares["given"].cores == 0.25
    for name in ("pi4-1", "zero"):
        calibration = found.shares[name].calibration
        assert calibration is not None
        assert abs(calibration.error) < 0.05
    assert found.shares["pi4-1"].cores > found.shares["zero"].cores
    assert len(engine.timed) == 2, "a device of its own for each kind"
    assert sorted(line.split(",")[0] for line in said[1:]) == ["raspberry-pi-4", "raspberry-pi-zero-2-w"]


def test_a_step_that_cannot_be_timed_ends_the_calibration_with_what_was_said(tmp_path: Path) -> None:
    class Failing(Timed):
        def run(self, start: Start, words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
            if start.limits.cores is None:
                return super().run(start, words, timeout_s)
            return subprocess.CompletedProcess(tuple(words), 137, b"", b"no memory left")

    with pytest.raises(EngineError, match=r"cannot be timed \(137\): no memory left"):
        calibrated(tmp_path, Failing())
