"""Deployed without zeros: small, the same bits in a plain session, and from every file that holds a model."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch import nn

from edge_agent.cli import main as agent
from edge_agent.runtimes.parameters import initial_model
from edge_agent.static_mask import mask_of
from export.bundle import write_bundle
from export.cli import main
from export.pruning import sparsified
from export.sparse_graph import decode, encode, without_zeros
from export.spec import TrainingSpec
from protocol.bundle import Bundle, open_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 60), nn.ReLU()]
    spec = TrainingSpec(
        nn.Sequential(*layers, nn.Linear(60, 10)), torch.rand(8, 1, 8, 8), torch.randint(0, 10, (8,)), "cross_entropy"
    )
    sparse, mask = sparsified(spec, 0.9, "erk")
    out = tmp_path_factory.mktemp("deploy") / "bundle"
    write_bundle(sparse, out, line="digits", mask=mask, backends=("portable",))
    return open_bundle(out)


def outputs(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(3).standard_normal((5, 1, 8, 8)).astype(np.float32)
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def deployed(bundle: Bundle, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, object]:
    assert main(["deploy", str(bundle.root), "--out", str(out), *options, "--json"]) == 0
    facts: dict[str, object] = json.loads(capsys.readouterr().out)
    return facts


def test_a_model_that_is_nine_tenths_zeros_takes_a_fifth_and_gives_the_same_bits(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, whole = tmp_path / "small.onnx", tmp_path / "whole.onnx"
    facts = deployed(bundle, small, capsys)
    assert facts["bytes"] == small.stat().st_size
    assert deployed(bundle, whole, capsys, "--sparse", "never")["ratio"] == 1.0
    assert whole.read_bytes() == bundle.path("inference.onnx").read_bytes()
    assert small.stat().st_size <= 0.2 * whole.stat().st_size
    assert (outputs(small).view(np.uint32) == outputs(whole).view(np.uint32)).all()
    graph = onnx.load(small)
    assert (graph.ir_version, [(o.domain, o.version) for o in graph.opset_import]) == (8, [("", 18)])
    assert main(["deploy", str(bundle.root), "--out", str(small)]) == 0
    assert "of the dense file" in capsys.readouterr().out


def test_the_runtime_folds_the_weights_when_it_loads_them(bundle: Bundle, tmp_path: Path) -> None:
    small, folded = tmp_path / "small.onnx", tmp_path / "folded.onnx"
    assert main(["deploy", str(bundle.root), "--out", str(small)]) == 0
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(folded).graph.node}
    assert "ScatterElements" in {node.op_type for node in onnx.load(small).graph.node}
    assert not kinds & {"ScatterElements", "CumSum", "Split", "ConstantOfShape"}


def test_a_dense_model_stays_as_it_is(bundle: Bundle) -> None:
    graph = onnx.load(bundle.path("inference.onnx"))
    for initializer in graph.graph.initializer:
        ones = np.ones(tuple(initializer.dims), np.float32)
        initializer.CopyFrom(onnx.numpy_helper.from_array(ones, initializer.name))
    dense = graph.SerializeToString()
    assert without_zeros(dense) == (dense, ())


def test_every_file_that_holds_a_model_can_be_deployed(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = initial_model(bundle) * 2
    (tmp_path / "model.bin").write_bytes(model.tobytes())
    deployed(bundle, tmp_path / "from_values.onnx", capsys, "--model", str(tmp_path / "model.bin"))
    tensors = {t.name: model[t.offset : t.offset + t.size].reshape(t.shape) for t in bundle.manifest.tensors}
    save_file(tensors, tmp_path / "model.safetensors")
    deployed(bundle, tmp_path / "from_tensors.onnx", capsys, "--model", str(tmp_path / "model.safetensors"))
    dense = tmp_path / "dense.onnx"
    deployed(bundle, dense, capsys, "--sparse", "never", "--model", str(tmp_path / "model.bin"))
    deployed(bundle, tmp_path / "from_graph.onnx", capsys, "--model", str(dense))
    assert len({(tmp_path / f"from_{kind}.onnx").read_bytes() for kind in ("values", "tensors", "graph")}) == 1


def test_a_checkpoint_is_deployed_as_its_mask_leaves_it(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "d.npz", x=rng.random((32, 1, 8, 8), np.float32), y=rng.integers(0, 10, 32))
    words = ["train", "--bundle", str(bundle.root), "--data", str(tmp_path / "d.npz"), "--batch-size", "8", "--json"]
    assert agent([*words, "--steps", "4", "--checkpoint", str(tmp_path / "run.ckpt")]) == 0
    capsys.readouterr()
    out = tmp_path / "trained.onnx"
    facts = deployed(bundle, out, capsys, "--model", str(tmp_path / "run.ckpt"))
    mask = mask_of(bundle)
    assert mask is not None
    buffers = bundle.manifest.buffers
    assert int(mask.sum()) >= int(str(facts["nonzero"])) - buffers > 0
    assert (outputs(out) != outputs(bundle.path("inference.onnx"))).any()


def test_a_file_that_holds_no_model_of_the_bundle_is_refused_and_nothing_is_written(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, wrong = tmp_path / "out.onnx", tmp_path / "wrong.bin"
    empty, version = onnx.helper.make_graph([], "g", [], []), onnx.helper.make_opsetid("", 18)
    other = onnx.helper.make_model(empty, ir_version=8, opset_imports=[version])
    for name, data, said in (
        ("wrong.bin", b"\xff" * 90, "are neither"),
        ("wrong.onnx", b"\xff" * 90, "is not an ONNX file"),
        ("none.onnx", onnx.ModelProto(ir_version=8).SerializeToString(), "it holds no graph"),
        ("other.onnx", other.SerializeToString(), "does not hold 0.weight of (16, 1, 3, 3)"),
    ):
        wrong = tmp_path / name
        wrong.write_bytes(data)
        assert main(["deploy", str(bundle.root), "--out", str(out), "--model", str(wrong)]) in (1, 3)
        assert said in capsys.readouterr().err
    assert main(["deploy", str(bundle.root), "--out", str(out), "--model", str(tmp_path / "none")]) == 3
    assert "cannot be read" in capsys.readouterr().err
    assert main(["deploy", str(bundle.root), "--out", str(tmp_path / "no" / "out.onnx")]) == 3
    assert "--out" in capsys.readouterr().err
    assert not out.exists()


@given(st.lists(st.tuples(st.integers(0, 900), st.sampled_from([1.5, -0.0, np.inf, 1e-45])), max_size=12))
def test_what_is_encoded_comes_back_bit_for_bit(runs: list[tuple[int, float]]) -> None:
    flat = np.concatenate([np.zeros(3, np.float32), *(np.array([0.0] * n + [v], np.float32) for n, v in runs)])
    gaps, values = encode(flat)
    assert gaps.dtype == np.uint8
    assert (decode(gaps, values, len(flat)).view(np.uint32) == flat.view(np.uint32)).all()
