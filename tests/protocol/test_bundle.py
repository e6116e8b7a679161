"""Bundles: what a manifest may say, and that no altered file is taken."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol import manifest as module
from protocol.bundle import PARAMETERS_FILE, deploy, open_bundle
from protocol.errors import BundleError
from protocol.layout import layout_of
from protocol.manifest import FORMAT, MANIFEST_FILE, Dropout, Manifest, format_manifest, parse_manifest

FILES = {"train.onnx": b"train", "portable/eval.onnx": b"eval" * 100, PARAMETERS_FILE: b"p" * 24}


def entry(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def source() -> dict[str, Any]:
    """A manifest as JSON has it: three tensors in six elements, the middle one a buffer that is not deployed."""
    return {
        "format": FORMAT,
        "line": "tiny",
        "version": 1,
        "tensors": [
            {"name": "w", "shape": [2, 1], "offset": 0, "kind": "parameter", "prunable": True},
            {"name": "mean", "shape": [3], "offset": 2, "kind": "buffer", "prunable": False},
            {"name": "b", "shape": [], "offset": 5, "kind": "frozen", "prunable": False},
        ],
        "inputs": [{"name": "x", "shape": [4], "dtype": "float32"}],
        "targets": [{"name": "y", "shape": [], "dtype": "int64", "classes": 3}],
        "outputs": [{"name": "out", "shape": [3], "dtype": "float32"}],
        "loss": "cross_entropy",
        "metrics": ["accuracy"],
        "files": [entry(path, data) for path, data in FILES.items()],
        "variants": [{"name": "full", "backends": {"portable": {"files": {"train": "train.onnx"}, "requires": "ort"}}}],
        "inference": {"path": "train.onnx", "places": {"w": 1, "b": 12}},
        "parity": {},
    }


def parse(said: object) -> Manifest:
    return parse_manifest(json.dumps(said).encode())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, data in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    (tmp_path / MANIFEST_FILE).write_bytes(format_manifest(parse(source())))
    return tmp_path


def test_a_manifest_is_written_as_it_is_read_and_always_the_same() -> None:
    manifest = parse(source())
    assert parse_manifest(format_manifest(manifest)) == manifest
    assert json.loads(format_manifest(manifest)) == source()
    assert (manifest.parameters, manifest.buffers, manifest.total) == (2, 3, 6)


def test_the_layout_digest_changes_with_the_layout_alone() -> None:
    said = source()
    layout = layout_of(parse(said), "full")
    assert layout_of(parse(said | {"version": 2, "line": "other"}), "full") == layout
    said["tensors"][0]["shape"] = [1, 2]
    assert layout_of(parse(said), "full").digest != layout.digest


def mask(**changes: object) -> dict[str, object]:
    return {"name": "m", "shape": [2, 3], "rate": 0.5, **changes}


def test_a_bundle_from_before_there_was_dropout_still_loads_and_one_with_it_is_read_as_written() -> None:
    assert parse(source()).variants[0].dropouts == ()
    said = source()
    said["variants"][0]["dropouts"] = [mask()]
    manifest = parse(said)
    assert manifest.variants[0].dropouts == (Dropout("m", (2, 3), 0.5),)
    assert json.loads(format_manifest(manifest)) == said


def put(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(said: Any) -> None:
        for key in path[:-1]:
            said = said[key]
        said[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("format", value=1), "format: 1 is not the format"),
        (put("extra", value=1), "extra: unknown key"),
        (put("tensors", 0, "extra", value=1), "tensors[0].extra: unknown key"),
        (put("tensors", value=[]), "inputs: a bundle has at least"),
        (put("tensors", 1, "offset", value=3), "tensors: mean is out of place"),
        (put("tensors", 1, "name", value="w"), "tensors: w is out of place or named twice"),
        (put("tensors", 2, "kind", value="parameter"), "tensors: b is out of place"),
        (put("tensors", 0, "kind", value="weight"), "tensors[0].kind: 'weight' is not one of"),
        (put("tensors", 0, "shape", value=[-1, -2]), "tensors: w has an impossible shape"),
        (put("tensors", 0, "shape", value=[1 << 16, 1 << 16]), "tensors: w has an impossible shape"),
        (put("tensors", 0, "shape", value=[1] * 17), "tensors: w has an impossible shape"),
        (put("tensors", 0, "shape", value=[10**300] * 200), "tensors: w has an impossible shape"),
        (put("tensors", 0, "shape", value=[2, 1.5]), "tensors[0].shape[1]: expected int"),
        (put("inputs", 0, "dtype", value="float64"), "inputs[0].dtype: 'float64' is not one of"),
        (put("metrics", value=["f1"]), "metrics[0]: 'f1' is not one of"),
        (put("files", 0, "path", value="../x"), "files[0].path: '../x' must stay inside"),
        (put("files", 0, "path", value="/etc/passwd"), "files[0].path: '/etc/passwd' must stay inside"),
        (put("files", 0, "path", value="a/./b"), "files[0].path: 'a/./b' must stay inside"),
        (put("files", 0, "path", value="a//b"), "files[0].path: 'a//b' must stay inside"),
        (put("files", 0, "path", value="a\\..\\b"), "files[0].path: 'a\\\\..\\\\b' must stay inside"),
        (put("files", 0, "path", value=""), "files[0].path: '' must stay inside"),
        (put("files", 0, "path", value="a\0b"), "files[0].path: 'a\\x00b' has characters"),
        (put("files", 0, "path", value="\ud800"), "it has characters beyond U+FFFF"),
        (put("files", 0, "size", value=-1), "files[0].sha256: 'train.onnx' has no valid size"),
        (put("files", 0, "sha256", value="abc"), "files[0].sha256: 'train.onnx' has no valid size"),
        (put("inference", "places", "w", value="1"), "inference.places.w: expected int"),
        (put("variants", 0, "dropouts", value=[mask(rate=0.0)]), "variants[0].dropouts[0].rate: 0.0 of 'm' is not"),
        (put("variants", 0, "dropouts", value=[mask(rate=1.5)]), "variants[0].dropouts[0].rate: 1.5 of 'm' is not"),
        (put("variants", 0, "dropouts", value=[mask(shape=[1 << 16] * 2)]), "variants[0].dropouts[0].shape: 'm' has"),
        (put("variants", 0, "dropouts", value=[mask(shape=[-1])]), "variants[0].dropouts[0].shape: 'm' has"),
        (put("variants", 0, "backends", "portable", "requires", value=1), "variants[0].backends.portable.requires"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_wrong_in_a_manifest_is_named(change: Callable[[dict[str, Any]], None], said: str) -> None:
    wrong = source()
    change(wrong)
    with pytest.raises(BundleError) as caught:
        parse(wrong)
    assert str(caught.value).startswith(f"{MANIFEST_FILE}: {said}")


@pytest.mark.parametrize("key", sorted(source()))
def test_a_missing_key_is_named(key: str) -> None:
    said = source()
    del said[key]
    with pytest.raises(BundleError, match=f"{key}: missing"):
        parse(said)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"format": ' + b"1" * 10_000 + b"}"],
    ids=lambda v: repr(v)[:20],
)
def test_nonsense_is_no_manifest(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data)


def test_too_much_is_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="over the limit of 4194304"):
        parse_manifest(b" " * (module.MAX_MANIFEST_BYTES + 1))
    # What was parsed a moment ago is remembered, and the limit was another then.
    parse_manifest.cache_clear()
    monkeypatch.setattr(module, "MAX_TENSORS", 2)
    with pytest.raises(BundleError, match="tensors: 3 is more than the limit of 2"):
        parse(source())
    monkeypatch.setattr(module, "MAX_TENSORS", 3)
    monkeypatch.setattr(module, "MAX_ELEMENTS", 5)
    with pytest.raises(BundleError, match="tensors: 6 elements are more than the limit of 5"):
        parse(source())


def test_a_bundle_opens_and_finds_its_files(root: Path) -> None:
    bundle = open_bundle(root)
    assert bundle.path("portable/eval.onnx") == root / "portable/eval.onnx"
    assert bundle.digest == hashlib.sha256((root / MANIFEST_FILE).read_bytes()).digest()
    with pytest.raises(BundleError, match=r"names 'other.onnx' but does not list it"):
        bundle.path("other.onnx")


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a bundle, .*make one with fleet-export"):
        open_bundle(tmp_path)


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def alter(path: Path) -> None:
    path.write_bytes(b"\x00" + path.read_bytes()[1:])


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove, "missing from the bundle"),
        (truncate, "bytes where the manifest says"),
        (alter, "SHA-256 differs"),
        (make_folder, "missing from the bundle"),
        (make_pipe, "missing from the bundle"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
@pytest.mark.parametrize("file", sorted(FILES))
def test_a_damaged_file_is_named_unless_it_was_not_asked_for(
    root: Path, file: str, damage: Callable[[Path], None], said: str
) -> None:
    damage(root / file)
    with pytest.raises(BundleError, match=said) as caught:
        open_bundle(root)
    assert str(root / file) in str(caught.value)
    open_bundle(root, only=frozenset(FILES) - {file})


GRAPH = bytes(range(100, 120))
MODEL = np.arange(6, dtype=np.float32)


def test_a_model_is_deployed_into_its_places_and_nowhere_else() -> None:
    out = deploy(GRAPH, parse(source()), MODEL)
    assert len(out) == len(GRAPH)
    assert np.frombuffer(out[1:9], "<f4").tolist() == [0, 1]
    assert np.frombuffer(out[12:16], "<f4").tolist() == [5]
    assert out[:1] + out[9:12] + out[16:] == GRAPH[:1] + GRAPH[9:12] + GRAPH[16:]


@pytest.mark.parametrize("place", [-1, 13, 20, 1 << 70])
def test_a_place_outside_the_file_is_refused(place: int) -> None:
    said = source()
    said["inference"]["places"]["w"] = place
    with pytest.raises(BundleError, match="the place of w lies outside the file"):
        deploy(GRAPH, parse(said), MODEL)


@pytest.mark.parametrize("shape", [(5,), (7,), (6, 1), ()])
def test_a_model_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match=r"where the manifest says \(6,\)"):
        deploy(GRAPH, parse(source()), np.zeros(shape, np.float32))
