"""fleet-export as its users run it."""

import json
from pathlib import Path

import pytest

from export.cli import main
from protocol.bundle import open_bundle

SOURCE = """
import torch
from torch import nn
from beside import SIZE
from export import TrainingSpec

def Small_Model():
    return TrainingSpec(nn.Linear(SIZE, 2), torch.randn(4, SIZE), torch.randn(4, 2), "mse", ("mse",))

def wrong():
    return nn.Linear(3, 2)

def hard():
    return TrainingSpec(nn.Sequential(nn.Linear(3, 2), nn.RReLU()), torch.randn(4, 3), torch.randn(4, 2), "mse")

def classes():
    return TrainingSpec(nn.Linear(3, 2), torch.randn(4, 3), torch.randint(0, 2, (4,)), "cross_entropy", ("accuracy",))

NUMBER = 3
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "beside.py").write_text("SIZE = 3\n")
    (tmp_path / "model.py").write_text(SOURCE)
    return tmp_path / "model.py"


def test_a_function_in_a_file_becomes_a_bundle_and_json_facts(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundles" / "small"
    assert main([f"{source}:Small_Model", "--out", str(out), "--json", "--model-version", "7"]) == 0
    facts = json.loads(capsys.readouterr().out)
    manifest = open_bundle(out).manifest
    assert (facts["line"], facts["version"], facts["parameters"]) == ("small-model", 7, 8)
    assert facts["files"] == {f.path: f.size for f in manifest.files}
    assert facts["parity"]["ort-training"]["three_steps"] == manifest.parity["ort-training"].three_steps
    assert (manifest.line, manifest.version) == ("small-model", 7)

    assert main(["show", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["line"] == "small-model"
    assert main(["show", str(out)]) == 0
    assert "ort-training/training_model.onnx" in capsys.readouterr().out


def test_a_model_that_tells_classes_apart_may_have_a_bundle_for_distillation_beside(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, student = tmp_path / "small", tmp_path / "student"
    words = [f"{source}:classes", "--out", str(out), "--backends", "portable", "--distillation", str(student)]
    assert main(words) == 0
    own, taught = open_bundle(out).manifest, open_bundle(student).manifest
    assert own.tensors == taught.tensors
    assert [(t.dtype, t.shape) for t in taught.targets] == [("float32", (2,))]
    assert taught.line == "classes-distillation"
    assert main(words) == 3, "both are there already"
    assert main([*words[:3], "--distillation", str(out)]) == 3
    assert "--distillation" in capsys.readouterr().err
    assert main([f"{source}:Small_Model", "--out", str(tmp_path / "mse"), "--distillation", str(tmp_path / "x")]) == 3
    assert "this one's loss is mse" in capsys.readouterr().err
    assert not (tmp_path / "mse").exists()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("model.py", "a file and a function"),
        ("{dir}/nowhere.py:digits", "no such file"),
        ("{dir}/model.py:missing", "Small_Model"),
        ("{dir}/model.py:NUMBER", "not a function"),
        ("{dir}/model.py:wrong", "returned a Linear"),
        ("{dir}/model.py:hard", "1 (RReLU)"),
        ("no.such.package:digits", "cannot be imported"),
    ],
)
def test_a_wrong_target_exits_with_three_and_says_why(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, words: str
) -> None:
    assert main([target.format(dir=source.parent), "--out", str(tmp_path / "b")]) == 3
    assert words in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_wrong_options_exit_with_three(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["model.py:digits"])
    assert stop.value.code == 3
    assert "--out" in capsys.readouterr().err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "fleet-export examples/digits_cnn.py:digits --out" in capsys.readouterr().out


def test_the_digits_example_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[2] / "examples" / "digits_cnn.py"
    assert main([f"{example}:digits", "--out", str(tmp_path / "digits"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert 10_000 <= facts["parameters"] <= 30_000
    assert facts["buffers"] == 192
