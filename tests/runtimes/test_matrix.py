"""The oldest, a middle and the newest onnxruntime load the exported graphs and find what the one at hand finds."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import Zoo
from tests.runtimes.matrix import ENVIRONMENTS, Environment
from tests.runtimes.one_step import results

ROOT = Path(__file__).parents[2]
# Convolutions with running statistics, attention with masks, gates over time, and windows of every kind.
MODELS = ("cnn_with_batch_norm", "transformer_with_dropout", "recurrent", "windows")


@pytest.mark.real
# The first of them exports the models.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda environment: environment.onnxruntime)
def test_every_release_computes_the_same(zoo: Zoo, tmp_path: Path, environment: Environment) -> None:
    reason = environment.why_not()
    if reason is None and not environment.python.exists():
        reason = f"no environment with onnxruntime {environment.onnxruntime}; make runtimes"
    if reason is not None:
        pytest.skip(reason)
    bundles = [zoo(name) for name in MODELS]
    out = tmp_path / "found.npz"
    done = subprocess.run(
        [environment.python, "-m", "tests.runtimes.one_step", out, *(bundle.root for bundle in bundles)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == environment.onnxruntime
    found = np.load(out)
    expected = {f"{b.root.name}/{name}": value for b in bundles for name, value in results(b).items()}
    assert set(found.files) == set(expected)
    for name, value in expected.items():
        # Sums in another order: float32's rounding, of the largest values beside them.
        tolerance = 1e-5 * float(np.abs(value).max(initial=1e-3))
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=tolerance, err_msg=name)
