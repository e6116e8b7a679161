"""Width tiers: shapes shrink by the segments, and what is cut out can be put back."""

from dataclasses import replace

import numpy as np
import pytest

from protocol.errors import ConfigurationError
from protocol.manifest import (
    FORMAT,
    ChannelGroup,
    Inference,
    Manifest,
    Port,
    Segment,
    Tensor,
    Variant,
    format_manifest,
    parse_manifest,
)
from protocol.width import first_channels, narrowed, places

WHOLE = (Segment(None, 3),)
C4, G6 = Segment("c", 4), Segment("g", 6)
# A convolution of 4 channels, its norm, a grouped one from a concat of input and channels, a linear layer after a
# flatten of 2 x 1 entries a channel.
MANIFEST = Manifest(
    format=FORMAT,
    line="nets",
    version=1,
    tensors=(
        Tensor("conv.weight", (4, 3), 0, "parameter"),
        Tensor("joined.weight", (6, 7), 12, "parameter"),
        Tensor("head.weight", (5, 12), 54, "parameter"),
        Tensor("head.bias", (5,), 114, "parameter"),
        Tensor("norm.running_mean", (4,), 119, "buffer"),
    ),
    inputs=(Port("x", (3,), "float32"),),
    targets=(Port("y", (), "int64", 5),),
    outputs=(Port("output", (5,), "float32"),),
    loss="cross_entropy",
    metrics=(),
    files=(),
    variants=(Variant("full", {}), Variant("tier-050", {}, keep={"c": 2, "g": 2})),
    inference=Inference("inference.onnx", {}),
    parity={},
    groups=(ChannelGroup("c", 4), ChannelGroup("g", 6, multiple=2)),
    axes={
        "conv.weight": ((C4,), WHOLE),
        "joined.weight": ((G6,), (*WHOLE, C4)),
        "head.weight": ((Segment(None, 5),), (Segment("g", 6, block=2),)),
        "norm.running_mean": ((C4,),),
    },
)
CHANNELS = {"c": np.array([1, 3]), "g": np.array([0, 4])}


def test_a_tier_has_the_same_tensors_in_smaller_shapes_one_after_the_other() -> None:
    seen = narrowed(MANIFEST, "tier-050")
    assert [(t.name, t.shape, t.offset) for t in seen.tensors] == [
        ("conv.weight", (2, 3), 0),
        ("joined.weight", (2, 5), 6),
        ("head.weight", (5, 4), 16),
        ("head.bias", (5,), 36),
        ("norm.running_mean", (2,), 41),
    ]
    assert [v.name for v in seen.variants] == ["tier-050"]
    assert parse_manifest(format_manifest(seen)) == seen


def test_other_variants_see_the_manifest_as_it_is() -> None:
    assert narrowed(MANIFEST, "full") is MANIFEST
    with pytest.raises(ConfigurationError, match="full, tier-050"):
        narrowed(MANIFEST, "tier-025")


def test_places_cut_each_tensor_along_its_axes() -> None:
    model = np.arange(MANIFEST.total, dtype=np.float32)
    cut = model[places(MANIFEST, CHANNELS)]
    conv, joined = model[:12].reshape(4, 3), model[12:54].reshape(6, 7)
    head = model[54:114].reshape(5, 6, 2)
    expected = [
        conv[[1, 3]],
        joined[[0, 4]][:, [0, 1, 2, 4, 6]],
        head[:, [0, 4]],
        model[114:119],
        model[119:][[1, 3]],
    ]
    np.testing.assert_array_equal(cut, np.concatenate([part.ravel() for part in expected]))
    assert len(cut) == narrowed(MANIFEST, "tier-050").total


def test_to_put_a_slice_back_changes_the_slice_and_nothing_else() -> None:
    model = np.random.default_rng(0).normal(size=MANIFEST.total).astype(np.float32)
    where = places(MANIFEST, CHANNELS)
    after = model.copy()
    after[where] = model[where]
    np.testing.assert_array_equal(after, model)
    after[where] = 7.0
    np.testing.assert_array_equal(after[where], 7.0)
    left = np.setdiff1d(np.arange(MANIFEST.total), where)
    np.testing.assert_array_equal(after[left], model[left])
    assert len(np.unique(where)) == len(where)


def test_the_first_channels_are_taken_from_every_part_of_a_group() -> None:
    first = first_channels(MANIFEST, "tier-050")
    assert {name: chosen.tolist() for name, chosen in first.items()} == {"c": [0, 1], "g": [0, 3]}


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ({"c": 2}, "every group"),
        ({"c": 0, "g": 2}, "0 of 4"),
        ({"c": 2, "g": 3}, "3 of 6"),
        ({"c": 5, "g": 2}, "5 of 4"),
    ],
)
def test_a_tier_that_cannot_be_is_refused(keep: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(MANIFEST, variants=(MANIFEST.variants[0], Variant("tier-050", {}, keep=keep)))


def test_segments_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"conv\.weight"):
        replace(MANIFEST, axes={"conv.weight": ((Segment("c", 4),), (Segment(None, 2),))})
    with pytest.raises(ValueError, match=r"norm\.running_mean"):
        replace(MANIFEST, axes={"norm.running_mean": ((Segment("g", 4),),)})
