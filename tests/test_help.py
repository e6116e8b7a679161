"""Every command's --help has an example, and every example is one that the command takes."""

import argparse
import re
import shlex
from collections.abc import Callable, Iterator, Mapping

import pytest

import coordinator.cli
import devices.cli
import edge_agent.cli
import export.cli
from export import deploy, sign, verify
from export.plan import command as plan

TREES: Mapping[str, argparse.ArgumentParser] = {
    "edge-agent": edge_agent.cli._parser(),
    "fleet-coordinator": coordinator.cli._parser(),
    "fleet-emulate": devices.cli._parser(),
}
# This one looks at its first word by itself, for some of them load what others lack.
EXPORT: Mapping[str, Callable[[list[str]], object]] = {
    "": export.cli._parser().parse_args,
    "show": export.cli._show_parser().parse_args,
    "verify": verify.options_of,
    "plan": plan.options_of,
    "sign": sign.options_of,
    "release-key": sign.key_options_of,
    "deploy": deploy.options_of,
}


def parsers(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """Every parser below one: its words, what its help ends with, and whether it can be run as it is."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield path, parser.epilog or "", not any(group.required for group in groups)
    for group in groups:
        for name, below in group.choices.items():
            yield from parsers(below, (*path, name))


def examples(text: str, command: str) -> list[list[str]]:
    """The examples of a command in a text, each as its words without the command, redirections left out."""
    found = []
    for line in text.splitlines():
        matched = re.match(rf"(?:example:)?\s*(?:[A-Z_]+=\S+ )*{command}( .*|$)", line)
        if matched and not line.startswith("usage"):
            words = shlex.split(matched[1], comments=True)
            cut = next((at for at, word in enumerate(words) if word in (">", "<", "|")), len(words))
            found.append(words[:cut])
    return found


LEAVES = [(command, *found) for command, tree in TREES.items() for found in parsers(tree)]


@pytest.mark.parametrize(
    ("command", "path", "text", "runs"), LEAVES, ids=[" ".join((command, *path)) for command, path, *_ in LEAVES]
)
def test_a_command_shows_examples_that_it_takes(command: str, path: tuple[str, ...], text: str, runs: bool) -> None:
    found = examples(text, command)
    assert found or not runs, f"{command} {' '.join(path)} --help has no example"
    for words in found:
        assert callable(TREES[command].parse_args(words).command)
    own = [words for words in found if tuple(words[: len(path)]) == path]
    assert own or not runs, f"{command} {' '.join(path)} --help has no example of its own"


def test_an_example_stays_on_its_line_to_be_copied(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        TREES["fleet-coordinator"].parse_args(["discard", "--help"])
    assert "--reason 'its disk died' --config coordinator.toml\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXPORT)
def test_an_example_of_fleet_export_is_one_that_it_takes(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No line of it is broken.
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as ended:
        EXPORT[name](["--help"])
    assert ended.value.code == 0
    found = examples(capsys.readouterr().out, "fleet-export")
    assert found, f"fleet-export {name} --help has no example"
    for words in found:
        parse, rest = (EXPORT[words[0]], words[1:]) if words[0] in EXPORT else (EXPORT[""], words)
        assert parse(rest) is not None
