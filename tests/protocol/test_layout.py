"""What an update of a variant is made of: its parts, its digest, and variants that no manifest may hold."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BundleError, ConfigurationError
from protocol.layout import layout_of, put, take
from protocol.manifest import Manifest, Tensor, Variant, format_manifest, parse_manifest
from tests.tiny import write_bundle

SIZES = {"a": 4, "b": 3, "c": 2, "mean": 3, "fixed": 1}
KINDS = {"a": "parameter", "b": "parameter", "c": "parameter", "mean": "buffer", "fixed": "frozen"}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    tensors, offset = [], 0
    for name, size in SIZES.items():
        tensors.append(Tensor(name, (size,), offset, KINDS[name]))  # type: ignore[arg-type]
        offset += size
    return replace(write_bundle(tmp_path).manifest, tensors=tuple(tensors), variants=(Variant("full", {}),))


def with_variant(manifest: Manifest, **changes: object) -> Manifest:
    held = Variant(**{"name": "part", "backends": {}, **changes})  # type: ignore[arg-type]
    return replace(manifest, variants=(Variant("full", {}), held))


def test_the_full_variant_is_one_part_of_parameters_and_one_of_buffers(manifest: Manifest) -> None:
    layout = layout_of(manifest, "full")
    assert (layout.parameters, layout.buffers) == ((slice(0, 9),), (slice(9, 12),))
    assert (layout.n_parameters, layout.n_buffers) == (9, 3)


def test_the_full_variants_digest_is_what_it_was_before_there_were_others(manifest: Manifest) -> None:
    # Devices of the version before send updates under this digest.
    assert layout_of(manifest, "full").digest.hex() == "89c1b4d09cdaab8f"


def test_a_variant_is_made_of_what_it_trains_and_moves(manifest: Manifest) -> None:
    part = with_variant(manifest, frozen=("b",), frozen_buffers=("mean",))
    layout = layout_of(part, "part")
    assert (layout.parameters, layout.buffers) == ((slice(0, 4), slice(7, 9)), ())
    vector = np.arange(13, dtype=np.float32)
    assert take(vector, layout.parameters).tolist() == [0, 1, 2, 3, 7, 8]
    assert take(vector, layout.buffers).tolist() == []


def test_shapes_are_those_of_the_trained_tensors_in_their_order(manifest: Manifest) -> None:
    shapes = {tensor.name: tuple(tensor.shape) for tensor in manifest.tensors if tensor.kind == "parameter"}
    assert layout_of(manifest, "full").shapes == tuple(shapes.values())
    part = layout_of(with_variant(manifest, frozen=("b",)), "part")
    assert part.shapes == tuple(shape for name, shape in shapes.items() if name != "b")
    assert sum(math.prod(shape) for shape in part.shapes) == part.n_parameters


def test_variants_that_train_different_tensors_have_different_digests(manifest: Manifest) -> None:
    schemes: list[dict[str, object]] = [{}, {"frozen": ("a",)}, {"frozen": ("b",)}, {"frozen_buffers": ("mean",)}]
    digests = {layout_of(with_variant(manifest, **scheme), "part").digest for scheme in schemes}
    assert len(digests) == len(schemes)


def test_a_variant_that_is_not_there_is_refused_with_the_names_of_those_that_are(manifest: Manifest) -> None:
    with pytest.raises(ConfigurationError, match="'half' is not in this bundle; it holds full, part"):
        layout_of(with_variant(manifest), "half")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=5), st.integers(0, 2**32))
def test_what_is_put_back_where_it_was_taken_changes_nothing_and_nothing_else_moves(
    gaps: list[tuple[int, int]], seed: int
) -> None:
    parts, at = [], 0
    for gap, size in gaps:
        parts.append(slice(at + gap, at + gap + size))
        at = parts[-1].stop
    vector = np.random.default_rng(seed).normal(size=at + 1).astype(np.float32)
    moved = vector.copy()
    put(moved, parts, take(vector, parts) + 1)
    inside = np.zeros(at + 1, bool)
    for part in parts:
        inside[part] = True
    np.testing.assert_array_equal(moved, np.where(inside, vector + 1, vector))


WRONG: dict[str, tuple[str, tuple[Variant, ...]]] = {
    "a tensor that does not exist": ("'z', which is no parameter", (Variant("part", {}, (), ("z",)),)),
    "a buffer as a parameter": ("'mean', which is no parameter", (Variant("part", {}, (), ("mean",)),)),
    "a parameter as a buffer": ("'a', which is no buffer", (Variant("part", {}, (), (), ("a",)),)),
    "a tensor twice": ("freezes a parameter twice", (Variant("part", {}, (), ("a", "a")),)),
    "all of them": ("leave at least one", (Variant("part", {}, (), ("a", "b", "c")),)),
    "something in full": ("trains everything", (Variant("full", {}, (), ("a",)),)),
    "a variant twice": ("is there twice", (Variant("part", {}), Variant("part", {}))),
    "a name that leaves the folder": ("'../etc' must be", (Variant("../etc", {}),)),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_manifest_that_freezes_wrongly_is_refused_by_the_variants_name(case: str, manifest: Manifest) -> None:
    said, variants = WRONG[case]
    with pytest.raises(ValueError, match=said):
        replace(manifest, variants=variants)


def test_a_manifests_file_that_freezes_wrongly_is_refused(manifest: Manifest) -> None:
    written = format_manifest(manifest).decode()
    broken = written.replace('"name": "full"', '"frozen": ["z"], "name": "part"', 1)
    with pytest.raises(BundleError, match="'z', which is no parameter"):
        parse_manifest(broken.encode())


def test_a_manifest_with_variants_is_read_as_it_was_written(manifest: Manifest) -> None:
    part = with_variant(manifest, frozen=("b",), frozen_buffers=("mean",))
    assert parse_manifest(format_manifest(part)) == part
