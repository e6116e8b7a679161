"""Width tiers of real bundles: torch's numbers on any choice of channels, slices that go back, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_agent.runtimes.backends import load_evaluator
from edge_agent.runtimes.comparison import TOLERANCE
from edge_agent.runtimes.parameters import initial_model, seen_by
from edge_agent.runtimes.portable import PortableEngine
from export import TrainingSpec
from export.bundle import write_bundle
from export.cli import main
from export.layout import flat_model
from export.parity import batch_of
from export.torch_steps import truth
from protocol.bundle import Bundle, open_bundle
from protocol.errors import BundleError, ConfigurationError
from protocol.width import Channels, first_channels, narrowed, places
from sparse.channels import channel_structure, cut
from tests.export.zoo import spec_of

QUICK = ("cnn_with_batch_norm", "residual", "dropout")
Tiers = Callable[[str], tuple[TrainingSpec, Bundle]]


def dropout() -> TrainingSpec:
    module = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.25), nn.ReLU(), nn.Linear(8, 3))
    return TrainingSpec(module, torch.randn(6, 5), torch.randint(0, 3, (6,)), "cross_entropy")


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> Tiers:
    """A model of the zoo and its bundle with tiers, written once for all tests here."""
    made: dict[str, tuple[TrainingSpec, Bundle]] = {}

    def bundle(name: str) -> tuple[TrainingSpec, Bundle]:
        if name not in made:
            torch.manual_seed(3)
            spec, folder = dropout() if name == "dropout" else spec_of(name), tmp_path_factory.mktemp("tiers") / name
            write_bundle(spec, folder, line="nets", backends=("portable",), tiers=(1.0, 0.5, 0.25))
            made[name] = (spec, open_bundle(folder))
        return made[name]

    return bundle


def any_channels(bundle: Bundle, variant: str, seed: int) -> Channels:
    """As many channels as the tier keeps, anywhere in each part of each group."""
    rng, keep, chosen = np.random.default_rng(seed), bundle.manifest.variant(variant).keep, {}
    for group in bundle.manifest.groups:
        part, kept = group.size // group.multiple, keep[group.name] // group.multiple
        starts = range(0, group.size, part)
        chosen[group.name] = np.concatenate([s + np.sort(rng.choice(part, kept, replace=False)) for s in starts])
    return chosen


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("variant", ["tier-050", "tier-025"])
def test_a_slice_of_the_dense_model_takes_the_step_that_torch_takes_on_the_module_without_the_other_channels(
    tiers: Tiers, name: str, variant: str
) -> None:
    spec, bundle = tiers(name)
    channels = any_channels(bundle, variant, seed=1)
    module = cut(spec.module, channel_structure(spec.module, spec.input_tensors)[1], channels)
    narrow = TrainingSpec(module, spec.inputs, spec.targets, spec.loss, spec.metrics)
    seen = seen_by(bundle, variant)
    model = flat_model(spec.module, bundle.manifest.tensors)[places(bundle.manifest, channels)]
    expected = truth(narrow, seen.manifest, variant)
    result = PortableEngine(seen, variant).step(model, batch_of(spec), 20)
    assert result.loss == pytest.approx(float(expected["loss"][0].values[0]), rel=1e-5)
    gradient = np.concatenate([e.values.ravel() for e in expected["gradient"]])
    np.testing.assert_allclose(result.gradient, gradient, atol=TOLERANCE * np.abs(gradient).max())
    evaluated = load_evaluator(seen, variant=variant).evaluate(model, batch_of(spec))
    assert evaluated.loss == pytest.approx(float(expected["evaluation"][0].values[0]), rel=1e-5)


@pytest.mark.parametrize("name", QUICK)
def test_to_put_a_slice_back_is_the_identity_on_it_and_leaves_the_rest(tiers: Tiers, name: str) -> None:
    _, bundle = tiers(name)
    model = initial_model(bundle)
    where = places(bundle.manifest, any_channels(bundle, "tier-050", seed=2))
    after = model.copy()
    after[where] = model[where] + 1
    np.testing.assert_array_equal(after[where], model[where] + 1)
    left = np.setdiff1d(np.arange(len(model)), where)
    np.testing.assert_array_equal(after[left], model[left])
    after[where] = model[where]
    assert after.tobytes() == model.tobytes()


def test_a_tier_has_the_same_tensors_and_dropouts_and_is_proven(tiers: Tiers) -> None:
    _, bundle = tiers("dropout")
    manifest = bundle.manifest
    assert [v.name for v in manifest.variants] == ["full", "tier-050", "tier-025"]
    for variant in manifest.variants[1:]:
        seen = narrowed(manifest, variant.name)
        assert [t.name for t in seen.tensors] == [t.name for t in manifest.tensors]
        assert [d.name for d in variant.dropouts] == [d.name for d in manifest.variants[0].dropouts]
        assert manifest.parity[f"{variant.name}/portable"].gradient <= TOLERANCE
        assert set(variant.backends) == {"portable"}
        assert variant.load is not None
    costs = [v.load.multiply_adds for v in manifest.variants if v.load]
    assert costs == sorted(costs, reverse=True)


def test_the_initial_model_of_a_tier_is_the_slice_of_the_first_channels(tiers: Tiers) -> None:
    _, bundle = tiers("residual")
    where = places(bundle.manifest, first_channels(bundle.manifest, "tier-050"))
    np.testing.assert_array_equal(initial_model(bundle, "tier-050"), initial_model(bundle)[where])


def test_tiers_go_with_variants_that_freeze(tmp_path: Path) -> None:
    write_bundle(
        spec_of("mlp_classification"),
        tmp_path / "b",
        line="nets",
        backends=("portable",),
        train_last=[1],
        tiers=(0.5,),
    )
    manifest = open_bundle(tmp_path / "b").manifest
    assert [v.name for v in manifest.variants] == ["full", "train-last-1", "tier-050"]
    assert manifest.variant("train-last-1").frozen
    assert not manifest.variant("tier-050").frozen


def test_show_lists_tiers_with_parameters_and_multiply_adds(tiers: Tiers, capsys: pytest.CaptureFixture[str]) -> None:
    _, bundle = tiers("cnn_with_batch_norm")
    assert main(["show", str(bundle.root), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["variants"]
    assert shown["tier-050"]["trained"] == narrowed(bundle.manifest, "tier-050").parameters
    # Two of four filters of 9 weights on 36 places, and a linear layer from 18 to 3, forward and for their weights;
    # the gradient of the features for the linear layer alone, since images need none.
    assert shown["tier-050"]["multiply_adds"] == 2 * (2 * 9 * 36) + 3 * (18 * 3)
    assert main(["show", str(bundle.root)]) == 0
    shown_here = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "1,458 multiply-adds" in shown_here


@pytest.mark.parametrize(
    ("model", "shares", "said"),
    [
        ("cnn_1d", (1.5,), "1.5 is no share of the channels; the nearest that works is 1$"),
        ("cnn_1d", (0.0,), "0 is no share of the channels; the nearest that works is 0.01"),
        ("cnn_1d", (0.004,), "0.004 rounds to 0 %.* the nearest that works is 0.01"),
        ("cnn_1d", (0.999,), "0.999 rounds to 100 %.* the nearest that works is 0.99"),
        ("cnn_1d", (1.0, 0.5, 0.5), "0.5 and 0.5 are both tier-050"),
        ("cnn_1d", (1.0, 0.97), "0.97 keeps as many channels of every group as 1 .* leave one of them out"),
        ("cnn_1d", (0.5, 0.49), "0.49 keeps as many channels of every group as 0.5"),
        ("cnn_1d", (0.02,), "0.02 leaves none of the 8 channels of '0'; the nearest that works is 0.063"),
        ("tied_weights", (0.5,), "the model has no channels that can be removed"),
    ],
)
def test_tiers_that_cannot_be_are_refused_by_name_before_anything_is_captured(
    tmp_path: Path, model: str, shares: tuple[float, ...], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"--tiers: .*{said}"):
        write_bundle(spec_of(model), tmp_path / "b", line="nets", tiers=shares)
    assert list(tmp_path.iterdir()) == []


class Fixed(nn.Module):
    """Its forward knows how wide it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).view(-1, 144))  # type: ignore[no-any-return]


def test_a_forward_that_cannot_do_with_fewer_channels_is_refused(tmp_path: Path) -> None:
    spec = TrainingSpec(Fixed(), torch.rand(6, 1, 8, 8), torch.randint(0, 3, (6,)), "cross_entropy")
    with pytest.raises((ConfigurationError, BundleError), match=r"forward cannot do with fewer channels"):
        write_bundle(spec, tmp_path / "b", line="nets", tiers=(0.5,))
    assert list(tmp_path.iterdir()) == []


def test_one_tier_of_the_whole_width_is_a_plain_bundle(tmp_path: Path) -> None:
    manifest = write_bundle(
        spec_of("mlp_classification"), tmp_path / "b", line="nets", backends=("portable",), tiers=(1.0,)
    )
    assert ([v.name for v in manifest.variants], manifest.groups) == (["full"], ())
