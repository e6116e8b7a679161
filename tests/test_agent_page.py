"""docs/agent.md names every command and check that there is, and no command that is not."""

import re
from pathlib import Path

import pytest

from edge_agent.cli import main
from edge_agent.self_check import CHECKS
from edge_agent.settings import PREFIX, AgentSettings
from edge_agent.trying import CHECKS as TRIED
from protocol.layers import known_keys, variable_of

PAGE = Path(__file__).parents[1] / "docs" / "agent.md"


def commands(*above: str) -> set[str]:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        main([*above, "--help"])
    listed = out.getvalue().partition("positional arguments:")[2].partition("options:")[0]
    return set(re.findall(r"(?m)^    ([a-z]+)\b", listed))


def test_the_page_names_every_command_and_none_that_is_not_there() -> None:
    text = PAGE.read_text()
    everything = commands()
    for name in everything:
        assert f"`{name}`" in text or f"edge-agent {name}" in text, name
    for group in ("config", "outbox", "diag"):
        for action in commands(group):
            assert f"edge-agent {group} {action}" in text, action
    assert set(re.findall(r"edge-agent ([a-z]+)", text)) <= everything


def test_the_page_names_every_check_in_order_and_only_variables_that_are() -> None:
    text = PAGE.read_text()
    (listed,) = re.findall(r"looks at (.*?) in this order", text)
    names = ["configuration", *CHECKS, *TRIED]
    assert re.split(r", | and ", listed.rstrip(",").replace("one training step", "step")) == names
    variables = {variable_of(key, PREFIX) for key in known_keys(AgentSettings)}
    assert set(re.findall(r"EDGE_AGENT_[A-Z_]*[A-Z]", text)) <= variables
