"""Trees of values made wrong, as CBOR, as JSON, and as the header of a safetensors file: keys, types, ranges, depth."""

import json
from collections.abc import Sequence
from random import Random
from typing import Any

import cbor2

from benchmarks.fuzzing.bytes_mutations import INTEGERS, mutate

# No tree grows beyond about so many.
_MOST_VALUES = 10_000
_FLOATS = (0.0, -0.0, 1e-320, -1.5, 1e308, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    "",
    "a",
    "\x00",
    "é\U0001f600",
    "../../etc/passwd",
    "/",
    "x" * 101,
    "x" * 2001,
    "topk:0.1/int8",
    "1e999",
    "[red]",
)


def cbor(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """A CBOR item with values changed, or, one time in three, with its bytes changed."""
    if rng.random() < 0.33:
        return mutate(data, rng, others)
    try:
        tree = _changed(cbor2.loads(data), rng, binary=True)
        return cbor2.dumps(tree)
    except (cbor2.CBORError, ValueError, TypeError, RecursionError, OverflowError):
        return mutate(data, rng, others)


def text_json(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """A JSON text with values changed, or, one time in four, with its bytes changed."""
    if rng.random() < 0.25:
        return mutate(data, rng, others)
    try:
        return json.dumps(_changed(json.loads(data), rng, binary=False)).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError):
        return mutate(data, rng, others)


def safetensors(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """A file whose header is changed as JSON and has its length before it again, or whose bytes are."""
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.25 or size > len(data):
        return mutate(data, rng, others)
    header = text_json(data[8 : 8 + size], rng, (data[8 : 8 + size],))
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _changed(tree: Any, rng: Random, *, binary: bool) -> Any:
    """The tree with one to three places changed."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree = _change(tree, rng, binary)
    return tree


def _change(tree: Any, rng: Random, binary: bool) -> Any:
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        return _changed_map(tree, rng, binary)
    if isinstance(tree, list) and rng.random() < 0.8:
        return _changed_list(tree, rng, binary)
    return _near(tree, rng) if rng.random() < 0.5 else _any(rng, binary)


def _changed_map(tree: dict[Any, Any], rng: Random, binary: bool) -> dict[Any, Any]:
    key, tree = rng.choice(list(tree)), dict(tree)
    match rng.randrange(10):
        case 0:
            del tree[key]
        case 1:
            tree[rng.choice((*_TEXTS, 0, 1, 7, -1)) if binary else rng.choice(_TEXTS)] = tree.pop(key)
        case 2:
            tree[rng.choice(list(tree))] = tree[key]
        case _:
            tree[key] = _change(tree[key], rng, binary)
    return tree


def _changed_list(tree: list[Any], rng: Random, binary: bool) -> list[Any]:
    match rng.randrange(6):
        case 0:
            return []
        case 1:
            return (tree or [0]) * min(rng.choice((2, 9, 17, 70, 3000)), 1 + _MOST_VALUES // (1 + _values(tree)))
        case 2:
            return [*tree, _any(rng, binary)]
        case 3:
            return tree[: rng.randrange(len(tree) + 1)]
    if not tree:
        return [_any(rng, binary)]
    at = rng.randrange(len(tree))
    return [*tree[:at], _change(tree[at], rng, binary), *tree[at + 1 :]]


def _values(tree: Any) -> int:
    """How many, long ones as what they would take as numbers."""
    if isinstance(tree, str | bytes):
        return 1 + len(tree) // 8
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return 1 + sum(map(_values, inner))


def _near(value: Any, rng: Random) -> Any:
    """Of the same type, a little off."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, -value, 1 << 31, 1 << 63, -2 * value))
    if isinstance(value, float):
        return rng.choice(_FLOATS)
    if isinstance(value, str):
        return rng.choice((value[:-1], value + "x", value.upper(), value * 50, *_TEXTS))
    if isinstance(value, bytes):
        return mutate(value, rng, (value,))
    return None


def _any(rng: Random, binary: bool) -> Any:
    """Anything at all."""
    deep: Any = 0
    for _ in range(rng.choice((3, 8, 9, 40))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    choices: list[Any] = [rng.choice(INTEGERS), -rng.choice(INTEGERS), rng.choice(_FLOATS), rng.choice(_TEXTS)]
    choices += [None, True, False, [], {}, deep, [rng.choice(INTEGERS)] * 20, {"path": "x"}]
    if binary:
        choices += [b"", bytes(31), bytes(32), rng.randbytes(33), bytes(70_000), {0: 1}]
    return rng.choice(choices)
