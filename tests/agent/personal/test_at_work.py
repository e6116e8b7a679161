"""A device with a head of its own: made with each task, told of in figures alone, and never sent."""

import ast
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import edge_agent
from edge_agent.data import Dataset, DataSettings, load
from edge_agent.held_out import divided
from edge_agent.personal.at_work import personalise
from edge_agent.personal.settings import OFF, PersonalSettings
from edge_agent.personal.shelf import FOLDER, Figures, Personal, kept
from edge_agent.personal.study import drawn, studied
from edge_agent.runtimes.features import Extractor, open_extractor
from edge_agent.slots import Slots
from edge_agent.trial import software
from protocol.bundle import Bundle
from protocol.disk import LOCAL
from protocol.envelope import decode
from protocol.errors import ConfigurationError
from protocol.messages import HeldOut, Hello, Need, Offer
from protocol.transport import Incoming, MemoryBroker
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.personal.headed import CLASSES, INPUTS, TOTAL, headed, model
from tests.agent.test_agent import DEVICE, Fleet
from tests.agent.test_variants import ONES, finish
from tests.tiny import write_bundle, write_shard

DATA = DataSettings(path="shard.npz", hold_out=0.25, hold_out_seed=3)
ON = PersonalSettings(enabled=True)


@dataclass
class Overheard:
    """A fleet, and every byte that went over its broker."""

    fleet: Fleet
    said: list[tuple[str, bytes]]

    def all_bytes(self) -> bytes:
        return b"".join(payload for _, payload in self.said)


def fleet_of(folder: Path, settings: PersonalSettings, data: DataSettings = DATA) -> Fleet:
    folder.mkdir(exist_ok=True)
    bundle = write_bundle(folder / "bundle")
    write_shard(folder / "shard.npz")
    broker = MemoryBroker()
    fleet = Fleet(folder, broker, FakeCoordinator(broker, bundle), None, None, data=data, personal=settings)  # type: ignore[arg-type]
    fleet.start(folder)
    return fleet


def trained_fleet(folder: Path, settings: PersonalSettings, rounds: int = 2, data: DataSettings = DATA) -> Overheard:
    fleet = fleet_of(folder, settings, data)
    listener = fleet.broker.connect("listener", ("#",))
    trust(fleet)
    for number in range(1, rounds + 1):
        fleet.coordinator.say(fleet.coordinator.task(number, number * ONES))
        finish(fleet, number)
    said = []
    while (event := listener.poll(0)) is not None:
        if isinstance(event, Incoming):
            said.append((event.topic, event.payload))
    fleet.store.close()
    return Overheard(fleet, said)


def trust(fleet: Fleet) -> None:
    """The bundle has passed its trial: what follows is what a committed one gets."""
    slots, digest = Slots(fleet.store.database, software()), fleet.coordinator.task(1, ONES).manifest.digest
    assert slots.begin(digest)
    assert slots.commit(digest)


def state_of(folder: Path) -> Personal:
    found = kept(folder / "state")
    assert found is not None
    return found


def told(overheard: Overheard) -> list[object]:
    """What was said to the device and by it, but for how long things took and which start of it this is."""
    found: list[object] = []
    for topic, payload in overheard.said:
        envelope = decode(payload)
        body = getattr(envelope, "body", None)
        if f"/{DEVICE}/" in topic and body is not None:
            if isinstance(body, Offer):
                body = replace(body, train_s=0.0, peak_mib=None, update_sequence=0)
            found.append(replace(body, instance=0) if isinstance(body, Hello) else body)
    return found


def test_a_device_makes_a_head_of_the_tasks_model_and_keeps_how_it_does(tmp_path: Path) -> None:
    trained_fleet(tmp_path, ON)
    found = state_of(tmp_path)
    assert (found.origin.round, found.origin.version, found.origin.trained_on) == (2, 1, 30)
    np.testing.assert_array_equal(found.fleet.weight, 2.0)
    assert found.origin.figures is not None
    assert found.origin.figures.personal > found.origin.figures.fleet
    assert found.origin.model is None


def test_what_a_device_says_is_the_same_with_and_without_a_head_of_its_own(tmp_path: Path) -> None:
    without, with_head = (trained_fleet(tmp_path / n, s) for n, s in (("without", OFF), ("with", ON)))
    assert told(with_head) == told(without)
    assert with_head.fleet.coordinator.payloads == without.fleet.coordinator.payloads
    assert not (tmp_path / "without" / "state" / FOLDER).exists()


@pytest.mark.parametrize("report", [False, True])
def test_no_message_holds_any_of_the_head(tmp_path: Path, report: bool) -> None:
    overheard = trained_fleet(tmp_path, replace(ON, report=report))
    found, everything = state_of(tmp_path), overheard.all_bytes()
    assert overheard.said
    secret = np.concatenate([found.head.weight.ravel(), found.head.bias, found.means.own, found.means.fleet])
    public = {float(value) for value in found.fleet.weight.ravel()} | {0.0, 1.0}
    values = [value for value in secret if float(value) not in public]
    assert len(values) > 8
    for value in values:
        for way in ("<f4", ">f4", "<f8", ">f8"):
            assert np.asarray(value, way).tobytes() not in everything, value
    delta = found.head.weight - found.fleet.weight
    assert delta.astype("<f4").tobytes() not in everything
    assert delta.astype("<f2").tobytes() not in everything


def test_accuracies_are_told_only_where_the_operator_allows(tmp_path: Path) -> None:
    silent, open_ = (trained_fleet(tmp_path / n, replace(ON, report=r)) for n, r in (("no", False), ("yes", True)))
    quiet, said = (o.fleet.coordinator.of(Offer)[-1] for o in (silent, open_))
    assert isinstance(quiet, Offer)
    assert isinstance(said, Offer)
    assert quiet.held_out is not None
    assert said.held_out is not None
    assert (quiet.held_out.personal, quiet.held_out.mixed) == (None, None)
    figures = state_of(tmp_path / "yes").origin.figures
    assert figures is not None
    assert said.held_out.accuracy == pytest.approx(figures.fleet)
    assert (said.held_out.personal, said.held_out.mixed) == (figures.personal, figures.mixed)


def test_a_bundle_on_trial_gets_no_head_before_its_next_task(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, ON)
    heads = []
    for number in (1, 2):
        fleet.coordinator.say(fleet.coordinator.task(number, ONES))
        finish(fleet, number)
        heads.append(kept(tmp_path / "state"))
    fleet.store.close()
    assert heads[0] is None
    assert heads[1] is not None


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    bundle, path = write_bundle(tmp_path / "bundle"), write_shard(tmp_path / "shard.npz")
    every = load(DataSettings(path=str(path)), bundle.manifest, tmp_path)
    trained, held = divided(every, DATA, bundle.manifest, tmp_path)
    assert held is not None
    spoiled = Dataset(tuple(np.asarray(a[np.arange(len(held))]) + 99 for a in held.inputs), held.targets)
    extractor = open_extractor(bundle)
    one, other = (studied(extractor, ONES, trained, part, ON.recipe, 2000) for part in (held, spoiled))
    np.testing.assert_array_equal(one.head.weight, other.head.weight)
    np.testing.assert_array_equal(one.means.fleet, other.means.fleet)
    assert one.trained_on == len(trained)


def test_a_kill_and_a_restart_give_the_same_head_to_the_bit(tmp_path: Path) -> None:
    trained_fleet(tmp_path / "whole", ON, rounds=1)
    folder = tmp_path / "killed"
    fleet = fleet_of(folder, ON)
    trust(fleet)
    fleet.coordinator.say(fleet.coordinator.task(1, ONES))
    fleet.until(lambda: (folder / "state" / FOLDER).exists())
    fleet.restart()
    finish(fleet)
    fleet.store.close()
    one, other = ((tmp_path / n / "state" / FOLDER / "head").read_bytes() for n in ("whole", "killed"))
    assert one == other


def test_zero_steps_answer_as_the_fleets_model_does(tmp_path: Path) -> None:
    trained_fleet(tmp_path, replace(ON, steps=0), rounds=1)
    found = state_of(tmp_path)
    np.testing.assert_array_equal(found.head.weight, found.fleet.weight)
    figures = found.origin.figures
    assert figures is not None
    assert figures.fleet == figures.personal == figures.mixed


def test_a_model_without_a_head_costs_a_word_in_the_log_and_no_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = headed(tmp_path / "bundle", loss="mse")
    task = FakeCoordinator(MemoryBroker(), bundle).task(1, model())
    said = HeldOut(4, 0.5, 0.5)
    data = Dataset((np.zeros((4, INPUTS), np.float32),), (np.zeros(4, np.int64),))
    found = personalise(ON, tmp_path, task, (bundle, "full"), model(), (data, None), said, LOCAL)
    assert found == said
    assert "no personal head" in caplog.text
    assert kept(tmp_path) is None


def test_features_that_would_not_fit_are_refused_with_what_would(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", features=20_000)
    data = Dataset((np.zeros((1000, 1), np.float32),), (np.zeros(1000, np.int64),))
    with pytest.raises(ConfigurationError, match="set at most 838"):
        studied(open_extractor(bundle), np.zeros(40_002, np.float32), data, None, ON.recipe, 2000)


def test_of_more_examples_than_may_be_held_so_many_are_drawn_from_all() -> None:
    rows = drawn(1000, 100, 0)
    assert len(set(rows.tolist())) == 100
    assert (np.diff(rows) > 0).all()
    assert rows.min() < 100
    assert rows.max() >= 900
    np.testing.assert_array_equal(drawn(7, 100, 0), np.arange(7))


def test_the_graph_to_deploy_is_fetched_only_where_it_is_wanted_and_gets_this_head(tmp_path: Path) -> None:
    for name, settings in (("plain", ON), ("deployed", replace(ON, deploy=True))):
        fleet = trained_fleet(tmp_path / name, settings, rounds=1).fleet
        (entry,) = [e for e in fleet.coordinator.bundle.manifest.files if e.path == "inference.onnx"]
        needs = {need.digest.hex() for need in fleet.coordinator.of(Need) if isinstance(need, Need)}
        assert (entry.sha256 in needs) == settings.deploy
        found = state_of(tmp_path / name)
        assert (found.origin.model is not None) == settings.deploy
        if found.origin.model is not None:
            data = (tmp_path / name / "state" / FOLDER / found.origin.model).read_bytes()
            # The tiny bundle's graph is its weight and bias alone.
            assert data == found.head.weight.tobytes() + found.head.bias.tobytes()


def test_only_what_makes_and_what_uses_the_head_on_this_device_reads_it() -> None:
    root = Path(next(iter(edge_agent.__path__)))
    readers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (
                node.module == "edge_agent.personal.shelf"
                or (node.module == "edge_agent.personal" and any(a.name == "shelf" for a in node.names))
            ):
                readers.add(path.relative_to(root).as_posix())
    assert readers == {"personal/at_work.py", "personal/study.py", "personal_command.py"}


def test_figures_of_a_real_graph_are_those_of_its_own_scores(tmp_path: Path) -> None:
    bundle, rng = headed(tmp_path / "bundle"), np.random.default_rng(2)
    x = rng.normal(size=(150, INPUTS)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)
    data, held = Dataset((x[:100],), (y[:100],)), Dataset((x[100:],), (y[100:],))
    start = model()
    found = studied(open_extractor(bundle), start, data, held, ON.recipe, 2000)
    assert isinstance(found.figures, Figures)
    both = np.maximum(np.concatenate([x[100:], -x[100:]], axis=1), 0.0)
    scores = both @ start[: CLASSES * 4].reshape(CLASSES, 4).T + start[CLASSES * 4 : TOTAL]
    assert found.figures.fleet == np.mean(scores.argmax(axis=1) == y[100:])
    assert found.figures.personal > max(0.8, found.figures.fleet)
    assert 0.0 < found.figures.share < 1.0


@pytest.mark.parametrize(
    "given",
    [{"steps": -1}, {"rate": 0.0}, {"rate": 1.5}, {"weight_decay": -0.1}, {"most_examples": 0}, {"batch_size": 0}],
)
def test_settings_out_of_range_are_refused_by_name(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        PersonalSettings(**given)  # type: ignore[arg-type]


def test_where_memory_is_short_the_task_is_done_without_a_head(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = headed(tmp_path / "bundle")
    task = FakeCoordinator(MemoryBroker(), bundle).task(1, model())

    def short(bundle: Bundle, variant: str) -> Extractor:
        raise MemoryError

    data = Dataset((np.zeros((4, INPUTS), np.float32),), (np.zeros(4, np.int64),))
    assert personalise(ON, tmp_path, task, (bundle, "full"), model(), (data, None), None, LOCAL, short) is None
    assert "no personal head: memory" in caplog.text
