"""fleet-export plan: figures that can be worked out, figures that are measured, what is refused, and without torch."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.bundles import data_beside
from benchmarks.plan import compare, notes
from edge_agent.assets import UNUSED_ROLES
from export import cli
from export.plan import footprint
from export.plan.command import THIS, device_of, facts
from export.plan.pace import priced
from export.plan.prediction import Wanted, predict
from protocol.bundle import Bundle
from protocol.errors import ConfigurationError
from protocol.profile import format_profile
from sparse.codecs import max_update_bytes, parse_codec
from tests.plan.profiles import PROFILE

ROOT = Path(__file__).parents[2]
Zoo = Callable[[str], Bundle]
MODEL = "mlp_classification"


@pytest.fixture
def kitchen(tmp_path: Path) -> str:
    path = tmp_path / "kitchen.json"
    path.write_text(format_profile(PROFILE))
    return str(path)


def test_time_and_memory_add_up_from_their_parts(zoo: Zoo) -> None:
    plan = predict(zoo(MODEL), PROFILE, Wanted(batch=4, steps=10))
    pace, memory = plan.pace, plan.memory
    assert pace.step_s == pytest.approx(pace.graph_s + pace.update_s + pace.call_s)
    assert plan.round_s == pytest.approx(10 * pace.step_s)
    assert pace.graph_s == pytest.approx(sum(group.seconds for group in pace.groups))
    assert [g.seconds for g in pace.groups] == sorted((g.seconds for g in pace.groups), reverse=True)
    assert pace.call_s == 1e-4
    assert pace.update_s == pytest.approx(1e-9 * zoo(MODEL).manifest.parameters)
    assert memory.idle == 64 << 20
    assert memory.graph == 1024 * plan.nodes
    assert memory.alive <= memory.tensors
    assert (pace.unknown, pace.guessed) == (0, ())


def test_a_larger_batch_takes_more_of_both(zoo: Zoo) -> None:
    few, many = (predict(zoo("cnn_with_batch_norm"), PROFILE, Wanted(batch=batch)) for batch in (2, 64))
    assert many.pace.graph_s > few.pace.graph_s
    assert many.memory.tensors > 8 * few.memory.tensors
    assert many.wire == few.wire


def test_bytes_are_those_of_files_model_and_codec(zoo: Zoo) -> None:
    bundle = zoo(MODEL)
    manifest, n = bundle.manifest, bundle.manifest.parameters
    dense = predict(bundle, PROFILE, Wanted()).wire
    sparse = predict(bundle, PROFILE, Wanted(codec="topk:0.05/float16")).wire
    assert dense.model == 4 * manifest.total
    assert dense.update == dense.most == max_update_bytes(n, manifest.buffers, parse_codec("all/float32"))
    assert sparse.update <= sparse.most < dense.update
    assert dense.bundle < sum(entry.size for entry in manifest.files)
    held = predict(bundle, PROFILE, Wanted(examples=1000)).memory
    assert held.data == 1000 * held.batch / 32


def test_adamw_takes_two_vectors_more(zoo: Zoo) -> None:
    sgd, adamw = (predict(zoo(MODEL), PROFILE, Wanted(optimizer=name)).memory for name in ("sgd", "adamw"))
    assert adamw.vectors - sgd.vectors == 2 * 4 * zoo(MODEL).manifest.parameters


def test_files_that_agents_leave_are_the_same_to_both() -> None:
    assert footprint.UNUSED_ROLES == UNUSED_ROLES


@pytest.mark.slow
def test_a_plan_for_this_machine_has_the_right_order_of_magnitude(zoo: Zoo) -> None:
    # What a busy machine may be off; benchmarks.plan says how near predictions are on a quiet one.
    bundle, batch = zoo("cnn_with_batch_norm"), 8
    _data(bundle, data_beside(bundle.root), batch)
    row = compare("cnn", bundle, device_of(THIS), batch)
    assert 0.25 < row["time_ratio"] < 4
    assert 0.7 < row["memory_ratio"] < 1.4


def test_the_table_says_where_each_figure_comes_from(
    zoo: Zoo, kitchen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plan", str(zoo(MODEL).root), "--device", kitchen, "--steps", "100"]) == 0
    said = capsys.readouterr().out
    for part in (
        "a step",
        "100 steps",
        "peak memory",
        "disk, at most",
        "down, once",
        "up, a round",
        "data not counted",
    ):
        assert part in said
    assert "where the time goes" in said
    assert "Gemm" in said
    assert "kitchen (a small board, 1 threads)" in said


def test_json_has_every_figure(zoo: Zoo, kitchen: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(zoo(MODEL).root), "--device", kitchen, "--batch", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    plan = predict(zoo(MODEL), PROFILE, Wanted(batch=4))
    assert said == json.loads(json.dumps(facts(plan)))
    assert said["peak_bytes"] == plan.memory.peak
    assert said["wire"]["update"] == plan.wire.update


def test_a_device_that_is_too_small_is_warned_of(zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(format_profile(dataclasses.replace(PROFILE, name="tiny", memory_mib=32)))
    assert cli.main(["plan", str(zoo(MODEL).root), "--device", str(path)]) == 0
    assert "tiny has 32 MiB: the peak does not fit; use a smaller batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--codec", "zip"], "--codec: codec: 'zip' is not a codec"),
        (["--batch", "0"], "--batch: 0 is outside 1..1000000000"),
        (["--steps", "0"], "--steps: 0 is outside"),
        (["--variant", "half"], "variant: 'half' is not in this bundle; it holds full"),
        (["--backend", "tpu"], "--backend: variant 'full' has no training graph for 'tpu', but for "),
        (["--device", "nowhere.json"], "nowhere.json: cannot be read"),
    ],
)
def test_wrong_options_are_refused_by_name(
    zoo: Zoo, kitchen: str, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert cli.main(["plan", str(zoo(MODEL).root), "--device", kitchen, *options]) == 3
    assert said in capsys.readouterr().err


def test_a_profile_without_a_price_says_which() -> None:
    with pytest.raises(ConfigurationError, match="kitchen: the profile has no price for copy"):
        priced({"node": 1, "copy": 5}, dataclasses.replace(PROFILE, seconds={"node": 1e-6}))
    assert priced({"node": 1, "copy": 0}, dataclasses.replace(PROFILE, seconds={"node": 1e-6})) == 1e-6


def test_a_plan_needs_no_torch(zoo: Zoo, kitchen: str, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from export.cli import main\n"
        f"assert main(['plan', {str(zoo(MODEL).root)!r}, '--device', {kitchen!r}]) == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "peak memory" in done.stdout


def test_the_benchmark_says_how_many_predictions_are_near() -> None:
    rows = [{"time_ratio": t, "memory_ratio": m} for t, m in ((1.0, 0.9), (0.5, 1.0), (1.4, 1.3))]
    time, memory = notes(rows)
    assert "within a factor 1.40, 2 of 3 within 1.5, the worst is off by 2.00" in time
    assert "within a factor 1.11, 2 of 3 within 1.2, the worst is off by 1.30" in memory


def _data(bundle: Bundle, path: Path, examples: int) -> None:
    import numpy as np

    (x,), (y,) = bundle.manifest.inputs, bundle.manifest.targets
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.standard_normal((examples, *x.shape), np.float32), y=rng.integers(0, y.classes or 2, examples))
