"""How many bytes an update is likely to have: exact where it can be, near where it cannot, never above the bound."""

import numpy as np
import pytest

from sparse.codecs import Shared, encode_update, max_update_bytes, parse_codec, typical_update_bytes
from sparse.codecs import typical as module

SHAPES = ((60, 40), (40,), (12, 13))
N = 60 * 40 + 40 + 12 * 13
CODECS = (
    *("all/float32", "all/float16", "all/int4@64", "all/int8", "all/qsgd:4@256", "all/sign", "all/drive"),
    *("topk:0.1/float16", "topk:0.05/ternary", "topk:0.1@tensor/int8", "randk:0.1/float16", "powersgd:2/float16"),
)


def packed(codec: str, shared: Shared | None = None, seed: int = 5) -> int:
    delta = np.random.default_rng(seed).normal(0, 0.01, N).astype(np.float32)
    rest = np.zeros(7, np.float32)
    spec = parse_codec(codec)
    return len(encode_update(delta, rest, np.zeros(N, np.float32), spec, bytes(8), shared, delta, SHAPES)[0])


@pytest.mark.parametrize("codec", CODECS)
def test_it_is_what_normal_values_take(codec: str) -> None:
    found = typical_update_bytes(N, 7, parse_codec(codec), shapes=SHAPES)
    assert found == pytest.approx(packed(codec), rel=0.02)
    assert found <= max_update_bytes(N, 7, parse_codec(codec), shapes=SHAPES)


@pytest.mark.parametrize("codec", ["mask/float16", "mask/sign", "topk:0.05/ternary"])
def test_under_a_mask_it_is_what_is_kept_and_reported(codec: str) -> None:
    shared = Shared(np.random.default_rng(3).random(N) < 0.2, report=30)
    found = typical_update_bytes(N, 7, parse_codec(codec), shared, SHAPES)
    assert found == pytest.approx(packed(codec, shared), rel=0.03)


@pytest.mark.parametrize("codec", CODECS)
def test_of_a_long_vector_a_part_is_packed(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = ((300, 200), (200,))
    whole = typical_update_bytes(60_200, 7, parse_codec(codec), shapes=shapes)
    monkeypatch.setattr(module, "MOST_DRAWN", 45_000)
    found = typical_update_bytes(60_200, 7, parse_codec(codec), shapes=shapes)
    assert found == pytest.approx(whole, rel=0.1)
    assert found <= max_update_bytes(60_200, 7, parse_codec(codec), shapes=shapes)


@pytest.mark.parametrize("codec", CODECS)
def test_a_model_without_parameters_is_headers_and_buffers(codec: str) -> None:
    assert typical_update_bytes(0, 7, parse_codec(codec), shapes=()) < 200
