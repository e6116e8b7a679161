"""Evaluation: held-out data held against the manifest, and means that do not depend on the batch size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.evaluate import evaluate, examiner, load_data
from edge_agent.runtimes.backends import load_evaluator
from edge_agent.runtimes.engine import Batch, Evaluation
from protocol.errors import DataError
from tests.tiny import FEATURES, TOTAL, write_bundle, write_shard

X, Y = np.zeros((4, FEATURES), np.float32), np.array([0, 1, 0, 1])


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_means_do_not_depend_on_the_batch_size() -> None:
    values = np.arange(10, dtype=np.float32)
    data = Batch((values,), (values,))

    def measure(batch: Batch) -> Evaluation:
        mean = float(batch.inputs[0].mean())
        return Evaluation(mean, {"mae": 2 * mean}, len(batch))

    for size in (1, 3, 10, 100):
        found = evaluate(measure, data, size)
        assert found.loss == pytest.approx(4.5)
        assert found.metrics == {"mae": pytest.approx(9.0)}
        assert found.examples == 10


def test_a_model_is_evaluated_by_the_runtimes(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    data = load_data(write_shard(tmp_path / "test.npz", examples=50), bundle.manifest)
    examine = examiner(load_evaluator(bundle), data, 16)
    model = np.zeros(TOTAL, np.float32)
    assert examine(model).loss == pytest.approx(np.log(2))
    model[FEATURES] = 100.0
    assert examine(model).metrics["accuracy"] == 1.0


def test_integers_and_doubles_are_taken_as_the_manifests_types(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "bundle").manifest
    data = load_data(save(tmp_path / "d.npz", x=X.astype(np.float64), y=Y.astype(np.uint8)), manifest)
    assert (str(data.inputs[0].dtype), str(data.targets[0].dtype)) == ("float32", "int64")


NAN = X.copy()
NAN[2, 1] = np.nan
WRONG: dict[str, dict[str, Any]] = {
    "holds x where x, y are needed": {"x": X},
    "shape \\(4, 2\\) where \\(examples, 3\\) is needed": {"x": X[:, :2], "y": Y},
    "y: shape \\(4, 1\\) where": {"x": X, "y": Y[:, None]},
    "x: no examples": {"x": X[:0], "y": Y[:0]},
    "type <U1 cannot be taken as float32": {"x": np.full((4, 3), "a"), "y": Y},
    "y: type float64 cannot be taken as int64": {"x": X, "y": Y.astype(float)},
    "x: holds NaN or infinity": {"x": NAN, "y": Y},
    "y: values from 0 to 2, must be from 0 to 1": {"x": X, "y": Y * 2},
    "y: values from -1 to 0, must be": {"x": X, "y": -Y},
    "different numbers of examples \\(x 4, y 3\\)": {"x": X, "y": Y[:3]},
}


@pytest.mark.parametrize("said", WRONG)
def test_data_that_does_not_fit_the_bundle_is_refused_by_name(said: str, tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "bundle").manifest
    with pytest.raises(DataError, match=f"evaluation.data: .*test.npz.*{said}"):
        load_data(save(tmp_path / "test.npz", **WRONG[said]), manifest)


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "bundle").manifest
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", X)
    save(tmp_path / "pickled.npz", x=np.array([{"a": 1}] * 4), y=Y)
    for name in ("text.npz", "one.npy", "pickled.npz", "missing.npz"):
        with pytest.raises(DataError, match=f"evaluation.data: .*{name}"):
            load_data(tmp_path / name, manifest)
