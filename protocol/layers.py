"""Settings in layers: a file, the files of the folder beside it, environment variables; and where each value is from.

`agent.toml` is followed by `agent.d/*.toml` in the order of their names, tables merged key by key, then by variables:
the prefix, and the names of table and key in capitals, with one underscore between them, so that `url` under
`[broker]` is EDGE_AGENT_BROKER_URL. What comes later wins.
"""

import dataclasses
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from protocol.errors import ConfigurationError
from protocol.records import RecordError, nearest, read_record

T = TypeVar("T")

# A configuration has some kilobytes; what is larger was named by mistake.
MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """One source of values. text: of a file, to find lines in; None for variables."""

    name: str
    table: Mapping[str, Any]
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Layers:
    """All sources of one record, the strongest last. main: the file that the record's paths are relative to, which may
    be absent; variables: by key, as in broker.url, the name of the variable that sets it."""

    main: Path
    layers: tuple[Layer, ...]
    variables: Mapping[str, str]

    def merged(self) -> dict[str, Any]:
        """The table that all sources make together."""
        result: dict[str, Any] = {}
        for layer in self.layers:
            _merge(result, layer.table)
        return result

    def source(self, key: str) -> str | None:
        """Where a key's value is from: FILE:LINE or a variable; of a table, where it begins. None where it is from
        nowhere."""
        path = tuple(key.split("."))
        for layer in reversed(self.layers):
            if not _has(layer.table, path):
                continue
            if layer.text is None:
                return self.variables.get(key, layer.name)
            line = _line_of(layer.text, path)
            return f"{layer.name}:{line}" if line else layer.name
        return None


def read_layers(cls: type, main: Path, environ: Mapping[str, str], prefix: str, *, optional: bool = False) -> Layers:
    """Reads every source of a `cls`. optional: whether variables alone will do, where `main` is not there.

    Raises ConfigurationError that names a file that cannot be read, an unknown key or variable and the nearest known.
    """
    keys = known_keys(cls)
    files = sorted(main.with_suffix(".d").glob("*.toml"))
    variables, table = _read_variables(keys, environ, prefix)
    layers = [] if optional and not main.exists() and (files or variables) else [_read_file(main)]
    layers += map(_read_file, files)
    layers.append(Layer("the environment", table))
    found = Layers(main, tuple(layers), variables)
    for layer in layers:
        for key in _unknown(cls, layer.table):
            raise ConfigurationError(f"{found.source(key)}: {key}: unknown key; {nearest(key, keys)}")
    return found


def read_settings(cls: type[T], layers: Layers) -> T:
    """The record that the sources make. Raises ConfigurationError that names source, key and value."""
    try:
        return read_record(cls, layers.merged())
    except RecordError as error:
        key, _, said = str(error).partition(": ")
        source = next((s for part in _parents(key) if (s := layers.source(part))), str(layers.main))
        if said == "missing":
            raise ConfigurationError(f"{layers.main}: {error}; set it there, `config sample` shows how") from None
        raise ConfigurationError(f"{source}: {error}") from None


def known_keys(cls: type) -> dict[str, Any]:
    """Every key of a record by its path, as in broker.url, with its type."""
    return dict(_keys(cls, ()))


def variable_of(key: str, prefix: str) -> str:
    """The name of the variable that sets a key."""
    return prefix + key.replace(".", "_").upper()


def default_of(cls: type, key: str) -> object:
    """What a key is where no source says; None where it has no default."""
    head, _, rest = key.partition(".")
    (field,) = (f for f in dataclasses.fields(cls) if f.name == head)
    if rest:
        return default_of(_table_of(get_type_hints(cls)[head]) or cls, rest)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _keys(cls: type, above: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        inner = _table_of(hints[field.name])
        if inner is None:
            yield ".".join((*above, field.name)), hints[field.name]
        else:
            yield from _keys(inner, (*above, field.name))


def _table_of(hint: Any) -> type | None:
    """The record that a field holds, if it holds one."""
    parts = [part for part in get_args(hint) if part is not types.NoneType] if _is_union(hint) else [hint]
    return parts[0] if len(parts) == 1 and dataclasses.is_dataclass(parts[0]) else None  # type: ignore[return-value]


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


# Files


def _read_file(path: Path) -> Layer:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ConfigurationError(f"{path}: has over {MAX_BYTES} bytes; is it a configuration?")
        text = data.decode("utf-8")
        return Layer(str(path), tomllib.loads(text), text)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read ({error.strerror}); name another with --config, or make one"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML ({error})") from None


def _merge(into: dict[str, Any], table: Mapping[str, Any]) -> None:
    for key, value in table.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _copied(value)


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _unknown(cls: type, table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    hints = get_type_hints(cls)
    for key, value in table.items():
        if key not in hints:
            yield above + key
            continue
        inner = _table_of(hints[key])
        if inner is not None and isinstance(value, Mapping):
            yield from _unknown(inner, value, f"{above}{key}.")


def _has(table: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    found: Any = table
    for part in path:
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return True


def _line_of(text: str, path: tuple[str, ...]) -> int | None:
    """The line that a value begins in: the one after the longest beginning of the file that is whole without it."""
    lines, before = text.splitlines(keepends=True), 0
    for end in range(1, len(lines) + 1):
        try:
            table = tomllib.loads("".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            # In the middle of a value of several lines.
            continue
        if _has(table, path):
            return before + 1
        before = end
    return None


def _parents(key: str) -> Iterator[str]:
    parts = key.partition("[")[0].split(".")
    for length in range(len(parts), 0, -1):
        yield ".".join(parts[:length])


# Variables


def _read_variables(
    keys: Mapping[str, Any], environ: Mapping[str, str], prefix: str
) -> tuple[dict[str, str], dict[str, Any]]:
    names = {variable_of(key, prefix): key for key in keys}
    used: dict[str, str] = {}
    table: dict[str, Any] = {}
    for name, text in sorted(environ.items()):
        if not name.startswith(prefix) or not text:
            # An empty one is how much software says that it is not set.
            continue
        if name not in names:
            raise ConfigurationError(f"{name}: unknown variable; {nearest(name, names)}")
        key = names[name]
        used[key] = name
        *tables, last = key.split(".")
        inner = table
        for part in tables:
            inner = inner.setdefault(part, {})
        inner[last] = _parse(name, text, keys[key])
    return used, table


def _parse(name: str, text: str, hint: Any) -> object:
    """A variable's text as its key's type: lists are separated by commas, numbers as in TOML, text is as it is."""
    kinds = get_args(hint) if _is_union(hint) else (hint,)
    lists = any(get_origin(kind) is tuple for kind in kinds)
    words = any(kind is str or get_origin(kind) is Literal for kind in kinds)
    if lists and ("," in text or not words):
        inner = next(get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple)
        return [_parse(name, part.strip(), inner) for part in text.split(",") if part.strip()]
    if words:
        return text
    try:
        return tomllib.loads(f"value = {text}\n")["value"]
    except tomllib.TOMLDecodeError:
        raise ConfigurationError(f"{name}: {text!r} is no value for this key; write it as in the file") from None
