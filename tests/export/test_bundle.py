"""A bundle is written whole or not at all, and damage to it is found by file."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_agent.runtimes.backends import BACKENDS, BackendEntry
from edge_agent.runtimes.engine import Batch, StepResult, Vector
from edge_agent.runtimes.ort_training import OrtTrainingEngine
from edge_agent.runtimes.portable import PortableEngine
from export import TrainingSpec, parity, proof
from export.bundle import write_bundle
from protocol.bundle import Bundle, open_bundle
from protocol.errors import BundleError, ConfigurationError
from tests.bundles import Zoo
from tests.export.zoo import spec_of


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    spec = spec_of("cnn_with_batch_norm")
    spec.module.eval()
    before = {name: value.clone() for name, value in spec.module.state_dict().items()}
    write_bundle(spec, tmp_path / "b", line="same")
    assert not any(layer.training for layer in spec.module.modules())
    after = spec.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None for p in spec.module.parameters())


def test_an_interrupt_leaves_no_folder_behind(tmp_path: Path) -> None:
    def interrupt(stage: str) -> None:
        if "artifacts" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(spec_of("mlp_regression"), tmp_path / "b", line="stopped", report=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_is_kept_unless_forced(tmp_path: Path) -> None:
    spec = spec_of("mlp_regression")
    write_bundle(spec, tmp_path / "b", line="first")
    with pytest.raises(ConfigurationError, match="--force"):
        write_bundle(spec, tmp_path / "b", line="second")
    assert open_bundle(tmp_path / "b").manifest.line == "first"
    write_bundle(spec, tmp_path / "b", line="second", force=True)
    assert open_bundle(tmp_path / "b").manifest.line == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_bundle_says_what_a_step_of_each_variant_asks_for(tmp_path: Path) -> None:
    manifest = write_bundle(spec_of("mlp_regression"), tmp_path / "b", line="counted", train_last=[1])
    full, last = (variant.load for variant in manifest.variants)
    assert full is not None
    assert last is not None
    weights = sum(t.size for t in manifest.tensors if t.prunable)
    # Forward and the weights' gradients go once through every weight, and the inputs' gradients through most.
    assert 2 * weights <= full.multiply_adds <= 3 * weights
    assert last.multiply_adds < full.multiply_adds


def test_force_does_not_replace_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigurationError, match="not a bundle"):
        write_bundle(spec_of("mlp_regression"), tmp_path / "home", line="x1", force=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_an_engine_that_is_off_by_little_gets_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Skewed(PortableEngine):
        def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
            result = super().step(model, batch, seed)
            gradient = result.gradient.copy()
            gradient[3] += 0.01 * np.abs(gradient).max()
            return StepResult(result.loss, gradient, result.buffers)

    monkeypatch.setattr(proof, "BACKENDS", {**BACKENDS, "portable": BackendEntry(lambda: None, Skewed)})
    with pytest.raises(BundleError, match=r"gradient of 0\.weight: differs from torch by"):
        write_bundle(spec_of("mlp_regression"), tmp_path / "b", line="skewed")
    assert list(tmp_path.iterdir()) == []


def test_a_biased_running_variance_is_noticed(zoo: Zoo) -> None:
    exported, spec = zoo("cnn_with_batch_norm"), spec_of("cnn_with_batch_norm")

    class Biased(OrtTrainingEngine):
        def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
            result = super().step(model, batch, seed)
            buffers = result.buffers.copy()
            values = 6 * 6 * 6
            taken = buffers[4:] - 0.9 * model[self._manifest.parameters :][4:8]
            buffers[4:] -= taken / values
            return StepResult(result.loss, result.gradient, buffers)

    with pytest.raises(BundleError, match="running_var after a step"):
        parity.prove(spec, exported.manifest, Biased(exported))


@pytest.mark.parametrize("role", ["train", "eval", "optimizer", "checkpoint"])
def test_a_damaged_file_is_named_when_the_bundle_is_opened(zoo: Zoo, tmp_path: Path, role: str) -> None:
    path = zoo("mlp_regression").manifest.variants[0].backends["ort-training"].files[role]
    for damage, said in (("missing", "missing"), ("truncated", "truncated"), ("altered", "SHA-256")):
        copy = Path(shutil.copytree(zoo("mlp_regression").root, tmp_path / damage))
        target = copy / path
        data = target.read_bytes()
        if damage == "missing":
            target.unlink()
        else:
            target.write_bytes(data[:-1] if damage == "truncated" else bytes([data[0] ^ 1]) + data[1:])
        with pytest.raises(BundleError, match=said) as refusal:
            open_bundle(copy)
        assert path in str(refusal.value)


def test_a_graph_that_was_altered_since_the_bundle_was_opened_is_not_loaded(zoo: Zoo, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(zoo("mlp_regression").root, tmp_path / "b"))
    (copy / "ort-training/training_model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="is not what the manifest says"):
        OrtTrainingEngine(Bundle(copy, zoo("mlp_regression").manifest, b""))


def test_prunable_patterns_choose_by_name(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    x = torch.randn(4, 4)
    manifest = write_bundle(TrainingSpec(module, x, x, "mse", prunable=("2.*",)), tmp_path / "b", line="some")
    assert {t.name for t in manifest.tensors if t.prunable} == {"2.weight", "2.bias"}
