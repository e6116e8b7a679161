"""edge-agent check: what a device finds about itself and a bundle, and what it remembers of it."""

import json
import shutil
from pathlib import Path

import pytest

from edge_agent.check import CHECKS
from edge_agent.cli import main
from edge_agent.probes import FILE, MAX_BYTES, compared_by, forget, recall, remember
from tests.agent.test_cli import GOOD, write
from tests.agent.test_imports import NEVER, modules_after
from tests.runtimes.test_reference import Wrong, installed
from tests.tiny import write_bundle


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", recorded=True).root


def test_every_check_is_printed_with_what_it_found(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--bundle", str(root)]) == 0
    said = capsys.readouterr().out
    for name in CHECKS:
        assert any(line.startswith(f"ok       {name}") for line in said.splitlines()), said
    assert "numpy: all tensors within tolerance of torch's steps" in said
    assert "ms a step of 4 examples with 1 threads" in said


def test_a_runtime_that_computes_something_else_fails_with_tensor_and_remedy(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, ("numpy", Wrong))
    assert main(["check", "--bundle", str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("error    parity") for line in lines)
    assert any("FAIL: gradient of weight differs from torch's by" in line for line in lines)
    assert any("remedy: install another onnxruntime" in line for line in lines)


def test_json_has_every_row(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--bundle", str(root), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"]
    assert set(said["checks"]) == set(CHECKS)
    rows = said["checks"]["parity"]["backends"][0]["rows"]
    assert [row["tensor"] for row in rows] == ["loss", "weight", "bias", "weight", "bias", "loss"]
    assert said["checks"]["backend"]["backend"] == "numpy"


def test_a_bundle_without_a_record_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_bundle(tmp_path / "bare").root
    assert main(["check", "--bundle", str(root)]) == 0
    assert "warning  parity     the bundle holds no reference steps" in capsys.readouterr().out


def test_the_backend_is_the_configurations_unless_one_is_named(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, GOOD + '[training]\nbackend = "ort-training"\n')
    assert main(["check", "--bundle", str(root), "--config", str(config)]) == 1
    assert "error    backend" in capsys.readouterr().out
    assert main(["check", "--bundle", str(root), "--config", str(config), "--backend", "numpy"]) == 0
    assert main(["check", "--bundle", str(root), "--backend", "tpu"]) == 3
    assert "--backend: 'tpu' is unknown" in capsys.readouterr().err
    assert main(["run", "--config", str(config), "--backend", "tpu"]) == 3
    assert "--backend: 'tpu' is unknown" in capsys.readouterr().err


def test_a_damaged_bundle_is_exit_code_three(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "reference.safetensors").write_bytes(b"")
    assert main(["check", "--bundle", str(root)]) == 3
    assert "reference.safetensors: 0 bytes where the manifest says" in capsys.readouterr().err


def test_a_check_needs_neither_torch_nor_rich(root: Path, tmp_path: Path) -> None:
    loaded = modules_after(
        f"from edge_agent.cli import main\nassert main(['check', '--bundle', {str(root)!r}]) == 0", tmp_path
    )
    assert not loaded & set(NEVER)


# What is remembered.

BUNDLE = bytes(32)


def test_verdicts_are_remembered_for_their_bundle_and_runtime_alone(tmp_path: Path) -> None:
    verdicts = {"portable": "it computes something else here", "numpy": ""}
    assert recall(tmp_path, BUNDLE, "one") == {}
    remember(tmp_path, BUNDLE, "one", verdicts)
    assert recall(tmp_path, BUNDLE, "one") == verdicts
    assert recall(tmp_path, BUNDLE, "two") == {}
    assert recall(tmp_path, b"\x01" * 32, "one") == {}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_verdicts_on_one_bundle_are_let_go_of_and_none_outlives_the_agent_that_came_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by, other = compared_by("onnxruntime 1.20", "full"), b"\x01" * 32
    for bundle in (BUNDLE, other):
        remember(tmp_path, bundle, by, {"numpy": "off"})
    forget(tmp_path, BUNDLE)
    assert (recall(tmp_path, BUNDLE, by), recall(tmp_path, other, by)) == ({}, {"numpy": "off"})
    monkeypatch.setattr("edge_agent.probes.agent_version", lambda: "9.9")
    assert recall(tmp_path, other, compared_by("onnxruntime 1.20", "full")) == {}


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"[" * 60_000, b'{"verdicts": 3}', b" " * (MAX_BYTES + 1), b"\xff"]
)
def test_a_damaged_memory_is_no_memory(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    assert recall(tmp_path, BUNDLE, "one") == {}
    remember(tmp_path, BUNDLE, "one", {"numpy": ""})
    assert recall(tmp_path, BUNDLE, "one") == {"numpy": ""}
    shutil.rmtree(tmp_path)
