"""What cannot be trained on devices is refused by the layer's name with a remedy, and nothing is written."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export import TrainingSpec
from export.bundle import write_bundle
from protocol.errors import BundleError, ConfigurationError

X = torch.randn(4, 6)
WORDS = torch.randint(0, 5, (4, 6))
IMAGE = torch.randn(4, 4, 6, 6)


class Features(nn.Module):
    """A linear layer, then whatever the test asks for, as `features.3` in a sequence."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)  # type: ignore[no-any-return]


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.spare = nn.Linear(6, 6), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)  # type: ignore[no-any-return]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.linear(x)  # type: ignore[no-any-return]


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(x)  # type: ignore[no-any-return]


class Positive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x[x > 0].mean()


class Bags(nn.Module):
    """One word a bag, said with offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(5, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.bag(words, words * 0)  # type: ignore[no-any-return]


def old_weight_norm() -> TrainingSpec:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return on(nn.utils.weight_norm(nn.Linear(6, 6)))


class LossWithParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.scale * (output - target).square().mean()


def on(module: nn.Module, x: Tensor = X, loss: object = "mse") -> TrainingSpec:
    with torch.no_grad():
        targets = torch.zeros_like(module(x))
    return TrainingSpec(module, x, targets, loss)  # type: ignore[arg-type]


def after_linear(layer: nn.Module) -> TrainingSpec:
    return on(Features(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), layer))


def after_convolution(layer: nn.Module) -> TrainingSpec:
    return on(Features(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), layer), IMAGE)


LAYERS: dict[str, tuple[Callable[[], TrainingSpec], tuple[str, ...]]] = {
    "three axes": (
        lambda: on(Features(nn.Conv2d(4, 8, 1), nn.Unflatten(1, (4, 2)), nn.Conv3d(4, 4, 1)), IMAGE),
        ("features.2 (Conv3d)", "convolution", "three axes", "nn.Conv2d"),
    ),
    "no such operator": (
        lambda: after_linear(Bessel()),
        ("features.3 (Bessel)", "aten.i0", "docs/operators.md"),
    ),
    "a choice by a mask": (
        lambda: after_linear(Positive()),
        ("features.3 (Positive)", "depends on its values", "torch.where"),
    ),
    "bags of one's own": (
        lambda: TrainingSpec(Bags(), WORDS.flatten()[:4], X[:, :3], "mse"),
        ("bag (EmbeddingBag)", "offsets", "padding_idx"),
    ),
    "random slope": (lambda: after_linear(nn.RReLU()), ("features.3 (RReLU)", "random numbers")),
    "lazy": (
        lambda: TrainingSpec(nn.LazyLinear(6), X, X, "mse"),
        ("weight", "call the module once on the examples"),
    ),
    "old weight norm": (old_weight_norm, ("torch.nn.utils.parametrizations",)),
    "dropout in evaluation too": (
        lambda: on(Applied(lambda x: nn.functional.dropout(x, 0.5))),
        ("forward of the module", "random", "F.dropout(x, p, self.training)"),
    ),
    "random numbers": (
        lambda: on(Applied(lambda x: x + torch.randn_like(x))),
        ("forward of the module", "randn_like", "nn.Dropout"),
    ),
    "in place twice": (
        lambda: on(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5, inplace=True))),
        ("a backward pass fails in torch already",),
    ),
    "batch norm without momentum": (
        lambda: after_linear(nn.BatchNorm1d(6, momentum=None)),
        ("features.3 (BatchNorm1d)", "momentum=0.1"),
    ),
    "a function": (lambda: on(Applied(torch.special.i0)), ("forward of the module", "aten.i0")),
    "loss operator": (
        lambda: on(Unused().linear, loss=lambda a, b: torch.special.i0(a - b).mean()),
        ("the loss", "i0"),
    ),
    "loss that looks at values": (
        lambda: on(nn.Linear(6, 6), loss=lambda a, b: nn.functional.gaussian_nll_loss(a, b, a.exp())),
        ("the loss", "depend on values"),
    ),
    "loss of many numbers": (lambda: on(nn.Linear(6, 6), loss=lambda a, b: a - b), ("loss", "(4, 6)", ".mean()")),
    "loss parameter": (lambda: on(nn.Linear(6, 6), loss=LossWithParameter()), ("loss.scale", "into the module")),
    "fixed batch": (lambda: on(Applied(lambda x: x.reshape(4, 3, 2))), ("number of examples", "x.shape[0]")),
    "values decide": (lambda: on(Applied(lambda x: x if x.sum() > 0 else -x)), ("depend on values",)),
    "batch lost": (
        lambda: TrainingSpec(Applied(lambda x: x.sum(0)), X, torch.zeros(4, 1), lambda a, b: a.mean() + b.mean()),
        ("output 0", "(6,)", "first axis"),
    ),
    "unused parameter": (lambda: on(Unused()), ("spare.weight", "requires_grad=False")),
    "buffer that moves": (lambda: on(Counting()), ("seen", "buffer")),
    "float64": (lambda: TrainingSpec(nn.Linear(6, 6).double(), X, X, "mse"), ("weight", "float64", "module.float()")),
    "wrong shapes": (lambda: TrainingSpec(nn.Linear(5, 6), X, X, "mse"), ("4x6 and 5x6",)),
    "too large": (
        lambda: TrainingSpec(nn.Linear(30_000, 30_000, device="meta"), X, X, "mse"),
        ("3600120000 bytes", "2000000000", "weight"),
    ),
    "nothing trains": (lambda: on(nn.Linear(6, 6).requires_grad_(False)), ("no parameter requires a gradient",)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_it_is_refused_with_its_name_and_a_remedy_and_nothing_is_written(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, words = LAYERS[case]
    with pytest.raises(BundleError) as refusal:
        write_bundle(make(), tmp_path / "bundle", line="refused")
    for word in words:
        assert word in str(refusal.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


SPECS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "no module": ({"module": 3}, ("module", "int")),
    "half precision": ({"inputs": X.half()}, ("inputs[0]", "float16", "x.float()")),
    "complex": ({"inputs": X.to(torch.complex64)}, ("inputs[0]", "complex64")),
    "int32": ({"targets": torch.zeros(4, dtype=torch.int32)}, ("targets[0]", "int32", "x.long()")),
    "no inputs": ({"inputs": ()}, ("inputs", "empty")),
    "one example": ({"inputs": X[:1], "targets": X[:1]}, ("inputs[0]", "at least 2")),
    "uneven": ({"targets": X[:3]}, ("[3, 4]", "same number")),
    "loss": ({"loss": "hinge"}, ("'hinge'", "cross_entropy")),
    "loss that is no function": ({"loss": 3}, ("loss", "int")),
    "metric": ({"metrics": ("f1",)}, ("'f1'", "accuracy")),
    "line": ({"line": "Digits!"}, ("'Digits!'", "a-z")),
    "version": ({"version": 0}, ("version", "at least 1")),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_spec_that_cannot_be_meant_is_refused_when_it_is_made(case: str) -> None:
    changes, words = SPECS[case]
    given: dict[str, object] = {"module": nn.Linear(6, 6), "inputs": X, "targets": X, "loss": "mse", **changes}
    with pytest.raises(ConfigurationError) as refusal:
        TrainingSpec(**given)  # type: ignore[arg-type]
    for word in words:
        assert word in str(refusal.value)
