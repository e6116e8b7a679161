"""edge-agent personal: what the device's own head does, and how an application on the device uses it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.cli import main
from edge_agent.data import Dataset
from edge_agent.diag_command import collected
from edge_agent.personal.at_work import personalise
from edge_agent.personal.mixture import mixed
from edge_agent.personal.settings import PersonalSettings
from edge_agent.personal.shelf import Personal, kept
from edge_agent.personal.study import RULE
from edge_agent.runtimes.engine import Array
from edge_agent.runtimes.onnx_session import session_of
from edge_agent.slots import folder_of
from protocol.disk import LOCAL
from protocol.transport import MemoryBroker
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.personal.headed import INPUTS, features_of, headed, model

TOML = """\
device = "device-01"
fleet = "test"
state = "state"
[broker]
url = "mqtt://127.0.0.1:1883"
[data]
path = "shard.npz"
[personal]
enabled = true
"""
X = np.random.default_rng(4).normal(size=(70, INPUTS)).astype(np.float32)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device that has a head of a model of which it has the graph to deploy."""
    (tmp_path / "agent.toml").write_text(TOML)
    (tmp_path / "state" / "bundles").mkdir(parents=True)
    bundle = headed(tmp_path / "made")
    folder = tmp_path / "state" / "bundles" / folder_of(bundle.digest)
    (tmp_path / "made").rename(folder)
    y = (X[:, 0] > 0).astype(np.int64)
    data = Dataset((X[:50],), (y[:50],)), Dataset((X[50:],), (y[50:],))
    bundle = replace(bundle, root=folder)
    task = FakeCoordinator(MemoryBroker(), bundle).task(1, model())
    settings = PersonalSettings(enabled=True, deploy=True)
    personalise(settings, tmp_path / "state", task, (bundle, "full"), model(), data, None, LOCAL)
    return tmp_path


def run(device: Path, *words: str) -> int:
    return main(["personal", *words, "--config", str(device / "agent.toml")])


def head_of(device: Path) -> Personal:
    found = kept(device / "state")
    assert found is not None
    return found


def test_show_says_how_each_head_does_on_what_is_held_out(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(device, "show", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["figures"]) == {"examples", "fleet", "personal", "mixed", "share"}
    assert (facts["figures"]["examples"], facts["trained_on"], facts["classes"]) == (20, 50, 3)
    assert run(device, "show") == 0
    text = capsys.readouterr().out
    for name in ("fleet", "personal", "mixed"):
        assert f"{name:10}{facts['figures'][name]:.4f}" in text


@pytest.mark.parametrize("head", ["personal", "fleet"])
def test_a_deployed_model_gives_the_heads_scores_in_any_onnxruntime(device: Path, head: str) -> None:
    out = device / "model.onnx"
    assert run(device, "deploy", "--head", head, "-o", str(out)) == 0
    scores = session_of(out.read_bytes(), "it", 1).run(None, {"x": X})[0]
    personal = head_of(device)
    wanted = personal.head if head == "personal" else personal.fleet
    np.testing.assert_allclose(scores, wanted.scores(features_of(X)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", ["mixed", "personal", "fleet"])
def test_answers_are_those_of_the_head_that_is_asked_for_and_need_no_labels(device: Path, head: str) -> None:
    np.savez(device / "x.npz", whatever=X)
    out = device / "y.npz"
    assert run(device, "predict", "--head", head, "--data", str(device / "x.npz"), "-o", str(out)) == 0
    personal, features = head_of(device), features_of(X)
    fleet, own = personal.fleet.scores(features), personal.head.scores(features)
    mix = mixed(fleet, own, features, personal.means, RULE).scores
    wanted: dict[str, Array] = {"mixed": mix, "personal": own, "fleet": fleet}
    with np.load(out) as found:
        np.testing.assert_allclose(found["scores"], wanted[head], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found["classes"], found["scores"].argmax(axis=1))
        assert ((found["fleet_share"] >= 0) & (found["fleet_share"] <= 1)).all()


@pytest.mark.parametrize("bad", [{"x": np.zeros((3, 5), np.float32)}, {"x": X, "y": X[:0]}, {"a": X, "b": X}])
def test_data_that_does_not_fit_is_refused_by_name(
    device: Path, bad: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    if "y" in bad:
        (device / "x.npz").write_bytes(b"no archive")
    else:
        np.savez(device / "x.npz", **bad)  # type: ignore[arg-type]
    assert run(device, "predict", "--data", str(device / "x.npz"), "-o", str(device / "y.npz")) == 3
    assert "--data" in capsys.readouterr().err


def test_where_there_is_no_head_or_no_model_the_remedy_is_said(
    device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    personal = head_of(device)
    from edge_agent.personal.shelf import FILE, FOLDER, keep

    keep(device / "state", replace(personal, origin=replace(personal.origin, model=None)))
    assert run(device, "deploy", "-o", str(device / "model.onnx")) == 2
    assert "personal.deploy = true" in capsys.readouterr().err
    (device / "state" / FOLDER / FILE).unlink()
    assert run(device, "show") == 2
    assert "the next task brings one" in capsys.readouterr().err


@pytest.mark.native
def test_what_is_collected_for_who_helps_holds_nothing_of_the_head(device: Path) -> None:
    personal = head_of(device)
    text = "".join(collected(device / "agent.toml", {}).values())
    for value in (*personal.head.weight.ravel(), *personal.head.bias, *personal.means.own):
        for said in (repr(float(value)), f"{value:.6g}", np.float32(value).tobytes().hex()):
            assert said not in text or len(said) < 5
