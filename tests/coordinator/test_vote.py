"""The fleet's vote on a mask: what the fold makes of ballots, and what is refused."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from coordinator.fold import Weighted, fold
from coordinator.forecast import forecast
from coordinator.intake import check_payload
from coordinator.robust import robust_fold
from coordinator.server_step import initial_state
from coordinator.settings import (
    DownlinkSettings,
    ServerSettings,
    SparsitySettings,
    TrainingSettings,
)
from coordinator.structure import Structure, pack_structure, unpack_structure
from coordinator.trust_settings import FoldSettings, PrivacySettings
from coordinator.vote import ballot_delta, check_masking, elected, vote
from coordinator.vote_settings import MaskingSettings
from edge_agent.runtimes.engine import Vector
from protocol.errors import ConfigurationError, Rejection
from protocol.layout import maskable_layout
from protocol.manifest import Tensor
from protocol.messages import OptimizerSpec
from sparse.codecs import BALLOT, ballot_bytes, encode_ballot
from sparse.masks import Mask
from tests.coordinator.masking_fleet import ADAM, FEATURES, D, N, settings_of
from tests.tiny import CLASSES, write_bundle

with TemporaryDirectory() as _folder:
    MANIFEST = write_bundle(Path(_folder), features=FEATURES).manifest
LAYOUT = maskable_layout(MANIFEST)


def of_masks(masks: list[Mask], chances: Vector, weights: list[int], rate: float = 1.0) -> Structure:
    """What the fold and the server step make of these masks of all weights, after `chances`."""
    bundle_layout, n = LAYOUT, len(chances)
    payloads = {f"d{i}": encode_ballot(mask, bundle_layout.digest) for i, mask in enumerate(masks)}
    updates = [Weighted(f"d{i}", weight, bundle_layout) for i, weight in enumerate(weights)]
    folded = fold(updates, lambda u: ballot_delta(payloads[u.device], bundle_layout.digest, chances[:D]), n, 0)
    return vote(ServerSettings(learning_rate=rate), initial_state(), MANIFEST, chances, folded)[1]


def drawn_mask(seed: int) -> Mask:
    return np.random.default_rng(seed).random(D) < 0.6


START = np.concatenate([np.full(D, 0.9, np.float32), np.ones(CLASSES, np.float32)])


def test_the_vote_of_identical_masks_is_that_mask() -> None:
    mask = drawn_mask(1)
    made = of_masks([mask] * 5, START, [3, 1, 4, 1, 5])
    assert made.mask is not None
    np.testing.assert_array_equal(made.mask[:D], mask)
    assert made.mask[D:].all()


def test_of_one_device_the_vote_is_its_mask() -> None:
    mask = drawn_mask(2)
    made = of_masks([mask], START, [7])
    assert made.mask is not None
    np.testing.assert_array_equal(made.mask[:D], mask)


def test_the_vote_is_the_mean_of_masks_by_examples_and_a_tie_stays() -> None:
    yes, no = np.ones(D, np.bool_), np.zeros(D, np.bool_)
    tied = of_masks([yes, no], START, [5, 5])
    assert tied.mask is not None
    assert tied.mask.all()
    outvoted = of_masks([yes, no], START, [5, 6])
    assert outvoted.mask is not None
    assert not outvoted.mask[:D].any()
    assert outvoted.chances is not None
    np.testing.assert_allclose(outvoted.chances[:D], 5 / 11, rtol=1e-5)


def test_with_a_smaller_rate_older_votes_count_too() -> None:
    made = of_masks([np.zeros(D, np.bool_)], START, [1], rate=0.25)
    assert made.chances is not None
    np.testing.assert_allclose(made.chances[:D], 0.9 * 0.75, rtol=1e-5)


def test_the_order_of_devices_changes_no_bit_of_the_vote() -> None:
    masks = [drawn_mask(seed) for seed in range(6)]
    one, other = of_masks(masks, START, [1, 2, 3, 4, 5, 6]), of_masks(masks[::-1], START, [6, 5, 4, 3, 2, 1])
    assert one.chances is not None
    assert other.chances is not None
    np.testing.assert_allclose(one.chances, other.chances, rtol=1e-6)


def test_a_structure_with_chances_comes_back_from_its_bytes() -> None:
    made = elected(START * np.float32(0.6))
    again = unpack_structure(pack_structure(made))
    assert again.mask is not None
    assert again.chances is not None
    assert made.chances is not None
    np.testing.assert_array_equal(again.mask, made.mask)
    assert again.chances.tobytes() == made.chances.tobytes()


# What is refused


def test_an_altered_or_foreign_ballot_is_refused_with_its_reason() -> None:
    chances = START[:D]

    def checked(payload: bytes) -> str:
        found = check_payload(payload, BALLOT, LAYOUT, START, None, chances)
        return found.reason if isinstance(found, Rejection) else "taken"

    good = encode_ballot(drawn_mask(1), LAYOUT.digest)
    assert checked(good) == "taken"
    assert checked(good[:-1]) == "length"
    assert checked(encode_ballot(drawn_mask(1), bytes(8))) == "layout"
    assert checked(good[:-1] + bytes([good[-1] ^ 1])) == "checksum"


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("training.codec", {"training": TrainingSettings(10, 0.3, 8, codec="topk:0.1/int8", optimizer=ADAM)}),
        ("training.optimizer.name", {"training": TrainingSettings(10, 0.3, 8, optimizer=OptimizerSpec("qg", 0.9))}),
        (
            "training.optimizer.keep_momentum",
            {"training": TrainingSettings(10, 0.3, 8, optimizer=OptimizerSpec(momentum=0.9, keep_momentum=True))},
        ),
        (
            "training.optimizer.weight_decay",
            {"training": TrainingSettings(10, 0.3, 8, optimizer=OptimizerSpec("adamw", weight_decay=0.1))},
        ),
        ("sparsity.final", {"sparsity": SparsitySettings(0.5, report_every=0)}),
        ("downlink.codec", {"downlink": DownlinkSettings("all/int8")}),
        ("privacy.noise_multiplier", {"privacy": PrivacySettings(1.0)}),
    ],
)
def test_what_cannot_go_with_frozen_weights_is_refused_by_its_key(
    tmp_path: Path, key: str, changed: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=f"^{key}: "):
        replace(settings_of(tmp_path, 3, 3), **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [0.5, 1.0, -0.1])
def test_a_chance_to_begin_with_that_is_none_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match=r"keep: .* must be above 0.5 and below 1"):
        MaskingSettings(keep)


def test_a_bundle_whose_weights_cannot_be_masked_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, 3, 3)
    nothing = replace(MANIFEST, tensors=tuple(replace(t, prunable=False) for t in MANIFEST.tensors))
    with pytest.raises(ConfigurationError, match=r"no tensor of the bundle may be masked; export it with"):
        check_masking(settings, nothing)
    pruned = write_bundle(tmp_path / "pruned", mask=np.ones(CLASSES * 4, np.bool_)).manifest
    with pytest.raises(ConfigurationError, match=r"pruned already; export it without --sparsity"):
        check_masking(settings, pruned)
    mean = Tensor("mean", (2,), N, "buffer")
    moving = replace(MANIFEST, tensors=(*MANIFEST.tensors, mean))
    with pytest.raises(ConfigurationError, match=r"running statistics \(mean\).*GroupNorm"):
        check_masking(settings, moving)


def test_robust_rules_hold_a_liar_off() -> None:
    honest, chances = np.ones(D, np.bool_), START
    payloads = {f"d{i}": encode_ballot(honest, LAYOUT.digest) for i in range(4)}
    payloads["d4"] = encode_ballot(~honest, LAYOUT.digest)
    updates = [Weighted(name, 1_000_000 if name == "d4" else 1, LAYOUT) for name in payloads]
    folded = robust_fold(
        *(FoldSettings("median"), updates, lambda u: ballot_delta(payloads[u.device], LAYOUT.digest, chances[:D])),
        *(N, 0, Path()),
    )
    made = vote(ServerSettings(), initial_state(), MANIFEST, chances, folded)[1]
    assert made.mask is not None
    assert made.mask.all()
    assert ballot_bytes(D) == len(payloads["d4"])


def test_what_a_ballot_costs_is_said_beforehand(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", features=1000)
    settings = settings_of(tmp_path, 3, 3)
    (row,) = forecast(settings, bundle, ("all/float32",), 3, 60.0, 1000.0)
    (weights,) = [
        row
        for row in forecast(replace(settings, masking=MaskingSettings()), bundle, ("all/float32",), 3, 60.0, 1000.0)
        if row.variant == "full"
    ]
    assert row.codec == BALLOT
    assert 4 * 2000 - 2000 / 8 < weights.bytes_up - row.bytes_up < 4 * 2002
    # A byte a weight in place of the model, and their name in the task.
    assert 2.9 * 2000 < weights.bytes_down - row.bytes_down < 3 * 2010
