"""What nothing else would notice: import contracts that leave a module out, and links to pages that are not there."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from edge_agent.runtimes.onnx_session import OLDEST
from protocol.failpoints import FAILPOINTS

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = PYPROJECT["tool"]["importlinter"]["contracts"]
PROJECT = PYPROJECT["project"]
TRAINING, STOCK = "onnxruntime-training-cpu", "onnxruntime"
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


def test_a_contract_that_keeps_others_out_of_the_agent_names_every_module_but_the_runtimes() -> None:
    modules = {f"edge_agent.{path.stem}" for path in (ROOT / "edge_agent").glob("*.py")}
    modules |= {f"edge_agent.{path.parent.name}" for path in (ROOT / "edge_agent").glob("*/__init__.py")}
    modules -= {"edge_agent.runtimes"}
    private = modules - {"edge_agent.__init__", "edge_agent.__main__"}
    closed = [c for c in CONTRACTS if any(name.startswith("edge_agent.") for name in c["forbidden_modules"])]
    # What a part of the agent keeps from others of it says nothing of the rest.
    closed = [c for c in closed if c["source_modules"] != ["edge_agent.personal"]]
    assert len(closed) == 3
    for contract in closed:
        named = {name for name in contract["forbidden_modules"] if name.startswith("edge_agent.")}
        assert named == private, contract["name"]


def headings(page: Path) -> set[str]:
    """Of a page, as links name them."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
    found = (re.sub(r"[^\w\- ]", "", line.lower()) for line in re.findall(r"(?m)^#+ (.*)$", text))
    return {line.strip().replace(" ", "-") for line in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    links = [link.partition("#") for link in re.findall(r"\]\(([^):]+)\)", page.read_text())]
    there = [(page.parent / file if file else page, heading) for file, _, heading in links]
    assert [path for path, _ in there if not path.exists()] == []
    assert [heading for path, heading in there if heading and heading not in headings(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(
        r"`((?:protocol|sparse|export|edge_agent|coordinator|devices|tests|examples|docs|packaging)/[a-z_/.]*)`",
        page.read_text(),
    )
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_test_that_a_page_names_is_there() -> None:
    named = {found for page in PAGES for found in re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", page.read_text())}
    assert named
    assert [(file, test) for file, test in named if f"def {test}(" not in (ROOT / file).read_text()] == []


def runtimes(extra: str, **machine: str) -> list[str]:
    """The ONNX Runtime wheels that an extra brings on a machine, our own extras within it included."""
    found = []
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name == PROJECT["name"]:
            found += [name for inner in requirement.extras for name in runtimes(inner, **machine)]
        elif requirement.name in (TRAINING, STOCK) and (not requirement.marker or requirement.marker.evaluate(machine)):
            found.append(requirement.name)
    return found


@pytest.mark.parametrize("extra", ["export", "dev"])
@pytest.mark.parametrize(
    ("python", "machine", "system", "runtime"),
    [
        ("3.11", "x86_64", "linux", TRAINING),
        ("3.12", "x86_64", "linux", TRAINING),
        ("3.13", "x86_64", "linux", STOCK),
        ("3.11", "aarch64", "linux", STOCK),
        ("3.12", "arm64", "darwin", STOCK),
        ("3.11", "x86_64", "darwin", STOCK),
    ],
)
def test_where_models_are_made_there_is_one_runtime_and_it_trains_where_it_can(
    extra: str, python: str, machine: str, system: str, runtime: str
) -> None:
    assert runtimes(extra, python_version=python, platform_machine=machine, sys_platform=system) == [runtime]


def test_devices_and_coordinators_take_stock_runtimes_but_for_the_extra_that_names_the_other() -> None:
    board = {"python_version": "3.11", "platform_machine": "aarch64", "sys_platform": "linux"}
    assert [runtimes(extra, **board) for extra in ("agent", "coordinator")] == [[STOCK], [STOCK]]
    assert runtimes("agent-ort-training", **board) == [TRAINING]


def test_the_oldest_runtime_that_is_taken_is_the_oldest_that_is_installed() -> None:
    (agent,) = (r for r in map(Requirement, PROJECT["optional-dependencies"]["agent"]) if r.name == STOCK)
    oldest = ".".join(map(str, OLDEST))
    assert f">={oldest}" in str(agent.specifier).split(",")
    assert "1.21.0" not in agent.specifier


def test_make_takes_the_pythons_that_pip_takes() -> None:
    check = re.search(r"\((\d), (\d+)\) <= sys.version_info < \((\d), (\d+)\)", (ROOT / "Makefile").read_text())
    assert check is not None
    assert SpecifierSet(PROJECT["requires-python"]) == SpecifierSet(">={}.{},<{}.{}".format(*check.groups()))


def test_every_failpoint_is_reached_somewhere_in_the_daemon_it_is_named_for() -> None:
    for package, prefix in (("edge_agent", "agent."), ("coordinator", "coordinator.")):
        source = "".join(path.read_text() for path in (ROOT / package).rglob("*.py"))
        marked = set(re.findall(r'reached\("([^"]+)"\)', source))
        assert marked == {name for name in FAILPOINTS if name.startswith(prefix)}
