"""What nothing else would notice: import contracts that leave a module out, and links to pages that are not there."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


def test_a_contract_that_keeps_others_out_of_the_agent_names_every_module_but_the_runtimes() -> None:
    modules = {f"edge_agent.{path.stem}" for path in (ROOT / "edge_agent").glob("*.py")}
    private = modules - {"edge_agent.__init__", "edge_agent.__main__"}
    closed = [c for c in CONTRACTS if any(name.startswith("edge_agent.") for name in c["forbidden_modules"])]
    assert len(closed) == 3
    for contract in closed:
        named = {name for name in contract["forbidden_modules"] if name.startswith("edge_agent.")}
        assert named == private, contract["name"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(
        r"`((?:protocol|sparse|export|edge_agent|coordinator|devices|tests|examples|docs)/[a-z_/.]*)`", page.read_text()
    )
    assert [path for path in named if not (ROOT / path).exists()] == []
