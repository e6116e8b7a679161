"""Typed frozen dataclasses from untyped mappings, the one way CBOR, JSON and TOML come in.

A field's annotation is its schema: bool, int, float, str, bytes, None-able forms of these, literals, tuples,
string-keyed mappings and nested dataclasses. Ranges are the dataclass' own business,
in `__post_init__`, by raising ValueError.
"""

import dataclasses
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

# Names that are more than a reader looks through.
MANY = 12

_MISSING = dataclasses.MISSING


class RecordError(ValueError):
    """A mapping does not fit its dataclass; the text starts with the path of the offending key."""


def read_record(cls: type[T], source: object, *, where: str = "", ignore_unknown: bool = False) -> T:
    """Builds a `cls` from a mapping, checking every key and type.

    `ignore_unknown` is for the wire, where a newer peer may say more; files of our own refuse unknown keys.
    Raises RecordError.
    """
    if not isinstance(source, Mapping):
        raise RecordError(f"{where or 'top level'}: expected a table of keys, found {_kind(source)}")
    hints = _hints(cls)
    names = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [str(k) for k in source if k not in names]
    if unknown and not ignore_unknown:
        raise RecordError(f"{_join(where, unknown[0])}: unknown key; {nearest(unknown[0], names)}")
    values: dict[str, Any] = {}
    for name, field in names.items():
        if name in source:
            values[name] = _read(hints[name], source[name], _join(where, name), ignore_unknown)
        elif field.default is _MISSING and field.default_factory is _MISSING:
            raise RecordError(f"{_join(where, name)}: missing")
    try:
        return cls(**values)
    except RecordError:
        raise
    except ValueError as error:
        raise RecordError(f"{where}.{error}" if where else str(error)) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not known: all that there are, and the one that is most like it, if one is."""
    # Only needed for mistakes, and not quick to load.
    from difflib import get_close_matches

    names = sorted(known)
    # A key in the wrong table is most often known in another one.
    last = name.rpartition(".")[2]
    found = [one for one in names if one.rpartition(".")[2] == last] or get_close_matches(name, names, 1)
    if found and len(names) > MANY:
        return f"did you mean {found[0]}?"
    return f"known here: {', '.join(names)}" + (f"; did you mean {found[0]}?" if found else "")


def write_record(record: object) -> dict[str, Any]:
    """The mapping that `read_record` turns back into `record`, without keys at a default of None, () or {}."""
    result: dict[str, Any] = {}
    for field in dataclasses.fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if value in (None, ()) and value == field.default:
            continue
        if value == {} and field.default_factory is dict:
            continue
        result[field.name] = _write(value)
    return result


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = get_type_hints(cls)
    return _HINTS[cls]


def _write(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return write_record(value)
    if isinstance(value, tuple | list):
        return [_write(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _write(v) for k, v in value.items()}
    return value


def _read(want: Any, value: object, where: str, ignore_unknown: bool) -> Any:
    origin = get_origin(want)
    if want is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_union(get_args(want), value, where, ignore_unknown)
    if origin is Literal:
        if value not in get_args(want) or isinstance(value, bool):
            raise RecordError(f"{where}: {value!r} is not one of {', '.join(map(repr, get_args(want)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecordError(f"{where}: expected a list, found {_kind(value)}")
        inner = get_args(want)[0]
        return tuple(_read(inner, v, f"{where}[{i}]", ignore_unknown) for i, v in enumerate(value))
    if origin in (Mapping, dict):
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            raise RecordError(f"{where}: expected a table of keys, found {_kind(value)}")
        inner = get_args(want)[1]
        return {str(k): _read(inner, v, _join(where, str(k)), ignore_unknown) for k, v in value.items()}
    if dataclasses.is_dataclass(want):
        return read_record(want, value, where=where, ignore_unknown=ignore_unknown)  # type: ignore[arg-type]
    return _read_scalar(want, value, where)


def _read_union(options: tuple[Any, ...], value: object, where: str, ignore_unknown: bool) -> Any:
    if value is None and types.NoneType in options:
        return None
    rest = [o for o in options if o is not types.NoneType]
    if len(rest) == 1:
        return _read(rest[0], value, where, ignore_unknown)
    for option in rest:
        try:
            return _read(option, value, where, ignore_unknown)
        except RecordError:
            continue
    raise RecordError(f"{where}: {_kind(value)} fits none of the allowed forms")


def _read_scalar(want: type, value: object, where: str) -> Any:
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python; a setting of `steps = true` is a mistake.
    if type(value) is not want:
        raise RecordError(f"{where}: expected {want.__name__}, found {_kind(value)}")
    return value


def _kind(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
