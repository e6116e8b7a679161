"""What is exported computes what torch computes, for models of many kinds."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edge_agent.runtimes.engine import Batch, Vector
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.ort_training import OrtTrainingEngine
from edge_agent.runtimes.parameters import initial_model
from export import TrainingSpec
from export.capture import WithLoss
from export.files import ARTIFACTS as FILES
from export.layout import flat_model
from export.parity import batch_of
from protocol.bundle import Bundle, deploy
from tests.bundles import Zoo
from tests.export.zoo import ZOO, spec_of

WITH_BATCH_NORM = ("cnn_with_batch_norm", "cnn_1d", "mlp_with_batch_norm", "residual")


def moved(bundle: Bundle, seed: int = 0) -> Vector:
    """Another model of the same layout; variances stay positive."""
    model = initial_model(bundle)
    rng = np.random.default_rng(seed)
    return model + np.abs(rng.normal(scale=0.1, size=model.shape)).astype(np.float32)


def load_into(spec: TrainingSpec, bundle: Bundle, model: Vector) -> None:
    values = {**dict(spec.module.named_parameters()), **dict(spec.module.named_buffers())}
    with torch.no_grad():
        for t in bundle.manifest.tensors:
            part = model[t.offset : t.offset + t.size].reshape(t.shape)
            values[t.name].copy_(torch.from_numpy(part.copy()))


def some(batch: Batch, count: int) -> Batch:
    return Batch(tuple(a[:count] for a in batch.inputs), tuple(a[:count] for a in batch.targets))


@pytest.mark.parametrize("name", ZOO)
def test_a_bundle_records_parity_well_inside_the_tolerance(zoo: Zoo, name: str) -> None:
    parity = zoo(name).manifest.parity["ort-training"]
    assert parity.loss <= 1e-6
    assert parity.buffers <= 1e-6
    assert parity.three_steps <= 1e-5
    assert parity.gradient <= parity.tolerance / 10


@pytest.mark.parametrize("name", ZOO)
def test_the_evaluation_graph_gives_what_torch_gives_in_evaluation_for_any_model(zoo: Zoo, name: str) -> None:
    bundle, spec = zoo(name), spec_of(name)
    model = moved(bundle)
    load_into(spec, bundle, model)
    with torch.no_grad():
        want = WithLoss(spec).eval()(*spec.input_tensors, *spec.target_tensors)
    got = Evaluator(bundle, FILES["eval"]).outputs(model, batch_of(spec))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_a_deployed_model_answers_as_torch_does(zoo: Zoo, name: str) -> None:
    bundle, spec = zoo(name), spec_of(name)
    graph = bundle.path(bundle.manifest.inference.path).read_bytes()
    model = moved(bundle)
    load_into(spec, bundle, model)
    deployed = onnxruntime.InferenceSession(deploy(graph, bundle.manifest, model), providers=["CPUExecutionProvider"])
    feed = dict(zip([p.name for p in bundle.manifest.inputs], batch_of(spec).inputs, strict=True))
    with torch.no_grad():
        want = spec.module.eval()(*spec.input_tensors)
    wants = want if isinstance(want, tuple) else (want,)
    for a, b in zip(deployed.run(None, feed), wants, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)
    before = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, feed)
    assert not np.allclose(before[0], wants[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ZOO)
def test_every_tensor_of_the_manifest_has_a_place_in_the_inference_graph(zoo: Zoo, name: str) -> None:
    bundle = zoo(name)
    assert set(bundle.manifest.inference.places) == {t.name for t in bundle.manifest.tensors}


@pytest.mark.parametrize("name", ZOO)
def test_batches_of_one_and_of_odd_size_run(zoo: Zoo, name: str) -> None:
    bundle, spec = zoo(name), spec_of(name)
    engine, model = OrtTrainingEngine(bundle), initial_model(bundle)
    for count in (1, 3, 5):
        batch = some(batch_of(spec), count)
        result = engine.step(model, batch, 0)
        assert np.isfinite(result.loss)
        assert np.isfinite(result.gradient).all()
        assert np.isfinite(result.buffers).all()
        assert engine.evaluate(model, batch).examples == count


@pytest.mark.parametrize("name", ZOO)
def test_the_initial_model_is_the_module_as_it_was_given(zoo: Zoo, name: str) -> None:
    bundle = zoo(name)
    np.testing.assert_array_equal(initial_model(bundle), flat_model(spec_of(name).module, bundle.manifest.tensors))


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_running_statistics_move_as_in_torch_over_several_batches(zoo: Zoo, name: str) -> None:
    bundle, spec = zoo(name), spec_of(name)
    engine, model = OrtTrainingEngine(bundle), initial_model(bundle)
    module = copy.deepcopy(spec.module).train()
    n, m = bundle.manifest.parameters, bundle.manifest.buffers
    for count in (6, 3, 2):
        module(*(t[:count] for t in spec.input_tensors))
        model[n : n + m] = engine.step(model, some(batch_of(spec), count), 0).buffers
    want = flat_model(module, bundle.manifest.tensors)[n : n + m]
    assert not np.allclose(want, initial_model(bundle)[n : n + m], atol=1e-2)
    np.testing.assert_allclose(model[n : n + m], want, rtol=1e-5, atol=1e-6)


def test_no_graph_of_a_bundle_tells_of_source_files_or_needs_files_outside_itself(zoo: Zoo) -> None:
    bundle = zoo("residual")
    for entry in bundle.manifest.files:
        if entry.path.endswith(".onnx"):
            data = bundle.path(entry.path).read_bytes()
            assert b'.py"' not in data
            assert b"external_data" not in data
            graph = onnx.load_from_string(data).graph
            assert not any(i.external_data for i in graph.initializer)


@pytest.mark.parametrize("name", ZOO)
def test_evaluation_and_inference_need_standard_operators_alone(zoo: Zoo, name: str) -> None:
    bundle = zoo(name)
    for path in (FILES["eval"], bundle.manifest.inference.path):
        model = onnx.load(bundle.path(path))
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} == {""}
        assert model.ir_version <= 10
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]


def test_only_weights_of_two_axes_or_more_are_prunable_unless_patterns_say_otherwise(zoo: Zoo) -> None:
    prunable = {t.name for t in zoo("cnn_with_batch_norm").manifest.tensors if t.prunable}
    assert prunable == {"0.weight", "5.weight"}


def test_a_frozen_tensor_lies_after_all_others_and_gets_no_gradient(zoo: Zoo) -> None:
    manifest = zoo("frozen_first_layer").manifest
    assert [t.kind for t in manifest.tensors] == ["parameter"] * 3 + ["frozen"]
    assert manifest.tensors[-1].name == "0.weight"
    assert manifest.parameters == manifest.total - 35


def test_tied_weights_are_one_tensor(zoo: Zoo) -> None:
    assert sorted(t.name for t in zoo("tied_weights").manifest.tensors) == ["a.bias", "a.weight", "b.bias", "relu"]


def test_ports_are_named_after_the_arguments_of_forward(zoo: Zoo) -> None:
    manifest = zoo("two_inputs_two_outputs").manifest
    assert [(p.name, p.shape, p.dtype) for p in manifest.inputs] == [
        ("word", (), "int64"),
        ("features", (3,), "float32"),
    ]
    assert [p.name for p in manifest.targets] == ["target_0", "target_1"]
    assert [p.name for p in manifest.outputs] == ["output_0", "output_1"]


def test_dropouts_are_inputs_of_the_training_graph_alone(zoo: Zoo) -> None:
    bundle = zoo("cnn_with_dropout")
    dropouts = bundle.manifest.variants[0].dropouts
    assert [(d.shape, d.rate) for d in dropouts] == [((4, 1, 1), pytest.approx(0.2)), ((8,), 0.25), ((8,), 0.5)]
    names = {d.name for d in dropouts}
    train, evaluation = (onnx.load(bundle.path(FILES[role])).graph for role in ("train", "eval"))
    assert names <= {i.name for i in train.input}
    assert not names & {i.name for i in evaluation.input}


def test_a_dropout_of_zero_leaves_no_input(zoo: Zoo) -> None:
    assert zoo("frozen_first_layer").manifest.variants[0].dropouts == ()


def test_examples_need_not_come_first_where_units_are_dropped(zoo: Zoo) -> None:
    shapes = [d.shape for d in zoo("transformer_with_dropout").manifest.variants[0].dropouts]
    assert shapes == [(2, 5, 5), (5 * 8,), (5 * 16,), (5 * 8,), (1,)]


def test_classes_are_read_off_the_cross_entropy_also_inside_a_loss_of_ones_own(zoo: Zoo) -> None:
    assert [p.classes for p in zoo("cnn_1d").manifest.targets] == [4]
    assert [p.classes for p in zoo("two_inputs_two_outputs").manifest.targets] == [3, None]
    assert [p.classes for p in zoo("mlp_regression").manifest.targets] == [None]
