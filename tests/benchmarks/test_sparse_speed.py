"""The benchmark of removed channels: the documented rows, from real processes, and what goes wrong by name."""

import json

import pytest

import tests.export.quick  # noqa: F401 - for what its import does
from benchmarks.sparse_speed import MODELS, main
from benchmarks.zoo import ZOO

FIRST = ["model", "batch", "keep", "ms", "ratio_to_dense"]


def test_a_run_gives_the_documented_rows_of_each_share_beside_the_dense_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--models", "cnn_1d", "--batches", "8", "--keep", "0.5", "--rounds", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    dense, half = said["rows"]
    assert list(dense)[:5] == list(half)[:5] == FIRST
    assert (dense["model"], dense["batch"], dense["keep"], dense["ratio_to_dense"]) == ("cnn_1d", 8, 1.0, 1.0)
    assert half["keep"] == 0.5
    assert half["ratio_to_dense"] == pytest.approx(half["ms"] / dense["ms"], abs=2e-2)
    assert half["multiply_adds_ratio"] == pytest.approx(half["multiply_adds"] / dense["multiply_adds"], abs=1e-3)
    assert half["parameters"] < 0.4 * dense["parameters"]
    assert "portable: onnxruntime" in said["versions"]


def test_the_networks_are_the_convolutional_ones_of_the_target() -> None:
    assert all(ZOO[name].cnn for name in MODELS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--models", "cnn_1d", "--keep", "0.01"], "--keep-channels: 0.01 leaves none of the 32 channels of '0'"),
        (["--batches", "0"], "--batches: (0,) must be from 1 to 1024"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.bundles.write_bundle", lambda *_, **__: None)
    monkeypatch.setattr("benchmarks.bundles.open_bundle", lambda *_: None)
    monkeypatch.setattr("benchmarks.bundles.nodes", lambda *_: 1)
    assert main(options) == 3
    assert said in capsys.readouterr().err
