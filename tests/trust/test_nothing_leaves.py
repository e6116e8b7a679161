"""A real fleet over mTLS, watched by the kernel and by Python itself: where its agents connect to, what is unpickled,
and where secrets go. And each watchman, shown what it is there to find."""

import ast
import base64
import os
import pickle
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import require_broker
from tests.egress import destinations, families, require_strace, watched
from tests.real_fleet import RealFleet

ROOT = Path(__file__).parents[2]
SPIES = Path(__file__).parent / "spies"
PACKAGES = ("edge_agent", "coordinator", "protocol", "sparse", "export", "devices")


@dataclass(frozen=True)
class Watched:
    """A fleet that has run to its end. tokens: that it was let in with, each as text."""

    fleet: RealFleet
    enrolment_port: int
    tokens: list[str]
    answers: str

    def trace(self, name: str) -> Path:
        return self.fleet.folder / f"{name}.trace"


def spied(log: Path) -> tuple[str, ...]:
    """The command that has the next one, and what that starts, watched by Python's audit hooks."""
    return ("env", f"PYTHONPATH={SPIES}", f"SPY_LOG={log}")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Two devices, each enrolled and at work under strace, three rounds."""
    require_broker("mosquitto")
    folder = tmp_path_factory.mktemp("watched")
    require_strace(folder)
    fleet = RealFleet(folder, "mosquitto", rounds=3, devices=2, enrols=True)
    spy, tokens, answers = spied(folder / "spy.log"), [], []
    try:
        fleet.wrapped = spy
        fleet.start_coordinator()
        fleet.until(lambda: any(event["event"] == "listening" for event in fleet.events))
        (port,) = (event["enrolment"] for event in fleet.events if event["event"] == "listening")
        for device in ("device-00", "device-01"):
            fleet.wrapped = ()
            tokens.append(fleet.token())
            fleet.wrapped = (*spy, *watched(folder / f"enrol-{device}.trace"))
            assert fleet.enrol(device, tokens[-1]).exit_code == 0
            fleet.wrapped = (*spy, *watched(folder / f"{device}.trace"))
            fleet.start_agent(device)
        fleet.wrapped = ()
        fleet.finish()
        answers = [str(fleet.ask(*question)) for question in (("status",), ("devices",), ("rounds",), ("round", "1"))]
    finally:
        fleet.stop()
    return Watched(fleet, port, tokens, "\n".join(answers))


def test_nothing_but_the_brokers_connection_leaves_an_agent(ran: Watched) -> None:
    for device in ("device-00", "device-01"):
        assert destinations(ran.trace(device)) == {f"127.0.0.1:{ran.fleet.port}"}
        assert families(ran.trace(device)) <= {"AF_INET", "AF_INET6", "AF_UNIX"}
    assert ran.fleet.committed()[-1] == 3


def test_at_enrolment_an_agent_talks_to_the_port_that_it_was_told_and_to_nobody_else(ran: Watched) -> None:
    for device in ("device-00", "device-01"):
        assert destinations(ran.trace(f"enrol-{device}")) == {f"127.0.0.1:{ran.enrolment_port}"}


@pytest.mark.parametrize(
    ("probe", "found"),
    [
        ("s.socket().connect_ex(('127.0.0.1', 9))", "127.0.0.1:9"),
        ("s.socket(s.AF_INET6).connect_ex(('::1', 9))", "::1:9"),
        ("s.socket(s.AF_INET, s.SOCK_DGRAM).sendto(b'x', ('127.0.0.2', 53))", "127.0.0.2:53"),
        ("s.socket(s.AF_UNIX).connect_ex('/nowhere/bus')", "/nowhere/bus"),
    ],
)
def test_a_connection_elsewhere_would_be_found(probe: str, found: str, tmp_path: Path) -> None:
    """Also from a child of a thread, as a library might do it."""
    require_strace(tmp_path)
    child = f"import socket as s; {probe}"
    run = "target=p.run, args=([sys.executable, '-c', sys.argv[1]],)"
    code = f"import subprocess as p, sys, threading as t; t.Thread({run}).start()"
    subprocess.run([*watched(tmp_path / "trace"), sys.executable, "-c", code, child], check=True, timeout=60)
    assert found in destinations(tmp_path / "trace")


def test_neither_agents_nor_the_coordinator_unpickle_anything(ran: Watched) -> None:
    lines = (ran.fleet.folder / "spy.log").read_text().splitlines()
    started = {" ".join(line.split()[2:]) for line in lines if " watched " in line}
    assert {"-m coordinator run", "-m edge_agent enroll", "-m edge_agent run"} <= started
    assert [line for line in lines if " watched " not in line and " logs " not in line] == []


def test_a_pickle_would_be_noticed(tmp_path: Path) -> None:
    code = f"import pickle; pickle.loads({pickle.dumps(Path('x'))!r})"
    subprocess.run([*spied(tmp_path / "log"), sys.executable, "-c", code], check=True)
    assert "pickle.find_class" in (tmp_path / "log").read_text()


def unsafe(source: str) -> list[str]:
    """Imports that unpickle, and loaders that could."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [
            n for n in names if n.split(".")[0] in ("pickle", "dill", "shelve", "marshal", "joblib", "cloudpickle")
        ]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, options = ast.unparse(node.func.value), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if (owner, node.func.attr) == ("np", "load") and options.get("allow_pickle") != "False":
                found.append("np.load")
            if (owner, node.func.attr) == ("torch", "load") and options.get("weights_only") != "True":
                found.append("torch.load")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_source_unpickles(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert {str(path): unsafe(path.read_text()) for path in files if unsafe(path.read_text())} == {}


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from joblib import load", "import numpy as np\nnp.load('x')", "torch.load(f)", "import shelve"],
)
def test_a_loader_of_pickles_would_be_seen_in_the_source(source: str) -> None:
    assert unsafe(source)


def secrets_of(ran: Watched) -> dict[str, list[bytes]]:
    """The fleet's private keys and tokens, each in the forms in which it might be said."""
    folder = ran.fleet.folder
    keys = [
        *folder.glob("trust/*.key"),
        *folder.glob("trust/keys/*.key"),
        *folder.glob("device-*/state/identity/identity.pem"),
    ]
    assert len(keys) == 5 + len(ran.tokens)
    found = {}
    for path in keys:
        inner = path.read_text().split("PRIVATE KEY-----")[1].split("-----")[0]
        der = base64.b64decode(inner)
        # Of the number alone: what is before it is in every key of the kind, Ed25519 or P-256.
        number = der[16:48] if len(der) == 48 else der[36:68]
        line = (inner.strip().splitlines()[1:] or [inner.strip()[24:]])[0]
        found[str(path)] = [line.encode(), number, number.hex().encode()]
    for token in ran.tokens:
        found[token] = [token.encode(), token[56:80].encode()]
    return found


def leaks(where: dict[str, bytes], secrets: dict[str, list[bytes]]) -> list[tuple[str, str]]:
    """Which secret is where it should not be."""
    return [
        (place, name) for place, text in where.items() for name, forms in secrets.items() for f in forms if f in text
    ]


def said_and_kept(ran: Watched) -> dict[str, bytes]:
    """All logs at debug level, what commands answered, and all databases, as text and byte by byte."""
    folder = ran.fleet.folder
    found = {str(path): path.read_bytes() for path in [*folder.glob("logs/*"), *folder.rglob("broker.log")]}
    assert "logs at debug level" in (folder / "spy.log").read_text()
    found["answers"] = ran.answers.encode()
    databases = list(folder.rglob("*.sqlite*"))
    assert len(databases) >= 3
    for path in databases:
        found[str(path)] = path.read_bytes()
        if path.suffix == ".sqlite":
            sql = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            found[f"dump of {path}"] = "\n".join(sql.iterdump()).encode()
            sql.close()
    return found


def test_no_secret_is_in_a_log_an_answer_or_a_database(ran: Watched) -> None:
    places = said_and_kept(ran)
    assert leaks(places, secrets_of(ran)) == []


def test_a_secret_in_a_log_would_be_found(ran: Watched) -> None:
    secrets = secrets_of(ran)
    for name, forms in secrets.items():
        assert (("log", name)) in leaks({"log": b"so it said " + forms[0] + b" again"}, secrets)


def test_every_secret_is_0600_in_a_folder_of_0700(ran: Watched) -> None:
    for name in secrets_of(ran):
        if (path := Path(name)).is_absolute():
            assert oct(path.stat().st_mode & 0o777) == "0o600"
            assert oct(path.parent.stat().st_mode & 0o777) == "0o700"


IMPORTS = {
    "agent": "from edge_agent.runtimes.portable import PortableEngine as _; import edge_agent.cli",
    "coordinator": "import coordinator.cli, coordinator.evaluate",
    "export": "import export.cli",
}
TELEMETRY = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print("at the import:", os.environ.get("ORT_DISABLE_TELEMETRY"))
sys.meta_path.insert(0, Finder())
"""
LOADS = "from edge_agent.runtimes.onnx_session import import_onnxruntime; import_onnxruntime()"


@pytest.mark.parametrize("part", IMPORTS)
@pytest.mark.parametrize("said", [None, "0"])
def test_runtime_telemetry_is_off_before_the_runtime_is_imported(part: str, said: str | None) -> None:
    """Whatever the environment says; and no module imports the runtime by itself, before anyone can switch it off."""
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {} if said is None else {"ORT_DISABLE_TELEMETRY": said}
    code = f"{TELEMETRY}\n{IMPORTS[part]}\nassert 'onnxruntime' not in sys.modules\n{LOADS}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["at the import: 1"], done.stderr


def test_every_import_of_the_runtime_comes_after_the_switch() -> None:
    """Two places import it; both switch telemetry off in the lines before."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            lines = path.read_text().splitlines()
            first = [
                i for i, line in enumerate(lines) if line.strip().startswith(("import onnxruntime", "from onnxruntime"))
            ]
            if first:
                found[path.relative_to(ROOT).as_posix()] = "switch_telemetry_off()" in "\n".join(lines[: first[0]])
    assert found == {"edge_agent/runtimes/onnx_session.py": True, "export/ort_artifacts.py": True}
