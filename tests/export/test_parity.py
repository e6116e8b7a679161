"""Parity is proven beside the examples: kinks there refuse no good model, and a wrong gradient is still found."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from edge_agent.runtimes.backends import BACKENDS, BackendEntry
from edge_agent.runtimes.engine import Batch, StepResult, Vector
from edge_agent.runtimes.ort_training import OrtTrainingEngine
from edge_agent.runtimes.portable import PortableEngine
from edge_agent.runtimes.reference import load_record
from export import TrainingSpec, parity
from export.bundle import write_bundle
from protocol.bundle import Bundle, open_bundle
from protocol.errors import BundleError
from tests.bundles import Zoo
from tests.export.zoo import spec_of

LABELS = torch.tensor([0, 1, 2, 3])


def digits(images: Tensor, labels: Tensor = LABELS) -> TrainingSpec:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return TrainingSpec(module, images, labels, "cross_entropy", ("accuracy",))


def one_hot() -> Tensor:
    images = torch.zeros(4, 1, 8, 8)
    images[LABELS, 0, LABELS, LABELS] = 1.0
    return images


def on_a_constant_background() -> Tensor:
    images = torch.full((4, 1, 8, 8), 255.0)
    images[:, :, 2:6, 3:5] = torch.rand(4, 1, 4, 2, generator=torch.Generator().manual_seed(1)) * 255
    return images


DEGENERATE = {
    "zeros": torch.zeros(4, 1, 8, 8),
    "constant": torch.full((4, 1, 8, 8), 0.5),
    "the same image": torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(2)).expand(4, 1, 8, 8),
    "one-hot": one_hot(),
    "a constant background": on_a_constant_background(),
    "black and white": (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)) > 0.5).float(),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("parity") / "b"
    write_bundle(digits(DEGENERATE["zeros"]), root, line="digits")
    return open_bundle(root)


def test_a_good_model_gets_a_bundle_from_zeros(exported: Bundle) -> None:
    proven = exported.manifest.parity["ort-training"]
    assert proven.gradient <= proven.tolerance / 10


@pytest.mark.parametrize("kind", DEGENERATE)
def test_a_good_model_agrees_with_torch_beside_degenerate_examples(exported: Bundle, kind: str) -> None:
    spec = parity.beside(digits(DEGENERATE[kind]))
    assert not torch.equal(spec.input_tensors[0], DEGENERATE[kind])
    assert torch.equal(spec.target_tensors[0], LABELS)
    proven = parity.prove(spec, exported.manifest, OrtTrainingEngine(exported))
    assert proven.gradient <= proven.tolerance / 10


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("name", ["0.weight", "4.weight"])
def test_a_wrong_gradient_is_found_beside_degenerate_examples(exported: Bundle, kind: str, name: str) -> None:
    tensor = next(t for t in exported.manifest.tensors if t.name == name)

    class Skewed(OrtTrainingEngine):
        def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
            result = super().step(model, batch, seed)
            result.gradient[tensor.offset : tensor.offset + tensor.size] *= 1.01
            return result

    with pytest.raises(BundleError, match=rf"gradient of {name}: differs from torch"):
        parity.prove(parity.beside(digits(DEGENERATE[kind])), exported.manifest, Skewed(exported))


class Crossing(PortableEngine):
    """Rounding has crossed a kink: off by a hundredth as long as all the examples are there."""

    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        result = super().step(model, batch, seed)
        if len(batch) == 2 * len(LABELS):
            result.gradient[:36] *= 1.01
        return result


class Wrong(PortableEngine):
    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        result = super().step(model, batch, seed)
        result.gradient[:36] *= 1.01
        return result


def twice() -> TrainingSpec:
    return digits(torch.cat([DEGENERATE["constant"]] * 2), torch.cat([LABELS] * 2))


def test_rounding_that_crosses_a_kink_on_some_examples_refuses_no_good_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cast(dict[str, BackendEntry], BACKENDS), "portable", BackendEntry(lambda: None, Crossing))
    manifest = write_bundle(twice(), tmp_path / "b", line="digits")
    assert manifest.parity["portable"].gradient <= manifest.parity["portable"].tolerance / 10
    # The record is of the draw that held, so that devices replay that one.
    assert len(load_record(open_bundle(tmp_path / "b")).batch) == len(LABELS)


def test_a_gradient_that_is_wrong_on_every_draw_gets_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(dict[str, BackendEntry], BACKENDS), "portable", BackendEntry(lambda: None, Wrong))
    with pytest.raises(BundleError, match=r"gradient of 0\.weight: differs from torch"):
        write_bundle(twice(), tmp_path / "b", line="digits")


def test_further_draws_have_other_noise_and_fewer_examples_but_not_too_few() -> None:
    draws = [parity.beside(twice(), draw) for draw in range(4)]
    assert [len(d.input_tensors[0]) for d in draws] == [8, 4, 4, 4]
    assert not torch.equal(draws[1].input_tensors[0], draws[2].input_tensors[0])


def test_an_engine_that_drops_other_units_gets_no_bundle(zoo: Zoo) -> None:
    class Otherwise(OrtTrainingEngine):
        def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
            return super().step(model, batch, seed + 1)

    exported, spec = zoo("cnn_with_dropout"), spec_of("cnn_with_dropout")
    parity.prove(spec, exported.manifest, OrtTrainingEngine(exported))
    with pytest.raises(BundleError, match="differs from torch"):
        parity.prove(spec, exported.manifest, Otherwise(exported))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(3, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "examples"),
    [
        (torch.log, torch.full((4, 3), 1e-3)),
        (lambda x: torch.eye(3)[2 - x[:, 0].long()], torch.zeros(4, 3)),
    ],
    ids=["a logarithm", "an index"],
)
def test_what_is_not_finite_beside_the_examples_is_checked_on_them(
    function: Callable[[Tensor], Tensor], examples: Tensor
) -> None:
    spec = TrainingSpec(Function(function), examples, torch.zeros(4, 2), "mse")
    near = parity.beside(spec)
    assert torch.equal(near.input_tensors[0], examples)


def test_integer_inputs_are_as_given_and_the_noise_is_always_the_same() -> None:
    inputs = (torch.tensor([0, 1, 2, 3]), torch.zeros(4, 3))

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(4, 3)

        def forward(self, word: Tensor, x: Tensor) -> Tensor:
            return self.embedding(word) * x  # type: ignore[no-any-return]

    spec = TrainingSpec(Words(), inputs, torch.zeros(4, 3), "mse")
    first, second = parity.beside(spec), parity.beside(spec)
    assert torch.equal(first.input_tensors[0], inputs[0])
    assert 0.3 < first.input_tensors[1].std() < 3
    assert torch.equal(first.input_tensors[1], second.input_tensors[1])
