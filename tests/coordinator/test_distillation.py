"""Distillation in a coordinator, on real bundles: tiers and other architectures teach, and history stays replayable."""

import logging
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.cli import main
from coordinator.distillation_settings import DistillationSettings, PeerSettings
from coordinator.distiller import Distiller, open_distiller
from coordinator.history import open_history
from coordinator.replay import replay, replay_without
from coordinator.reports import Reports
from coordinator.schema import DATABASE
from coordinator.settings import EvaluationSettings, Settings, TierSettings, load
from coordinator.structure import Structure
from coordinator.teachers import ClientModel, newest_clients
from coordinator.trust_settings import PrivacySettings
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.parameters import initial_model
from protocol.bundle import open_bundle
from protocol.errors import ConfigurationError, DataError, SparsefleetError
from protocol.messages import OptimizerSpec
from tests.coordinator.simulation import Simulation, make_settings
from tests.coordinator.test_crashes import arm, run_through

FEATURES, CLASSES = 5, 3
RULE = {"steps": 40, "check_every": 10, "batch_size": 16}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two architectures, each with its bundle for distillation, and data: inputs, and labelled ones."""
    import torch
    from torch import nn

    import tests.export.quick  # noqa: F401 - for what its import does
    from export.bundle import write_bundle
    from export.distillation import distillation_spec
    from export.spec import TrainingSpec

    root = tmp_path_factory.mktemp("architectures")
    for name, width, tiers in (("narrow", 8, (0.5,)), ("wide", 12, ())):
        torch.manual_seed(width)
        module = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, CLASSES))
        examples = torch.randn(12, FEATURES), torch.randint(0, CLASSES, (12,))
        spec = TrainingSpec(module, *examples, "cross_entropy", ("accuracy",))
        write_bundle(spec, root / name, line=name, backends=("portable",), tiers=tiers)
        write_bundle(distillation_spec(spec), root / f"{name}-student", line=f"{name}-student", backends=("portable",))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, FEATURES)).astype(np.float32)
    np.savez(root / "pool.npz", x=x)
    # What no random device knows, so that any move may be the better one.
    np.savez(root / "validation.npz", x=x[:60], y=x[:60, :CLASSES].argmax(axis=1))
    return root


def settings_of(folder: Path, exported: Path, name: str, **distillation: object) -> Settings:
    said = {"bundle": str(exported / f"{name}-student"), "data": str(exported / "pool.npz")}
    said |= {"validation": str(exported / "validation.npz")}
    return replace(
        make_settings(folder),
        bundle=str(exported / name),
        distillation=DistillationSettings(**(said | RULE | distillation)),  # type: ignore[arg-type]
        evaluation=EvaluationSettings(data="unread: the simulation brings its own"),
    )


def fleet_of(settings: Settings, folder: Path, devices: int = 3) -> Simulation:
    folder.mkdir(exist_ok=True)
    bundle = open_bundle(Path(settings.bundle))
    fleet = Simulation(folder, settings, bundle, distiller=open_distiller(settings, bundle))
    fleet.start()
    for i in range(devices):
        fleet.add(f"dev-{i}")
    return fleet


def run(fleet: Simulation) -> Simulation:
    fleet.until(lambda: fleet.coordinator.finished)
    fleet.kill()
    return fleet


def test_a_fleets_model_is_distilled_after_each_fold_and_its_history_folds_again(
    tmp_path: Path, exported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fleet = run(fleet_of(settings_of(tmp_path, exported, "narrow"), tmp_path))
    assert [r.getMessage().split()[1:3] for r in caplog.records if r.getMessage().startswith("distilled")] == [
        [f"version={n}", "teachers=3"] for n in (1, 2, 3)
    ]
    with Reports(tmp_path / "state") as reports:
        told = [(row.version, row.distilled) for row in reports.rounds()]
        assert reports.round(3).figures == reports.rounds()[3]
    assert told[0] == (0, None)
    for version, one in told[1:]:
        assert one is not None, version
        assert (one.teachers, one.before <= one.after) == (3, True)
    history = open_history(tmp_path / "state")
    assert [version for version, one in told if one and one.best_step] == [v for v in (1, 2, 3) if history.distilled(v)]
    distilled = [version for version in (1, 2, 3) if history.distilled(version)]
    assert distilled, "no student was ever better than the average, so that nothing was shown"
    for version in distilled:
        folded, dense = history.folded(version), history.dense(version)
        assert folded is not None
        assert dense is not None
        assert not np.array_equal(folded, dense)
    manifest = fleet.bundle.manifest
    assert [(r.why_not, r.difference) for r in replay(history, manifest, fleet.settings)] == [(None, None)] * 3
    with pytest.raises(SparsefleetError, match="was distilled from its clients' models"):
        list(replay_without(history, manifest, fleet.settings, "dev-0", lambda model, structure: None))
    history.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Vector:
    """The last model of a fleet whose coordinator lived."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(fleet_of(settings_of(folder, exported, "narrow"), folder))
    return last_model(folder)


def last_model(folder: Path) -> Vector:
    history = open_history(folder / "state")
    found = history.dense(3)
    history.close()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("method", "when", "nth"),
    [
        ("commit_round", "before", 2),
        ("commit_round", "after", 2),
        ("put_model", "before", 5),
        ("put_model", "after", 9),
    ],
)
def test_a_coordinator_that_dies_while_it_distils_or_commits_gets_the_same_bits(
    tmp_path: Path, exported: Path, undisturbed: Vector, method: str, when: str, nth: int
) -> None:
    fleet = fleet_of(settings_of(tmp_path, exported, "narrow"), tmp_path)
    run_through(fleet, arm(fleet.store, method, when, nth))
    fleet.kill()
    assert np.array_equal(last_model(tmp_path), undisturbed)


def test_devices_of_a_narrower_tier_teach_the_whole_model(
    tmp_path: Path, exported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tiers = TierSettings(select="static", assign={"dev-0": "tier-050", "dev-1": "full", "dev-2": "tier-050"})
    settings = replace(settings_of(tmp_path, exported, "narrow"), tiers=tiers)
    fleet = run(fleet_of(settings, tmp_path))
    assert "teachers=3" in caplog.text
    history = open_history(tmp_path / "state")
    clients = list(newest_clients(history, fleet.bundle.manifest))
    assert [(c.device, c.variant) for c in clients] == [
        ("dev-0", "tier-050"),
        ("dev-1", "full"),
        ("dev-2", "tier-050"),
    ]
    assert len(clients[0].model) < len(clients[1].model) == fleet.bundle.manifest.total
    history.close()


def test_clients_of_another_architecture_teach_and_a_peer_without_a_round_does_not_hinder(
    tmp_path: Path, exported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    peers = (PeerSettings(str(tmp_path / "wide" / "state"), str(exported / "wide")),)
    alone = settings_of(tmp_path / "narrow", exported, "narrow", peers=peers)
    run(fleet_of(alone, tmp_path / "narrow", devices=3))
    assert "teachers=3" in caplog.text
    run(fleet_of(settings_of(tmp_path / "wide", exported, "wide"), tmp_path / "wide"))
    caplog.clear()
    again = settings_of(tmp_path / "again", exported, "narrow", peers=peers)
    run(fleet_of(again, tmp_path / "again"))
    assert "teachers=6" in caplog.text


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Path:
    """The state of a fleet of the other architecture, that is through with its run."""
    folder = tmp_path_factory.mktemp("other")
    run(fleet_of(settings_of(folder, exported, "wide"), folder))
    return folder / "state"


def taught_by(state: Path, exported: Path, folder: Path) -> Distiller:
    settings = settings_of(
        folder, exported, "narrow", peers=(PeerSettings(str(state), str(exported / "wide")),), steps=0
    )
    return Distiller(settings, open_bundle(exported / "narrow"))


def teachers(distiller: Distiller, exported: Path) -> int:
    """How many teach, beside whom two distillations have: one that knows, and one that says no numbers."""
    model = initial_model(open_bundle(exported / "narrow"))
    own = [ClientModel("knows", "full", model), ClientModel("huge", "full", np.full_like(model, 3e38))]
    for version in (1, 2):
        found = distiller(model, Structure(), own, version)
    assert found is not None
    return found[1]


def execute(state: Path, statement: str) -> None:
    with sqlite3.connect(state / DATABASE) as sql:
        sql.execute(statement)
    sql.close()


@pytest.mark.parametrize(
    ("ail", "said"),
    [
        (lambda state: execute(state, "PRAGMA user_version = 99"), "schema version 99 was written by a newer"),
        (lambda state: execute(state, "PRAGMA user_version = 10"), "schema version 10 was written by an older"),
        (lambda state: execute(state, "INSERT OR REPLACE INTO meta VALUES ('bundle', x'00')"), "is not the bundle of"),
        (
            lambda state: execute(state, """UPDATE models SET trust = '{"noise_multiplier": 1.0}'"""),
            r"its \[privacy\] hides its single clients",
        ),
        (lambda state: (state / DATABASE).write_bytes(b"no database" * 999), "coordinator.sqlite"),
        (lambda state: [path.write_bytes(b"?") for path in (state / "updates").iterdir()], "was altered or cut short"),
    ],
    ids=["newer", "older", "bundle", "privacy", "database", "payloads"],
)
def test_a_peer_that_cannot_be_asked_is_passed_over_and_named_once(
    tmp_path: Path,
    exported: Path,
    other: Path,
    caplog: pytest.LogCaptureFixture,
    ail: Callable[[Path], object],
    said: str,
) -> None:
    state = tmp_path / "state"
    shutil.copytree(other, state)
    distiller = taught_by(state, exported, tmp_path / "own")
    assert teachers(distiller, exported) == 4
    caplog.clear()
    ail(state)
    assert teachers(distiller, exported) == 1
    (told,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("peer=")]
    assert str(state) in told
    assert re.search(said, told)
    assert "device=huge does not teach" in caplog.text


def test_payloads_that_a_peers_coordinator_removes_meanwhile_are_gone_and_no_fault(
    tmp_path: Path, exported: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    shutil.copytree(other, state)
    distiller = taught_by(state, exported, tmp_path / "own")
    history = open_history(state)
    gone, *_ = history.fold(history.newest).accepted
    history.close()
    (state / "updates" / gone.digest.hex()).unlink()
    assert teachers(distiller, exported) == 3
    assert "peer=" not in caplog.text


def test_distillation_every_so_many_rounds(tmp_path: Path, exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run(fleet_of(settings_of(tmp_path, exported, "narrow", every=2, drop_worst=True), tmp_path))
    assert caplog.text.count("distilled version=") == caplog.text.count("distilled version=2") == 1


def test_what_does_not_fit_is_refused_before_a_round(tmp_path: Path, exported: Path) -> None:
    def refused(error: type[Exception], said: str, **distillation: object) -> None:
        settings = settings_of(tmp_path, exported, "narrow", **distillation)
        with pytest.raises(error, match=said):
            Distiller(settings, open_bundle(exported / "narrow"))

    refused(ConfigurationError, "is of another model than the fleet's", bundle=str(exported / "wide-student"))
    refused(ConfigurationError, "is no bundle for distillation", bundle=str(exported / "narrow"))
    refused(DataError, "distillation.data: .* cannot be read", data=str(tmp_path / "none.npz"))
    refused(DataError, "distillation.validation: .* holds x where", validation=str(exported / "pool.npz"))
    np.savez(tmp_path / "two.npz", x=np.zeros((4, FEATURES - 1), np.float32))
    refused(DataError, r"distillation.data: .*, input.*: shape \(4, 4\)", data=str(tmp_path / "two.npz"))


def test_noise_that_hides_devices_and_distillation_from_them_do_not_go_together(exported: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, exported, "narrow")
    with pytest.raises(ValueError, match=r"distillation\.bundle: learns from single clients' models"):
        replace(settings, privacy=PrivacySettings(noise_multiplier=1.0))


def test_settings_that_do_not_go_with_the_fleets_are_refused(exported: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, exported, "narrow")
    said = settings.distillation

    with pytest.raises(ValueError, match=r"distillation\.bundle: moves the model where no device moved it"):
        replace(settings, training=replace(settings.training, optimizer=OptimizerSpec(name="qg", momentum=0.9)))
    with pytest.raises(ValueError, match=r"distillation\.every: 4 is more than rounds\.count = 3"):
        replace(settings, distillation=replace(said, every=4))
    with pytest.raises(ValueError, match=r"distillation\.validation: is evaluation\.data"):
        replace(settings, evaluation=EvaluationSettings(data=said.validation))
    own = (PeerSettings(settings.state, str(exported / "narrow")),)
    with pytest.raises(ValueError, match=r"distillation\.peers: one is this fleet's own"):
        replace(settings, distillation=replace(said, peers=own))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"data": "pool.npz"}, "bundle: is missing"),
        ({"bundle": "b", "data": "pool.npz"}, "validation: is missing"),
        ({"steps": -1}, "steps: -1 must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate: nan must be"),
        ({"patience": 0}, "patience: 0 must be at least 1"),
        ({"patience": 99, "check_every": 100}, "patience: 99 steps end before the first trial"),
        (
            {"bundle": "b", "data": "d", "validation": "v", "peers": (PeerSettings("s", "b"), PeerSettings("s", "c"))},
            "peers: one state folder is named twice",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_key(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DistillationSettings(**keys)  # type: ignore[arg-type]


def test_the_sample_with_all_of_it_switched_on_is_read_with_paths_relative_to_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "sample"]) == 0
    before, section = capsys.readouterr().out.split("[distillation]")
    section, after = section.split("[gossip]")
    path = tmp_path / "coordinator.toml"
    switched_on = section.replace("\n# ", "\n")
    path.write_text(f"{before}[distillation]{switched_on}[gossip]{after}")
    found = load(path).distillation
    assert found.bundle == str(tmp_path / "distillation")
    assert found.peers == (PeerSettings(f"{tmp_path}/../other/coordinator-state", f"{tmp_path}/../other/bundle"),)
