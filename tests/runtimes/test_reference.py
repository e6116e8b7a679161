"""The record of torch's steps: read as written, replayed by a right engine and failed by a wrong one; nothing that lies
gets through."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from edge_agent.runtimes import backends
from edge_agent.runtimes.backends import BackendEntry, choose
from edge_agent.runtimes.certificate import by_kind, by_tensor, certify
from edge_agent.runtimes.engine import Array, Batch, Engine, StepResult, Vector
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.runtimes.reference import load_record, model_digest, parse_record, unscaled
from edge_agent.runtimes.safetensors import format_tensors, parse
from protocol.bundle import REFERENCE_FILE, Bundle
from protocol.errors import BundleError, ConfigurationError
from protocol.manifest import Reference
from tests.tiny import TOTAL, reference, write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("recorded"), recorded=True)


def contents() -> tuple[dict[str, Array], dict[str, str]]:
    data = reference()
    return {name: value.copy() for name, value in load(data).items()}, dict(parse("r", data).text)


def test_the_format_in_bytes() -> None:
    arrays: dict[str, Array] = {"b": np.array([1, 2, 255], np.uint8), "a": np.array([[1.5]], np.float32)}
    header = (
        b'{"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]}}'
    )
    header += b" " * (-len(header) % 8)
    data = format_tensors(arrays, {"k": "v"})
    assert data == len(header).to_bytes(8, "little") + header + bytes.fromhex("0000c03f 0102ff")
    assert {name: value.tolist() for name, value in load(data).items()} == {"a": [[1.5]], "b": [1, 2, 255]}


def test_a_record_is_read_as_it_was_written(bundle: Bundle) -> None:
    record = load_record(bundle)
    assert record.batch.inputs[0].shape == (4, 3)
    assert record.batch.targets[0].dtype == np.int64
    assert record.batch.targets[0].tolist() == [0, 1, 0, 1]
    assert record.torch == "by hand"
    assert [e.tensor for e in record.steps["full"]["gradient"]] == ["weight", "bias"]
    assert bundle.manifest.reference == Reference(REFERENCE_FILE, model_digest(np.zeros(TOTAL, np.float32)))


def test_a_right_engine_agrees_in_every_tensor(bundle: Bundle) -> None:
    (replayed,) = certify(bundle)
    assert (replayed.backend, replayed.ok) == ("numpy", True)
    assert [row.tensor for row in by_tensor(replayed.rows)] == ["loss", "weight", "bias"]
    assert [row.kind for row in by_kind(replayed.rows)] == ["loss", "gradient", "three steps", "evaluation"]


class Wrong(NumpyEngine):
    """Adds to one value of the gradient."""

    def __init__(self, bundle: Bundle, place: int = 0, by: float = 0.01) -> None:
        super().__init__(bundle)
        self.place, self.by = place, by

    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        result = super().step(model, batch, seed)
        gradient = result.gradient.copy()
        gradient[self.place] += self.by * np.abs(gradient).max()
        return replace(result, gradient=gradient)


def _entry(make: Callable[[Bundle], Engine]) -> BackendEntry:
    return BackendEntry(lambda: None, lambda bundle, variant, threads: make(bundle))


def installed(monkeypatch: pytest.MonkeyPatch, *engines: tuple[str, Callable[[Bundle], Engine]]) -> None:
    """These are all the backends there are, in order of preference."""
    table = {name: _entry(make) for name, make in engines}
    monkeypatch.setattr(backends, "BACKENDS", table)
    monkeypatch.setattr("edge_agent.runtimes.certificate.BACKENDS", table)


@given(place=st.integers(0, TOTAL - 1), by=st.floats(0.003, 1e3) | st.floats(-1e3, -0.003) | st.just(float("nan")))
def test_one_wrong_value_of_a_gradient_fails_and_its_tensor_is_named(bundle: Bundle, place: int, by: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        installed(patch, ("numpy", lambda b: Wrong(b, place, by)))
        (replayed,) = certify(bundle)
        assert not replayed.ok
        wrong = {(row.tensor, row.kind) for row in replayed.rows if not row.ok}
        assert ("weight" if place < 6 else "bias", "gradient") in wrong
        with pytest.raises(ConfigurationError, match=r"gradient of (weight|bias) differs from torch's"):
            choose(bundle)


Change = Callable[[dict[str, Array], dict[str, str]], object]

HOSTILE: dict[str, tuple[Change, str]] = {
    "another format": (lambda a, t: t.update(format="2"), "format '2' is not the one"),
    "no examples": (lambda a, t: t.pop("examples"), "'' examples"),
    "too many examples": (lambda a, t: t.update(examples="9999"), "'9999' examples"),
    "negative examples": (lambda a, t: t.update(examples="-1"), "'-1' examples"),
    "digits of another script": (lambda a, t: t.update(examples="٣"), "examples, where"),
    "no batch": (lambda a, t: a.pop("batch/x"), "does not hold batch/x"),
    "an empty batch": (lambda a, t: a.update({"batch/x": np.zeros(0, np.float32)}), "x has 0 values"),
    "too long a batch": (lambda a, t: a.update({"batch/x": np.zeros(13, np.float32)}), "x has 13 values"),
    "a batch of another type": (lambda a, t: a.update({"batch/x": np.zeros(12, np.int64)}), "batch/x is I64"),
    "a target that is no class": (lambda a, t: a.update({"batch/y": np.full(4, 2, np.uint8)}), "classes outside 0..1"),
    "a scale of another size": (lambda a, t: a.update({"scale/x": np.ones(3, np.float32)}), "batch/x is F32"),
    "no gradient": (lambda a, t: a.pop("values/full/gradient"), "does not hold values/full/gradient"),
    "too few values": (lambda a, t: a.update({"values/full/gradient": np.zeros(1, np.float32)}), "1 values for grad"),
    "too many values": (lambda a, t: a.update({"values/full/gradient": np.zeros(9, np.float32)}), "9 values for grad"),
    "no numbers": (lambda a, t: a["values/full/gradient"].fill(np.nan), "gradient of full holds NaN"),
    "an infinite magnitude": (lambda a, t: a["magnitudes/full/gradient"].fill(np.inf), "gradient of full holds NaN"),
    "a negative magnitude": (lambda a, t: a["magnitudes/full/gradient"].fill(-1), "it was altered"),
    "magnitudes of other tensors": (
        lambda a, t: a.update({"magnitudes/full/loss": np.ones(2, np.float32)}),
        "magnitudes/full/loss is F32",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_record_that_lies_is_refused(bundle: Bundle, case: str) -> None:
    change, words = HOSTILE[case]
    arrays, text = contents()
    change(arrays, text)
    with pytest.raises(BundleError, match=words):
        parse_record(bundle.manifest, REFERENCE_FILE, format_tensors(arrays, text))


@given(st.data())
def test_a_record_cut_anywhere_or_altered_is_refused_or_read_and_nothing_else_happens(
    bundle: Bundle, data: st.DataObject
) -> None:
    whole = reference()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(BundleError):
        parse_record(bundle.manifest, REFERENCE_FILE, whole[:cut])
    altered = bytearray(whole)
    altered[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BundleError):
        parse_record(bundle.manifest, REFERENCE_FILE, bytes(altered))


def test_metadata_of_another_kind_is_refused(bundle: Bundle) -> None:
    header = json.dumps({"__metadata__": [1]}).encode()
    with pytest.raises(BundleError, match="format None is not the one"):
        parse_record(bundle.manifest, REFERENCE_FILE, len(header).to_bytes(8, "little") + header)


def test_a_huge_record_or_input_is_refused_before_it_is_read(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.runtimes.reference.MAX_INPUT_ELEMENTS", 11)
    with pytest.raises(BundleError, match="over 11 elements"):
        load_record(bundle)
    monkeypatch.setattr("edge_agent.runtimes.reference.MAX_BYTES", 10)
    with pytest.raises(BundleError, match="over the limit of 10"):
        load_record(bundle)


def test_bytes_become_the_same_floats_everywhere() -> None:
    codes, scale = np.array([0, 1, 128, 255], np.uint8), np.array([-1.7, 0.0137], np.float32)
    assert unscaled(codes, scale).tobytes().hex() == "9a99d9bfaed8d7bfa08b5b3d6891e53f"


def test_a_bundle_without_a_record_cannot_be_certified_but_chosen_from(tmp_path: Path) -> None:
    bare = write_bundle(tmp_path)
    with pytest.raises(BundleError, match="holds no reference steps; export it again"):
        certify(bare)
    assert "torch" not in choose(bare).reason


def test_steps_of_another_model_are_refused(bundle: Bundle) -> None:
    manifest = replace(bundle.manifest, reference=Reference(REFERENCE_FILE, "0" * 64))
    with pytest.raises(BundleError, match="start from another model"):
        certify(replace(bundle, manifest=manifest))


# Probing.


def two_backends(bundle: Bundle) -> Bundle:
    full = bundle.manifest.variants[0]
    both = replace(full, backends=dict.fromkeys(("first", "numpy"), full.backends["numpy"]))
    return replace(bundle, manifest=replace(bundle.manifest, variants=(both,)))


class First(Wrong):
    @property
    def name(self) -> str:
        return "first"


def test_a_backend_that_computes_something_else_here_is_passed_over_with_the_tensor(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, ("first", First), ("numpy", NumpyEngine))
    verdicts: dict[str, str] = {}
    choice = choose(two_backends(bundle), verdicts=verdicts)
    assert choice.engine.name == "numpy"
    assert "first is not usable (it computes something else here: gradient of weight differs" in choice.reason
    assert "; it agrees with torch's recorded step within " in choice.reason
    assert (verdicts["numpy"], "gradient of weight" in verdicts["first"]) == ("", True)
    with pytest.raises(ConfigurationError, match="first: it computes something else here"):
        choose(two_backends(bundle), "first")


def test_a_verdict_is_taken_as_it_is_where_nothing_can_be_compared(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = replace(two_backends(bundle), root=tmp_path)
    installed(monkeypatch, ("first", First), ("numpy", NumpyEngine))
    assert "not compared with torch's recorded step, which is not here" in choose(elsewhere).reason
    choice = choose(elsewhere, verdicts={"first": "wrong", "numpy": ""})
    assert (
        choice.reason
        == "the first usable one, first is not usable (wrong); it agreed with torch's recorded step before"
    )


def test_the_next_backend_is_tried_when_a_graph_does_not_load(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(bundle: Bundle) -> Engine:
        raise BundleError("train.onnx: this runtime is too old")

    installed(monkeypatch, ("first", refuse), ("numpy", NumpyEngine))
    choice = choose(two_backends(bundle))
    assert (choice.engine.name, "first is not usable (train.onnx: this runtime is too old)" in choice.reason) == (
        "numpy",
        True,
    )
    with pytest.raises(BundleError, match=r"first: train\.onnx: this runtime is too old"):
        choose(two_backends(bundle), "first")
    failed = certify(two_backends(bundle))[0]
    assert (failed.ok, failed.ran, failed.failed) == (False, True, "train.onnx: this runtime is too old")
