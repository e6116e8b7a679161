"""`edge-agent config sample|show|validate`: which settings there are, which are in force, and where each is from."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent.options import add_config, add_json
from protocol.command import Parser

EPILOG = """\
examples:
  edge-agent config sample > agent.toml
  edge-agent config show                   # what is in force, and which file or variable says so
  EDGE_AGENT_TRAINING_THREADS=2 edge-agent config show --json

agent.toml is followed by agent.d/*.toml beside it, in the order of their names, then by variables: EDGE_AGENT_, table
and key in capitals, with _ between them, as in EDGE_AGENT_BROKER_URL; then by the options of a command. The last wins.
exit codes: 0 ok, 3 a mistake, which is named"""


@dataclass(frozen=True, slots=True)
class Shown:
    """One setting in force. source: FILE:LINE, a variable, an option, or default."""

    value: object
    source: str


def add_parser(commands: "argparse._SubParsersAction[Parser]") -> None:
    config = commands.add_parser(
        "config",
        help="print a sample configuration, what is in force and why, or what is wrong with it",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = config.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, text: str, example: str = "") -> Parser:
        return actions.add_parser(name, help=text, epilog=f"example: edge-agent config {name}{example}")

    sample = add("sample", "print a configuration with every key", " > agent.toml")
    sample.set_defaults(command=_sample)
    show = add("show", "print every setting and where it is from, without secrets", " --json")
    add_config(show)
    add_json(show)
    show.set_defaults(command=_show)
    validate = add("validate", "say what is wrong, if something is; nothing is changed", " --config agent.toml")
    add_config(validate)
    add_json(validate)
    validate.set_defaults(command=_validate)


def shown(options: argparse.Namespace) -> dict[str, Shown]:
    """Every setting in force by its key. Raises ConfigurationError."""
    # Imported here so that --help and mistakes answer at once.
    from edge_agent.redaction import redacted_value
    from edge_agent.settings import AgentSettings, layers
    from protocol.layers import default_of, known_keys, read_settings

    found = layers(options.config)
    settings = read_settings(AgentSettings, found)
    result = {}
    for key in known_keys(AgentSettings):
        source, value = found.source(key), _value(settings, key)
        if source is None and value is None and default_of(AgentSettings, key) is None:
            continue
        result[key] = Shown(redacted_value(key.rpartition(".")[2], value), source or "default")
    return result


def _value(settings: object, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = None if value is None else getattr(value, part)
    return value


def _sample(_: argparse.Namespace) -> int:
    from edge_agent.sample import SAMPLE

    print(SAMPLE, end="")
    return 0


def _show(options: argparse.Namespace) -> int:
    settings = shown(options)
    if options.json:
        print(json.dumps({key: {"value": one.value, "source": one.source} for key, one in settings.items()}))
    else:
        print("\n".join(_lines(settings)))
    return 0


def _lines(settings: Mapping[str, Shown]) -> list[str]:
    rows = [(key, json.dumps(one.value), one.source) for key, one in settings.items()]
    keys, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f"{key:{keys}}  {value:{min(values, 40)}}  {source}" for key, value, source in rows]


def _validate(options: argparse.Namespace) -> int:
    settings = shown(options)
    if options.json:
        print(json.dumps({"ok": True, "settings": len(settings)}))
    else:
        print(f"{options.config}: no mistake found; edge-agent check tries what it says")
    return 0
