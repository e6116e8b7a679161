"""What only onnxruntime-training cannot do costs a bundle that backend, not the export, and the reason is told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export import TrainingSpec
from export.bundle import write_bundle
from export.cli import main
from tests.export.operator_sequences import LENGTH, WIDTH, WORDS
from tests.export.operators import Chosen, Function, normal, on


def words() -> TrainingSpec:
    given = torch.randint(0, WORDS, (4, LENGTH))
    return TrainingSpec(nn.EmbeddingBag(WORDS, 3), given, torch.randn(4, 3), "mse")


def recurrent() -> TrainingSpec:
    layer = nn.LSTM(WIDTH, 4, num_layers=2, dropout=0.5, batch_first=True)
    return on(Chosen(lambda m, x: m["lstm"](x)[0][:, -1], lstm=layer), normal(LENGTH, WIDTH))


def twice() -> TrainingSpec:
    def both(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return m["norm"](m["norm"](x) * 2 + 1)  # type: ignore[no-any-return]

    return on(Chosen(both, norm=nn.BatchNorm1d(6)), normal(6))


class DropsNothing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        nn.functional.dropout(x, 0.5, self.training)
        return super().forward(x)


LIMITS: dict[str, tuple[Callable[[], TrainingSpec], tuple[str, ...]]] = {
    "bag": (words, ("EmbeddingBag", "nn.Embedding")),
    "recurrent dropout": (recurrent, ("layer.layers.lstm (LSTM)", "nn.Dropout between them")),
    "batch norm twice": (twice, ("layer.layers.norm (BatchNorm1d)", "used twice")),
    "dropout of nothing": (lambda: on(DropsNothing(6, 6), normal(6)), ("its dropouts come in another order",)),
    "running sum": (lambda: on(Function(lambda x: x.cumsum(1)), normal(6)), ("CumSum", "torch.tril")),
    "bicubic": (lambda: on(nn.Upsample(scale_factor=2, mode="bicubic"), normal(3, 4, 4)), ("Resize", "bilinear")),
}


@pytest.mark.parametrize("case", LIMITS)
def test_the_portable_backend_trains_it_and_the_manifest_says_why_the_other_does_not(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = LIMITS[case]
    torch.manual_seed(0)
    manifest = write_bundle(make(), tmp_path / "bundle", line="limited")
    assert list(manifest.variants[0].backends) == ["portable"]
    for word in said:
        assert word in manifest.left_out["ort-training"]
    assert main(["show", str(tmp_path / "bundle")]) == 0
    assert "without ort-training" in capsys.readouterr().out
    assert main(["show", str(tmp_path / "bundle"), "--json"]) == 0
    assert said[0] in capsys.readouterr().out
