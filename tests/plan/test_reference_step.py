"""The emulation's reference step is counted as a plan counts it, so that a board's own calibration prices the same."""

import dataclasses
from pathlib import Path

import pytest

from devices.fleet.reference import BACKEND, BATCH, MODEL, STEP_WORK, step_from_profile
from export import cli
from export.plan.prediction import Wanted, predict
from protocol.bundle import open_bundle
from tests.plan.profiles import PROFILE

ROOT = Path(__file__).parents[2]


def test_the_reference_steps_work_is_what_a_plan_counts(tmp_path: Path) -> None:
    assert cli.main([str(ROOT / MODEL), "--out", str(tmp_path / "bundle"), "--backends", BACKEND]) == 0
    bundle, wanted = open_bundle(tmp_path / "bundle"), Wanted(batch=BATCH, backend=BACKEND)
    counted = {}
    for unit in PROFILE.seconds:
        alone = dataclasses.replace(PROFILE, seconds={u: float(u == unit) for u in PROFILE.seconds})
        counted[unit] = predict(bundle, alone, wanted).pace.step_s
    assert {unit: count for unit, count in counted.items() if count} == pytest.approx(dict(STEP_WORK))
    predicted_ms, how = step_from_profile(PROFILE)
    assert predicted_ms == pytest.approx(predict(bundle, PROFILE, wanted).pace.step_s * 1e3, abs=0.01)
    assert how.startswith(f"predicted from edge-agent calibrate on {PROFILE.name}")
