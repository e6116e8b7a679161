"""The choice of a backend: by probing, with the reason, and with a remedy where there is none."""

import hashlib
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data

from edge_agent.runtimes import backends, onnx_session, ort_training, portable
from edge_agent.runtimes.backends import BackendEntry, choose, load_evaluator
from edge_agent.runtimes.numpy_reference import NumpyEngine
from protocol.bundle import Bundle
from protocol.errors import BundleError, ConfigurationError
from protocol.manifest import FileEntry, Variant
from tests.bundles import Zoo
from tests.runtimes.engines import GRAPH_BACKENDS, need
from tests.tiny import write_bundle

STEP = """
import sys
from pathlib import Path
import numpy as np
from edge_agent.runtimes.backends import choose, load_evaluator
from edge_agent.runtimes.engine import Batch
from edge_agent.runtimes.parameters import initial_model
from protocol.bundle import open_bundle

assert "onnxruntime" not in sys.modules
bundle = open_bundle(Path(sys.argv[1]))
model, batch = initial_model(bundle), Batch((np.ones((2, 1, 8, 8), np.float32),), (np.zeros(2, np.int64),))
load_evaluator(bundle).evaluate(model, batch)
engine = choose(bundle).engine
assert engine.step(model, batch, 0).loss > 0
engine.evaluate(model, batch)
import os
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
print(sorted(m for m in sys.modules if m.split(".")[0] in ("torch", "onnx", "onnxscript", "safetensors", "export")))
"""


def test_a_training_step_imports_neither_torch_nor_onnx_where_they_are_installed(zoo: Zoo) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(zoo("cnn_with_batch_norm").root)], cwd=root, capture_output=True, text=True
    )
    # On a processor whose maker it does not know, and on an emulated one, onnxruntime says so.
    said = [line for line in done.stderr.splitlines() if "cpuid_info warning: Unknown CPU vendor" not in line]
    assert (done.returncode, done.stdout.strip(), said) == (0, "[]", [])


def test_the_first_usable_backend_is_chosen_and_says_why(zoo: Zoo, tmp_path: Path) -> None:
    choice = choose(zoo("mlp_classification"))
    assert choice.engine.name == "portable"
    said = r"the preferred one, and usable here; it agrees with torch's recorded step within \de-\d\d"
    assert re.fullmatch(said, choice.reason)
    choice = choose(write_bundle(tmp_path))
    assert choice.engine.name == "numpy"
    assert "portable is not usable (the bundle holds no graphs for it, only for numpy" in choice.reason


def test_a_named_backend_is_used_or_refused_but_never_replaced(zoo: Zoo, tmp_path: Path) -> None:
    assert choose(write_bundle(tmp_path), "numpy").reason == "named in the settings"
    with pytest.raises(
        ConfigurationError, match="numpy: the bundle holds no graphs for it, only for ort-training, portable"
    ):
        choose(zoo("mlp_classification"), "numpy")


def test_an_unknown_backend_is_refused_with_the_known_ones(zoo: Zoo) -> None:
    with pytest.raises(
        ConfigurationError, match="'tflite' is unknown; use 'auto' or one of portable, ort-training, numpy"
    ):
        choose(zoo("mlp_classification"), "tflite")


def test_where_nothing_can_run_every_reason_and_remedy_is_named(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = BackendEntry(
        lambda: "onnxruntime 1.23.2 here cannot train; pip install the other", ort_training.OrtTrainingEngine
    )
    old = BackendEntry(lambda: "onnxruntime 1.16.3 is too old; pip install a later one", portable.PortableEngine)
    monkeypatch.setattr(backends, "BACKENDS", {**backends.BACKENDS, "portable": old, "ort-training": entry})
    with pytest.raises(ConfigurationError) as refusal:
        choose(zoo("mlp_classification"))
    for words in (
        "portable: onnxruntime 1.16.3 is too old; pip",
        "ort-training: onnxruntime 1.23.2 here cannot train; pip",
        "numpy: the bundle holds no graphs",
    ):
        assert words in str(refusal.value)


def test_a_stock_onnxruntime_is_told_apart_from_a_training_one(monkeypatch: pytest.MonkeyPatch) -> None:
    need(ort_training.NAME)
    assert ort_training.why_not() is None
    monkeypatch.setattr(onnx_session, "native_training", lambda: None)
    assert "pip install onnxruntime-training-cpu==1.19.2" in str(ort_training.why_not())


def test_an_unknown_variant_is_refused_with_the_known_ones(zoo: Zoo) -> None:
    with pytest.raises(ConfigurationError, match="'half' is not in this bundle; it holds full"):
        choose(zoo("mlp_classification"), variant="half")


def test_a_bundle_without_an_evaluation_graph_cannot_be_evaluated(zoo: Zoo, tmp_path: Path) -> None:
    bundle = zoo("mlp_classification")
    bare = Bundle(bundle.root, replace(bundle.manifest, variants=(Variant("full", {}),)), bundle.digest)
    with pytest.raises(ConfigurationError, match="no evaluation graph"):
        load_evaluator(bare)
    assert isinstance(load_evaluator(write_bundle(tmp_path)), NumpyEngine)


@pytest.mark.parametrize("backend", GRAPH_BACKENDS)
def test_a_graph_with_external_data_is_never_handed_to_the_runtime(zoo: Zoo, tmp_path: Path, backend: str) -> None:
    need(backend)
    bundle = zoo("cnn_1d")
    copy = Path(shutil.copytree(bundle.root, tmp_path / "b"))
    for role, load in (("eval", load_evaluator), ("train", lambda bundle: choose(bundle, backend))):
        name = bundle.manifest.variants[0].backends[backend].files[role]
        path = copy / name
        model = onnx.load(path)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(4096, np.float32), "big"))
        convert_model_to_external_data(model, location="../../passwd", size_threshold=0)
        data = model.SerializeToString()
        path.write_bytes(data)
        with pytest.raises(BundleError, match="is not what the manifest says"):
            load(Bundle(copy, bundle.manifest, b""))
        entry = FileEntry(name, len(data), hashlib.sha256(data).hexdigest())
        files = tuple(entry if held.path == name else held for held in bundle.manifest.files)
        with pytest.raises(BundleError, match="external data"):
            load(Bundle(copy, replace(bundle.manifest, files=files), b""))
