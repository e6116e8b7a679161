"""JSON that would take many times its own length in memory is refused before it is decoded."""

import json
import tracemalloc

import pytest

from protocol.bounded_json import MAX_VALUES, loads

LIMIT = 4 << 20


@pytest.mark.parametrize("said", [{"a": [1, 2.5, None, True, "é", "\\"]}, [], "x", 1])
def test_what_others_write_is_read_as_they_read_it(said: object) -> None:
    for text in (json.dumps(said), json.dumps(said, ensure_ascii=False, indent=1)):
        assert loads(text.encode()) == said


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" + b"0," * MAX_VALUES + b"0]", "over the limit"),
        (b"[" + b"{}," * (MAX_VALUES // 2) + b"0]", "over the limit"),
        (b'"' + b"x" * (1 << 17) + b'"', "a text is longer"),
        ("\U0001f600".encode(), "beyond U"),
        (b'"\\ud83d\\ude00"', "beyond U"),
        ('{"a": 1}'.encode("utf-16"), "beyond U"),
        ('{"a": 1}'.encode("utf-16-le"), "Expecting"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"{", "Expecting"),
    ],
)
def test_what_is_too_much_or_none_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        loads(data)


@pytest.mark.parametrize(
    "data",
    [
        b"[" + b",".join([b'{"a":0}'] * (MAX_VALUES // 3 - 1)) + b"]",
        b"[" + b",".join([b'{"a":' * 60 + b"0" + b"}" * 60] * (MAX_VALUES // 121 - 1)) + b"]",
        b"[" + b",".join([b'"' + b"\\u1234" * 8 + b'"'] * (MAX_VALUES - 1)) + b"]",
    ],
    ids=["tables", "nested tables", "texts of two bytes a character"],
)
def test_no_json_of_a_manifests_length_takes_four_times_its_limit(data: bytes) -> None:
    data += b" " * (LIMIT - len(data))
    tracemalloc.start()
    loads(data[:LIMIT]) if len(data) <= LIMIT else loads(data[: LIMIT - 1].rpartition(b",")[0] + b"]")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * LIMIT
