"""Which parameters and statistics a variant freezes, and the module as it is set up and left."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edge_agent.data import Dataset
from edge_agent.runtimes import portable
from edge_agent.runtimes.certificate import certify
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model
from edge_agent.runtimes.reference import load_record
from edge_agent.training import LocalTraining, Recipe
from export import parity
from export.bundle import write_bundle as export_bundle
from export.spec import TrainingSpec
from export.variants import Scheme, applied, schemes
from protocol.bundle import Bundle, open_bundle
from protocol.errors import BundleError, ConfigurationError
from protocol.layout import layout_of
from protocol.manifest import GRADIENT, NEXT
from tests.tiny import write_bundle


def spec_of(module: nn.Module, inputs: Tensor | None = None) -> TrainingSpec:
    return TrainingSpec(module, torch.rand(4, 3, 8, 8) if inputs is None else inputs, torch.zeros(4).long(), _loss)


def _loss(scores: Tensor, _: Tensor) -> Tensor:
    return scores.square().mean()


def cnn(affine: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, affine=affine),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5, affine=affine),
        nn.Flatten(),
        nn.Linear(80, 2),
    )


class HeadFirst(nn.Module):
    """Registered in another order than used."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(4, 2), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x))
        return scores


class Tied(nn.Module):
    """A head that shares its weight with the first layer, and has a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.head.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.middle(self.first(x)))
        return scores


def only(spec: TrainingSpec, **options: object) -> Scheme:
    """The one variant besides full."""
    full, scheme = schemes(spec, **options)  # type: ignore[arg-type]
    assert full == Scheme("full")
    return scheme


def test_the_last_layers_by_use_train_and_batch_norm_counts_as_one() -> None:
    assert only(spec_of(cnn()), train_last=[1]).frozen == (
        *("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias", "4.weight", "4.bias"),
    )
    assert only(spec_of(cnn()), train_last=[2]).frozen[-1] == "3.bias"
    assert only(spec_of(HeadFirst(), torch.rand(4, 3)), train_last=[1]) == Scheme(
        "train-last-1", ("body.weight", "body.bias")
    )


def test_each_number_is_a_variant_and_all_patterns_are_one() -> None:
    found = schemes(spec_of(cnn()), train_last=[1, 3, 1], freeze=["0.*", "*.bias"])
    assert [scheme.name for scheme in found] == ["full", "train-last-1", "train-last-3", "freeze"]
    assert found[-1].frozen == ("0.weight", "0.bias", "1.bias", "3.bias", "4.bias", "6.bias")


def test_a_batch_norm_whose_parameters_are_all_frozen_keeps_its_statistics_and_no_other_does() -> None:
    of_first = ("1.running_mean", "1.running_var")
    assert only(spec_of(cnn()), freeze=["0.*", "1.*"]).frozen_buffers == of_first
    assert only(spec_of(cnn()), freeze=["0.*", "1.weight"]).frozen_buffers == ()
    assert only(spec_of(cnn()), train_last=[2]).frozen_buffers == of_first


def test_a_batch_norm_without_parameters_goes_with_the_layer_before_it() -> None:
    assert only(spec_of(cnn(affine=False)), train_last=[2]).frozen_buffers == ("1.running_mean", "1.running_var")
    assert only(spec_of(cnn(affine=False)), freeze=["6.*"]).frozen_buffers == ()
    front = nn.Sequential(nn.BatchNorm2d(3, affine=False), cnn())
    assert only(spec_of(front), freeze=["1.0.*"]).frozen_buffers == ("0.running_mean", "0.running_var")


def test_a_batch_norm_that_is_in_evaluation_mode_already_has_no_statistics_to_freeze() -> None:
    class Backbone(nn.Sequential):
        def train(self, mode: bool = True) -> "Backbone":
            super().train(mode)
            self[1].eval()
            return self

    assert only(spec_of(Backbone(*cnn().children())), train_last=[1]).frozen_buffers == (
        "4.running_mean",
        "4.running_var",
    )


def test_parameters_that_the_user_froze_are_of_no_variant() -> None:
    module = cnn()
    module[0].requires_grad_(False)  # type: ignore[index]
    assert "0.weight" not in only(spec_of(module), train_last=[1]).frozen
    with pytest.raises(ConfigurationError, match=r"'0\.\*' matches no trained parameter; the model has 1.weight"):
        schemes(spec_of(module), freeze=["0.*"])


def test_a_tied_parameter_trains_where_any_of_its_layers_does() -> None:
    spec = spec_of(Tied(), torch.rand(4, 3))
    assert only(spec, train_last=[1]).frozen == ("first.bias", "middle.weight", "middle.bias")


def test_the_layers_of_a_transformer_come_in_order_with_what_attention_reads() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    scheme = only(spec_of(nn.Sequential(encoder, nn.Linear(8, 2)), torch.rand(4, 5, 8)), train_last=[4])
    assert {name.rpartition(".")[0] for name in scheme.frozen} == {"0.self_attn", "0.self_attn.out_proj", "0.norm1"}


def test_a_parametrized_layer_is_one_layer() -> None:
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    assert all(name.startswith("0.") for name in only(spec_of(module, torch.rand(4, 3)), train_last=[1]).frozen)
    with pytest.raises(ConfigurationError, match=r"has 2 .*: 0, 1"):
        schemes(spec_of(module, torch.rand(4, 3)), train_last=[2])


@pytest.mark.parametrize("count", [0, -1, 5, 99])
def test_a_number_out_of_range_is_refused_with_the_layers_at_hand(count: int) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"--train-last: {count} must be at least 1 .* has 5 .*: 0, 1, 3, 4, 6"
    ):
        schemes(spec_of(cnn()), train_last=[count])


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["encoder.*"], "'encoder.*' matches no trained parameter; the model has 0.weight, 0.bias"),
        (["0.*", "0.WEIGHT"], "'0.WEIGHT' matches no"),
        (["*"], "'*' freezes every parameter; leave one of 0.weight"),
        (["*.weight", "*.bias"], "'*.weight', '*.bias' freezes every parameter"),
    ],
)
def test_patterns_that_match_nothing_or_leave_nothing_are_refused_with_the_names_at_hand(
    patterns: list[str], said: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        schemes(spec_of(cnn()), freeze=patterns)
    assert said in str(refused.value)


@pytest.mark.parametrize("make", [cnn, lambda: cnn().eval(), HeadFirst], ids=["training", "evaluation", "broken"])
def test_the_module_is_left_as_it_was(make: Callable[[], nn.Module]) -> None:
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [layer.training for layer in module.modules()]
    # HeadFirst cannot take images: what fails there is said by capture.
    schemes(spec_of(module), train_last=[1])
    assert [layer.training for layer in module.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_a_scheme_is_applied_for_as_long_as_it_is_wanted() -> None:
    module = cnn().eval()
    scheme = only(spec_of(module), train_last=[2])
    with suppress(ZeroDivisionError), applied(module, scheme.frozen, scheme.frozen_buffers):
        trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        assert trained == ["4.weight", "4.bias", "6.weight", "6.bias"]
        assert [layer.training for layer in module] == [True, False, True, True, True, True, True]  # type: ignore[attr-defined]
        running = module[1].running_mean.clone()  # type: ignore[index]
        module(torch.rand(4, 3, 8, 8))
        assert torch.equal(module[1].running_mean, running)  # type: ignore[index]
        raise ZeroDivisionError
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(layer.training for layer in module.modules())


def test_parity_of_a_variant_is_with_the_module_frozen_alike(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    spec = TrainingSpec(nn.Linear(3, 2), torch.rand(8, 3), torch.tensor([0, 1] * 4), "cross_entropy")
    proven = parity.prove(spec, bundle.manifest, NumpyEngine(bundle, "bias"), variant="bias")
    assert max(proven.loss, proven.gradient, proven.three_steps) < 1e-5
    with pytest.raises(BundleError, match="gradient of weight: differs"):
        parity.prove(spec, bundle.manifest, NumpyEngine(bundle, "full"), variant="bias")


def backbone() -> TrainingSpec:
    """Most of it far from the head."""
    torch.manual_seed(0)
    blocks = [(3, 16), (16, 16), (16, 16)]
    layers = [
        layer
        for i, o in blocks
        for layer in (nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.Dropout(0.1))
    ]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    return TrainingSpec(module, torch.rand(8, 3, 16, 16), torch.arange(8) % 4, "cross_entropy", ("accuracy",))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("variants") / "b"
    made = export_bundle(
        backbone(), root, line="backbone", backends=(portable.NAME,), train_last=[1, 3], freeze=["0.*", "1.bias"]
    )
    assert open_bundle(root).manifest == made
    return open_bundle(root)


def train_graph(bundle: Bundle, variant: str) -> onnx.ModelProto:
    return onnx.load(bundle.path(bundle.manifest.variant(variant).backends[portable.NAME].files["train"]))


def test_a_bundle_holds_a_graph_for_each_variant_and_one_evaluation_for_all(exported: Bundle) -> None:
    manifest = exported.manifest
    assert [v.name for v in manifest.variants] == ["full", "train-last-1", "train-last-3", "freeze"]
    files = {v.name: dict(v.backends[portable.NAME].files) for v in manifest.variants}
    assert files["full"]["train"] == "portable/train.onnx"
    assert files["train-last-3"] == {"train": "portable/train-last-3/train.onnx", "eval": "portable/eval.onnx"}
    assert files["full"]["eval"] == "portable/eval.onnx"
    assert manifest.variant("freeze").frozen == ("0.weight", "1.bias")
    assert manifest.variant("freeze").frozen_buffers == ()
    assert len(manifest.variant("train-last-1").dropouts) == 3
    # Parity was proven of each, and of the file that devices replay.
    assert set(manifest.parity) == {"portable", *(f"{v.name}/portable" for v in manifest.variants[1:])}
    assert all(replayed.ok for v in manifest.variants for replayed in certify(exported, variant=v.name))


@pytest.mark.parametrize("variant", ["train-last-1", "train-last-3", "freeze"])
def test_a_graph_gives_the_gradients_and_statistics_of_its_variant_alone(exported: Bundle, variant: str) -> None:
    layout, held = exported.manifest.variant(variant), exported.manifest.tensors
    moving = [t.name + GRADIENT for t in held if t.kind == "parameter" and t.name not in layout.frozen]
    moving += [t.name + NEXT for t in held if t.kind == "buffer" and t.name not in layout.frozen_buffers]
    given = [output.name for output in train_graph(exported, variant).graph.output]
    assert given == ["loss", "metric.accuracy", *moving]


def test_a_variant_has_no_node_that_its_own_outputs_do_not_need_and_none_of_the_frozen_backward(
    exported: Bundle,
) -> None:
    counts = {}
    for variant in ("full", "train-last-3", "train-last-1"):
        graph = train_graph(exported, variant).graph
        needed = {output.name for output in graph.output}
        for node in reversed(graph.node):
            assert needed.intersection(node.output), f"{variant}: {node.op_type} serves nothing"
            needed.update(node.input)
        counts[variant] = len(graph.node)
    assert counts["train-last-1"] < counts["train-last-3"] < counts["full"]


def kept_activations(bundle: Bundle, variant: str) -> int:
    """How many values of before the head are read by it or by anything after it."""
    nodes = train_graph(bundle, variant).graph.node
    head = next(i for i, node in enumerate(nodes) if "14.weight" in node.input)
    return len({n for node in nodes[:head] for n in node.output} & {n for node in nodes[head:] for n in node.input})


def test_of_the_frozen_part_only_what_the_head_reads_is_kept(exported: Bundle) -> None:
    # Features for the scores, and for the weight's gradient perhaps in another layout.
    assert kept_activations(exported, "train-last-1") <= 2
    assert kept_activations(exported, "full") > 10


def test_a_step_of_the_head_alone_takes_a_fraction_of_a_step_of_everything(exported: Bundle) -> None:
    model, record = initial_model(exported), load_record(exported)
    fastest = {}
    for variant in ("full", "train-last-1"):
        engine = portable.PortableEngine(exported, variant)
        seconds = []
        for seed in range(12):
            started = time.perf_counter()
            engine.step(model, record.batch, seed)
            seconds.append(time.perf_counter() - started)
        fastest[variant] = min(seconds)
    # A forward pass is about a third of a step; the margin is for a busy machine.
    assert fastest["train-last-1"] < 0.75 * fastest["full"]


def test_a_head_trains_on_the_portable_graph_and_its_backbone_stays_bit_for_bit(exported: Bundle) -> None:
    model, record = initial_model(exported), load_record(exported)
    dataset = Dataset(record.batch.inputs, record.batch.targets)
    recipe = Recipe(15, 0, 4, 0.1, OptimizerSettings(momentum=0.9, weight_decay=0.01), 1)
    engine = portable.PortableEngine(exported, "train-last-1")
    training = LocalTraining(engine, exported.manifest, dataset, recipe, model, "train-last-1")
    while not training.finished:
        training.step()
    layout = layout_of(exported.manifest, "train-last-1")
    moved = np.zeros(exported.manifest.total, bool)
    for part in (*layout.parameters, *layout.buffers):
        moved[part] = True
    after = training.result().model
    assert after[~moved].tobytes() == model[~moved].tobytes()
    assert (after[moved] != model[moved]).any()


def test_a_variant_that_cannot_be_leaves_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--train-last: 9"):
        export_bundle(backbone(), tmp_path / "b", line="backbone", train_last=[9])
    assert list(tmp_path.iterdir()) == []
