"""Masks under which every output still reads something."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparse.masks import Mask
from sparse.outputs import every_output_kept
from sparse.tensors import FlatTensor


def tensors(outputs: int, inputs: int) -> tuple[FlatTensor, ...]:
    weight = FlatTensor("weight", 3, (outputs, inputs), True)
    return FlatTensor("bias", 0, (3,), False), weight, FlatTensor("fixed", 3 + weight.size, (2, 2), False)


def mask_of(rows: list[list[int]]) -> Mask:
    return np.concatenate([np.ones(3), np.array(rows).ravel(), np.ones(4)]).astype(np.bool_)


def test_an_output_without_weights_gets_its_best_in_place_of_the_least_of_others() -> None:
    scores = np.array([0, 0, 0, 9, 8, 7, 1, 2, 2, 5, 4, 6, 0, 0, 0, 0], np.float32)
    found = every_output_kept(tensors(3, 3), scores, mask_of([[1, 1, 1], [0, 0, 0], [0, 0, 1]]))
    assert found.tolist() == mask_of([[1, 1, 0], [0, 1, 0], [0, 0, 1]]).tolist()


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 30), st.randoms(use_true_random=False))
def test_the_number_stays_and_as_many_outputs_as_can_be_are_kept(
    outputs: int, inputs: int, kept: int, random: object
) -> None:
    rng = np.random.default_rng(random.randrange(1 << 30))  # type: ignore[attr-defined]
    kept = min(kept, outputs * inputs)
    chosen = rng.permutation([1] * kept + [0] * (outputs * inputs - kept)).reshape(outputs, inputs)
    mask = mask_of(chosen.tolist())
    before = mask.copy()
    found = every_output_kept(tensors(outputs, inputs), rng.random(len(mask), np.float32), mask)
    assert found.sum() == mask.sum()
    assert found[3 : 3 + outputs * inputs].reshape(outputs, inputs).any(1).sum() == min(outputs, kept)
    assert found[:3].all()
    assert found[3 + outputs * inputs :].all()
    assert (mask == before).all()
