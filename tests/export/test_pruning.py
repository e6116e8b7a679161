"""Pruned before the export: weights at once and gradually, channels, the mask in the bundle, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_agent.cli import main as agent
from edge_agent.runtimes.parameters import initial_model
from edge_agent.static_mask import mask_of
from export.cli import main
from export.pruning import Gradual, apply_mask, cost_of, prune_weights
from export.spec import TrainingSpec
from protocol.bundle import open_bundle
from protocol.errors import BundleError
from sparse.masks import pack_mask

PORTABLE = ("--backends", "portable")

SOURCE = """
import torch
from torch import nn
from export import TrainingSpec

def digits():
    torch.manual_seed(2)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(128, 20), nn.ReLU(), nn.Linear(20, 10))
    return TrainingSpec(module, torch.rand(8, 1, 8, 8), torch.randint(0, 10, (8,)), "cross_entropy", ("accuracy",))

def linear():
    return TrainingSpec(nn.Linear(4, 2), torch.randn(4, 4), torch.randn(4, 2), "mse", prunable=("weigth",))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(SOURCE)
    return tmp_path / "model.py"


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


def test_channels_are_removed_before_the_capture_and_the_facts_say_so(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half"
    assert main([f"{source}:digits", "--out", str(out), "--keep-channels", "0.5", *PORTABLE, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    shapes = {t.name: t.shape for t in open_bundle(out).manifest.tensors}
    assert shapes["0.weight"] == (4, 1, 3, 3)
    assert (shapes["5.weight"], shapes["7.weight"]) == ((10, 64), (10, 10))
    channels = facts["channels"]
    assert channels["keep"] == 0.5
    assert channels["before"] == {"parameters": 2886, "multiply_adds": 8 * 9 * 64 + 128 * 20 + 20 * 10}
    assert channels["after"]["parameters"] == facts["parameters"]
    assert channels["after"]["multiply_adds"] == 4 * 9 * 64 + 64 * 10 + 10 * 10


def test_a_sparse_bundle_holds_its_mask_and_the_agent_keeps_the_zeros(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, shard = tmp_path / "sparse", tmp_path / "shard.npz"
    options = ["--sparsity", "0.9", "--sparsity-distribution", "erk", *PORTABLE]
    assert main([f"{source}:digits", "--out", str(out), *options, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["show", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sparsity"] == facts["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert shown["sparsity_of_all"] == pytest.approx(0.9 * facts["prunable"] / facts["parameters"], abs=1e-3)
    assert main(["show", str(out)]) == 0
    assert "of the prunable" in capsys.readouterr().out

    bundle = open_bundle(out)
    mask = mask_of(bundle)
    assert mask is not None
    assert mask.sum() == facts["kept"]
    assert not initial_model(bundle)[: len(mask)][~mask].any()
    rng = np.random.default_rng(1)
    np.savez(shard, x=rng.random((32, 1, 8, 8), np.float32), y=rng.integers(0, 10, 32))
    trained = ["train", "--bundle", str(out), "--data", str(shard), "--steps", "3", "--batch-size", "8"]
    assert agent([*trained, "--checkpoint", str(tmp_path / "c"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sparsity"] == facts["sparsity"]
    assert said["kept"] == facts["prunable"] - round(0.9 * facts["prunable"])


def test_a_mask_that_does_not_fit_its_bundle_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "sparse"
    assert main([f"{source}:digits", "--out", str(out), "--sparsity", "0.5", *PORTABLE]) == 0
    bundle = open_bundle(out)
    mask = mask_of(bundle)
    assert mask is not None
    # 0.bias follows 0.weight.
    mask[72] = False
    (out / "mask.bin").write_bytes(pack_mask(mask))
    with pytest.raises(BundleError, match=r"mask\.bin: SHA-256 differs"):
        mask_of(bundle)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep-channels", "0.02"], "--keep-channels: 0.02 leaves none of the 8 channels of '0'; the nearest that"),
        (["--keep-channels", "1.5"], "--keep-channels: 1.5 is outside 0..1"),
        (["--keep-channels", "0.5", "--leave-whole", "head"], "--leave-whole: 'head' matches no group"),
        (["--leave-whole", "0"], "--leave-whole: says nothing without --keep-channels"),
        (["--sparsity", "1"], "--sparsity: 1.0 must be at least 0 and below 1"),
        (["--sparsity", "0.9995"], "leaves nothing of"),
        (["--sparsity-distribution", "erk"], "--sparsity-distribution: says nothing without --sparsity"),
    ],
)
def test_what_cannot_be_pruned_so_is_refused_and_nothing_is_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main([f"{source}:digits", "--out", str(tmp_path / "b"), *options]) == 3
    assert said in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_model_without_channels_and_patterns_that_match_nothing_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "b")]
    assert main([f"{source}:linear", *out, "--keep-channels", "0.5"]) == 3
    assert "--keep-channels: the model has no channels that can be removed" in capsys.readouterr().err
    assert main([f"{source}:linear", *out, "--sparsity", "0.5"]) == 3
    assert "prunable: 'weigth' matches no tensor; there are weight, bias" in capsys.readouterr().err


def test_weights_of_the_lowest_scores_become_zero_and_their_number_is_exact() -> None:
    module = net()
    mask = prune_weights(module, 0.8)
    weights = torch.cat([module.get_parameter(f"{i}.weight").flatten() for i in (0, 2)])
    assert int((weights != 0).sum()) == 180
    assert mask.sum() == 180 + 40
    assert module.get_parameter("0.bias").all()

    layers = net()
    prune_weights(layers, 0.5, "uniform", "random", seed=4)
    assert int((layers.get_parameter("2.weight") != 0).sum()) == 150

    with pytest.raises(ValueError, match=r"0\.weight has no gradient"):
        prune_weights(net(), 0.5, score="gradient")
    blamed = net()
    blamed(torch.randn(4, 20))[:, 3].sum().backward()
    prune_weights(blamed, 0.5, score="gradient")
    # Rows of outputs that the loss does not see have no gradient, and go first.
    assert blamed.get_parameter("2.weight")[3].count_nonzero() > blamed.get_parameter("2.weight")[:3].count_nonzero()


def test_gradual_pruning_rises_along_its_schedule_and_keeps_the_zeros_through_the_optimiser() -> None:
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    pruning = Gradual(module, 0.8, end=8, every=2)
    seen = []
    for _ in range(12):
        optimizer.zero_grad()
        module(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
        pruning.step()
        seen.append(int(sum((p != 0).sum() for n, p in module.named_parameters() if n.endswith("weight"))))
    assert seen[0] == 900
    assert seen == sorted(seen, reverse=True)
    assert seen[7:] == [180] * 5
    assert len(set(seen)) == 5
    assert pruning.mask.sum() == 180 + 40


def test_a_mask_of_another_module_is_refused() -> None:
    with pytest.raises(ValueError, match="mask: 5 values for 940 parameters"):
        apply_mask(net(), np.ones(5, np.bool_))


def test_multiply_adds_are_those_of_one_example_and_see_recurrent_layers() -> None:
    spec = TrainingSpec(net(), torch.randn(7, 20), torch.randn(7, 10), "mse")
    assert cost_of(spec).multiply_adds == 20 * 30 + 30 * 10

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 5, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0][:, -1]  # type: ignore[no-any-return]

    spec = TrainingSpec(Recurrent(), torch.randn(4, 6, 3), torch.randn(4, 5), "mse")
    assert cost_of(spec).multiply_adds == 6 * 20 * (3 + 5)
