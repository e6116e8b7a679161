"""Settings as TOML text: what our own parts are told when we start them."""

import json
from collections.abc import Mapping


def toml_text(subject: str, tables: Mapping[str, Mapping[str, object]]) -> str:
    """Tables of strings, numbers, booleans, lists and flat tables, by their dotted names; "" is the top level."""
    lines = [f"# Settings of {subject}; written anew by every run."]
    for name, table in tables.items():
        if name:
            lines += ["", f"[{name}]"]
        lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if key.replace("-", "_").isidentifier() else json.dumps(key)


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            # A JSON string is a TOML one, but for what neither a path nor a name holds: a lone surrogate.
            return json.dumps(value)
        case list() | tuple():
            return f"[{', '.join(_value(one) for one in value)}]"
        case Mapping():
            return f"{{ {', '.join(f'{_key(key)} = {_value(one)}' for key, one in value.items())} }}"
    return str(value)
