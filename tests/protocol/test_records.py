"""Typed records from untyped mappings: what is wrong is named by its path."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from protocol.records import RecordError, read_record, write_record


@dataclass(frozen=True, slots=True)
class Inner:
    size: int
    name: str = "x"

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size: {self.size} must not be negative")


@dataclass(frozen=True, slots=True)
class Outer:
    flag: bool
    ratio: float
    mode: Literal["a", "b"]
    raw: bytes
    inner: Inner
    items: tuple[Inner, ...] = ()
    table: Mapping[str, int] = field(default_factory=dict)
    maybe: int | None = None
    either: int | str = 0


GOOD: dict[str, Any] = {"flag": True, "ratio": 2, "mode": "a", "raw": b"r", "inner": {"size": 1}}
FULL = Outer(True, 2.0, "b", b"r", Inner(1), (Inner(2), Inner(3, "y")), {"k": 1}, 4, "text")


def test_a_record_is_read_with_its_defaults() -> None:
    assert read_record(Outer, GOOD) == Outer(True, 2.0, "a", b"r", Inner(1))
    assert isinstance(read_record(Outer, GOOD).ratio, float)


@pytest.mark.parametrize("record", [FULL, Outer(False, 0.5, "a", b"", Inner(0))])
def test_what_is_written_is_read_again(record: Outer) -> None:
    assert read_record(Outer, write_record(record)) == record


def test_a_none_that_is_the_default_is_left_out() -> None:
    assert "maybe" not in write_record(Outer(False, 0.5, "a", b"", Inner(0)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"flag": 1}, "flag: expected bool, found int 1"),
        ({"flag": "true"}, "flag: expected bool"),
        ({"ratio": True}, "ratio: expected float, found bool True"),
        ({"ratio": "2"}, "ratio: expected float"),
        ({"mode": "c"}, "mode: 'c' is not one of 'a', 'b'"),
        ({"mode": ["a"]}, "mode: ['a'] is not one of"),
        ({"raw": "r"}, "raw: expected bytes"),
        ({"inner": 3}, "inner: expected a table of keys, found int 3"),
        ({"inner": {}}, "inner.size: missing"),
        ({"inner": {"size": True}}, "inner.size: expected int"),
        ({"inner": {"size": -1}}, "inner.size: -1 must not be negative"),
        ({"inner": {"size": 1, "nam": "y"}}, "inner.nam: unknown key; known here: name, size"),
        ({"items": {"size": 1}}, "items: expected a list"),
        ({"items": "ab"}, "items: expected a list"),
        ({"items": [{"size": 1}, {"size": "1"}]}, "items[1].size: expected int"),
        ({"table": [1]}, "table: expected a table of keys"),
        ({"table": {"k": "v"}}, "table.k: expected int"),
        ({"table": {1: 1}}, "table: expected a table of keys"),
        ({"maybe": "1"}, "maybe: expected int"),
        ({"either": 1.5}, "either: float 1.5 fits none of the allowed forms"),
        ({"unheard": 1}, "unheard: unknown key"),
        ({"raw": "x" * 500}, "raw: expected bytes, found str 'xxx"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_wrong_is_named_by_its_path(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError) as caught:
        read_record(Outer, GOOD | change)
    assert str(caught.value).startswith(said)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("source", [None, 1, "text", [], [("flag", True)]])
def test_what_is_no_table_is_refused(source: object) -> None:
    with pytest.raises(RecordError, match="top level: expected a table of keys"):
        read_record(Outer, source)


def test_unknown_keys_are_ignored_on_the_wire_at_every_depth() -> None:
    source = GOOD | {"new": 1, "inner": {"size": 1, "new": 2}, "items": [{"size": 1, 7: 8}]}
    assert read_record(Outer, source, ignore_unknown=True).items == (Inner(1),)
