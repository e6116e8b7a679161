"""Golden files: a payload of every format of version 2, which every later reader of version 2 must read alike.

golden/formats.json has for each codec the payload of `VECTOR` in hexadecimal, and the SHA-256 of what it decodes to.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from sparse.codecs import decode, encode, parse_codec
from sparse.codecs.header import INDICES, SELECTIONS, VALUES

GOLDEN = json.loads((Path(__file__).parent / "golden" / "formats.json").read_text())
LAYOUT = bytes(range(8))
SHAPES = ((20, 4, 5), (20,), (12, 15))
D = 600
# Whole numbers and powers of two, so that every machine has it: few large values, many small.
WHOLE = np.arange(D) * 7919 % 1009 - 504
VECTOR = (WHOLE**3 / 2.0**27).astype(np.float32)
MASK = np.arange(D) % 3 == 0


@pytest.mark.parametrize("name", GOLDEN)
def test_the_files_are_still_read_as_they_were(name: str) -> None:
    payload, mask = bytes.fromhex(GOLDEN[name]["payload"]), MASK if name.startswith("mask") else None
    arrived = decode(payload, D, LAYOUT, parse_codec(name), mask, SHAPES)
    assert hashlib.sha256(arrived.astype("<f4").tobytes()).hexdigest() == GOLDEN[name]["decoded"]


# The factors are products of matrices, whose last bits are the machine's.
@pytest.mark.parametrize("name", [name for name in GOLDEN if not name.startswith("powersgd")])
def test_the_files_are_still_written_as_they_were(name: str) -> None:
    assert encode(VECTOR, parse_codec(name), LAYOUT, MASK, SHAPES, 5).hex() == GOLDEN[name]["payload"]


def test_there_is_a_file_for_every_number_in_the_header_but_those_of_version_1() -> None:
    payloads = [bytes.fromhex(golden["payload"]) for golden in GOLDEN.values()]
    assert {payload[4] for payload in payloads} == {2}
    assert {payload[5] for payload in payloads} == set(range(len(SELECTIONS)))
    assert {payload[6] for payload in payloads} >= set(range(1, len(VALUES)))
    assert {payload[7] for payload in payloads} == set(range(len(INDICES)))
    # Levels as plain bits and by rANS.
    assert {payload[41] for payload in payloads if payload[5:7] == b"\0\3"} == {0, 1}
