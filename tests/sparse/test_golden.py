"""Golden bytes: payloads of version 1, which every later version 1 must write and read alike."""

import numpy as np
import pytest

from sparse.codecs import decode, decode_update, encode, encode_update, parse_codec

LAYOUT = bytes(range(8))
VECTOR = np.array([0.5, -2.0, 0.0, 1e-3, 70000.0, -0.25, 3.0, 0.1, 0, 0, -1.5, 0], np.float32)

# magic, version and codec | d | k | layout | body length | CRC | body, here in groups of four bytes.
GOLDEN = {
    "all/float32": "53464c56 01000000 0c000000 0c000000 00010203 04050607 30000000 00000000 38684eed 0000003f 000000c0 "
    "00000000 6f12833a 00b88847 000080be 00004040 cdcccc3d 00000000 00000000 0000c0bf 00000000",
    "all/float16": "53464c56 01000100 0c000000 0c000000 00010203 04050607 18000000 00000000 2b94519e 003800c0 00001914 "
    "ff7b00b4 0042662e 00000000 00be0000",
    # Indices 1, 4, 6, 10: gaps 1, 2, 1, 3 at width 1 are quotients 1 01 1 01 = 2d and remainders 1 0 1 1 = 0d.
    "topk:0.3/float32/rice": "53464c56 01010002 0c000000 04000000 00010203 04050607 13000000 00000000 5c12ebaf "
    "012d0d00 0000c000 b8884700 00404000 00c0bf",
    "topk:0.3/float16/rice": "53464c56 01010102 0c000000 04000000 00010203 04050607 0b000000 00000000 af040c4c "
    "012d0d00 c0ff7b00 4200be",
    "topk:0.3/float32/bitmap": "53464c56 01010001 0c000000 04000000 00010203 04050607 12000000 00000000 43476fe3 "
    "52040000 00c000b8 88470000 40400000 c0bf",
    "topk:0.3/float16/bitmap": "53464c56 01010101 0c000000 04000000 00010203 04050607 0a000000 00000000 bde46ab5 "
    "520400c0 ff7b0042 00be",
}

# The body begins with the first eight bytes of the mask's digest.
MASK = np.array([0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0], np.bool_)
GOLDEN_ON_MASK = {
    "mask/float32": "53464c56 01020003 0c000000 04000000 00010203 04050607 18000000 00000000 0812eabc 38003cf5 "
    "b8ec261d 000000c0 00b88847 00004040 0000c0bf",
    "mask/float16": "53464c56 01020103 0c000000 04000000 00010203 04050607 10000000 00000000 bdd029e5 38003cf5 "
    "b8ec261d 00c0ff7b 004200be",
}


# Halves of these values, except 0.001, 0.1 and 70000, are exact; the last is clipped.
HALVES = [0.5, -2.0, 0.0, 0.0010004043579101562, 65504.0, -0.25, 3.0, 0.0999755859375, 0, 0, -1.5, 0]
TOP = [0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_format_is_still_what_it_was(name: str) -> None:
    golden, spec = bytes.fromhex(GOLDEN[name]), parse_codec(name)
    assert encode(VECTOR, spec, LAYOUT).hex() == golden.hex()
    arrives = np.array(HALVES, np.float32) if spec.values == "float16" else VECTOR
    if spec.selection == "topk":
        arrives = arrives * np.array(TOP, np.float32)
    np.testing.assert_array_equal(decode(golden, len(VECTOR), LAYOUT, spec), arrives)


@pytest.mark.parametrize("name", GOLDEN_ON_MASK)
def test_the_format_on_a_shared_mask_is_still_what_it_was(name: str) -> None:
    golden, spec = bytes.fromhex(GOLDEN_ON_MASK[name]), parse_codec(name)
    assert encode(VECTOR, spec, LAYOUT, MASK).hex() == golden.hex()
    arrives = np.array(HALVES, np.float32) if spec.values == "float16" else VECTOR
    np.testing.assert_array_equal(decode(golden, len(VECTOR), LAYOUT, spec, MASK), arrives * MASK)


def test_an_update_is_the_frame_of_its_parameters_and_then_the_frame_of_its_buffers() -> None:
    buffers = np.array([1.0, -1.0], np.float32)
    golden = bytes.fromhex(
        GOLDEN["topk:0.3/float16/rice"]
        + "53464c56 01000000 02000000 02000000 00010203 04050607 08000000 00000000 862e4622 0000803f 000080bf"
    )
    spec = parse_codec("topk:0.3/float16/rice")
    assert encode_update(VECTOR, buffers, np.zeros_like(VECTOR), spec, LAYOUT)[0].hex() == golden.hex()
    assert decode_update(golden, 12, 2, LAYOUT)[1].tobytes() == buffers.tobytes()
