"""The mask that the fleet shares: real agents and a coordinator in one process, over an in-memory broker."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.costs import costs
from coordinator.deployment import inference_file, read_deployable
from coordinator.feedback import reach
from coordinator.masking import check_mask, first_mask, next_mask
from coordinator.next_model import structure_of
from coordinator.reports import Reports
from coordinator.settings import Settings, SparsitySettings, TierSettings
from edge_agent.agent import Agent
from edge_agent.data import DataSettings
from edge_agent.link import last_will
from edge_agent.runtimes.engine import Vector
from edge_agent.settings import AgentSettings, BrokerSettings
from edge_agent.store import AgentStore
from protocol.errors import BundleError, ConfigurationError
from protocol.messages import BlobRef, OptimizerSpec, Task, TaskReport
from protocol.transport import MemoryTransport
from sparse.masks import Mask, mask_digest, masked
from tests import tiny
from tests.coordinator.simulation import TOPICS, Simulation, examine, make_settings, write_bundle
from tests.tiny_tiers import write_bundle as write_tiers

WEIGHTS = tiny.FEATURES * tiny.CLASSES
# Of the weight: class 1's, on the feature that parts the classes. Masks that know nothing yet keep the lowest indices.
TELLING = 3
# Of a bundle that was pruned before its export: half of the weights, and all biases.
BROUGHT = np.array([1, 0, 0, 1, 0, 1, 1, 1], np.bool_)


class RealAgent:
    """An agent as devices run it, driven by the simulation as its fake ones are, that can be killed."""

    def __init__(self, fleet: Simulation, device: str, seed: int) -> None:
        self.fleet, self.device, self.seed, self.folder = fleet, device, seed, fleet.folder / device
        self.folder.mkdir()
        (features,) = fleet.bundle.manifest.inputs[0].shape
        tiny.write_shard(self.folder / "shard.npz", seed=seed, features=features)
        self.start()

    def start(self) -> None:
        self.store = AgentStore(self.folder / "state", 1 << 24)
        settings = AgentSettings(
            device=self.device,
            fleet="test",
            state="state",
            broker=BrokerSettings("mqtt://127.0.0.1:1883"),
            data=DataSettings(path="shard.npz"),
        )
        will = last_will(TOPICS, self.device, self.store.boot)
        self.transport: MemoryTransport = self.fleet.broker.connect(self.device, TOPICS.of_agent(self.device), will)
        self.agent = Agent(settings, self.folder, self.store, self.transport, np.random.default_rng(self.seed))

    def kill(self) -> None:
        self.fleet.broker.cut(self.device)
        self.store.close()
        self.start()

    def work(self, now: float) -> None:
        while (event := self.transport.poll(0)) is not None:
            self.agent.handle(event, now)
        self.agent.advance(now)

    @property
    def masks(self) -> list[bytes]:
        """The digests of the masks on its disk."""
        return [bytes.fromhex(path.name) for path in (self.folder / "state" / "masks").iterdir()]


class Fleet(Simulation):
    """A simulation of real agents, which keeps what the coordinator told them."""

    agents: dict[str, RealAgent]  # type: ignore[assignment]

    def add(self, device: str) -> RealAgent:  # type: ignore[override]
        agent = self.agents[device] = RealAgent(self, device, len(self.agents))
        return agent

    def tasks(self, number: int) -> dict[str, Task]:
        return {update.device: update.task for update in self.store.accepted(number)}

    def mask(self, version: int | None = None) -> Mask:
        current = self.store.current() if version is None else self.store.version(version)
        assert current is not None
        mask = structure_of(self.store, current.version).mask
        assert mask is not None
        return mask

    def dense(self) -> Vector:
        return np.frombuffer(self.model(), "<f4").astype(np.float32)

    def close(self) -> None:
        for agent in self.agents.values():
            agent.store.close()
        self.store.close()


def settings_of(folder: Path, count: int, devices: int, codec: str = "mask/float32", **sparsity: object) -> Settings:
    made = make_settings(folder, count=count, devices=devices)
    training = replace(made.training, codec=codec, local_steps=4, learning_rate=0.2)
    wanted = {"final": 0.5, "end_round": 1, "last_refresh": 9, "report_every": 1, "report_fraction": 1.0} | sparsity
    return replace(made, training=training, sparsity=SparsitySettings(**wanted))  # type: ignore[arg-type]


def fleet_of(folder: Path, settings: Settings, devices: int) -> Fleet:
    fleet = Fleet(folder, settings, tiny.write_bundle(folder / "bundle"), examine=examine)
    fleet.start()
    for i in range(devices):
        fleet.add(f"dev-{i}")
    return fleet


@pytest.fixture
def fleets(tmp_path: Path) -> Iterator[list[Fleet]]:
    made: list[Fleet] = []
    yield made
    for fleet in made:
        fleet.close()


def test_devices_train_what_the_mask_keeps_and_it_alone(tmp_path: Path, fleets: list[Fleet]) -> None:
    fleet = fleet_of(tmp_path, settings_of(tmp_path, 2, 2, report_every=0), 2)
    fleets.append(fleet)
    fleet.finish()
    assert not fleet.rejected
    mask, dense = fleet.mask(), fleet.dense()
    assert np.count_nonzero(mask[:WEIGHTS]) == WEIGHTS // 2
    assert mask[WEIGHTS:].all()
    assert (dense[: tiny.TOTAL][mask] != 0).all()
    # The model began at zeros, nobody trained there and nobody reported.
    assert not dense[: tiny.TOTAL][~mask].any()


def test_masks_agree_on_both_ends_and_kills_change_no_bit(tmp_path: Path, fleets: list[Fleet]) -> None:
    settings = settings_of(tmp_path / "a", 6, 2, "mask/float16", end_round=4, report_every=2)
    (tmp_path / "a").mkdir()
    calm = fleet_of(tmp_path / "a", settings, 2)
    fleets.append(calm)
    calm.finish()
    (tmp_path / "b").mkdir()
    settings = settings_of(tmp_path / "b", 6, 2, "mask/float16", end_round=4, report_every=2)
    rough = fleet_of(tmp_path / "b", settings, 2)
    fleets.append(rough)
    for turns in (9, 14, 6, 21, 11, 17):
        for _ in range(turns):
            rough.turn()
        rough.agents["dev-0"].kill()
        rough.turn()
        rough.agents["dev-1"].kill()
        rough.kill()
        rough.start()
    rough.finish()
    assert rough.model() == calm.model()
    for number in range(1, 7):
        there = mask_digest(rough.mask(number - 1))
        assert there == mask_digest(calm.mask(number - 1))
        assert {t.mask.digest for t in rough.tasks(number).values() if t.mask} == {there}
    last = mask_digest(rough.mask(5))
    assert all(agent.masks == [last] for agent in rough.agents.values())


def test_a_mask_is_announced_as_the_difference_to_the_one_before(tmp_path: Path, fleets: list[Fleet]) -> None:
    fleet = fleet_of(tmp_path, settings_of(tmp_path, 4, 1, end_round=4, report_every=0), 1)
    fleets.append(fleet)
    fleet.finish()
    told = [fleet.tasks(number)["dev-0"].mask for number in (1, 2, 3, 4)]
    digests = [mask_digest(fleet.mask(version)) for version in range(4)]
    assert [shared.digest for shared in told if shared] == digests
    for before, after, shared in zip(digests, digests[1:], told[1:], strict=False):
        assert shared is not None
        assert shared.base == (before if before != after else None)
    assert any(shared is not None and shared.base is not None for shared in told)


def test_a_device_that_joins_late_and_one_that_lost_its_mask_get_it_whole(tmp_path: Path, fleets: list[Fleet]) -> None:
    settings = settings_of(tmp_path, 4, 2, end_round=4, report_every=0)
    settings = replace(settings, rounds=replace(settings.rounds, minimum=1, deadline_s=5.0))
    fleet = fleet_of(tmp_path, settings, 1)
    fleets.append(fleet)
    fleet.until(lambda: len(fleet.committed) == 2)
    lost = fleet.agents["dev-0"]
    shutil.rmtree(tmp_path / "dev-0" / "state" / "masks")
    lost.kill()
    fleet.add("dev-late")
    fleet.finish()
    assert not fleet.rejected
    assert set(fleet.tasks(4)) == {"dev-0", "dev-late"}
    assert {update for n in (3, 4) for update in fleet.tasks(n)} == {"dev-0", "dev-late"}
    whole = [t.mask for n in (3, 4) for t in fleet.tasks(n).values() if t.mask and t.mask.base is None]
    assert whole
    assert lost.masks == fleet.agents["dev-late"].masks == [mask_digest(fleet.mask(3))]


def test_a_mask_that_keeps_everything_gives_the_bits_of_plain_averaging(tmp_path: Path, fleets: list[Fleet]) -> None:
    models = []
    for name, codec, sparsity in (
        ("plain", "all/float32", {"final": 0.0}),
        ("ones", "mask/float32", {"begin_round": 4, "end_round": 4}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        fleet = fleet_of(folder, settings_of(folder, 4, 2, codec, **sparsity), 2)
        fleets.append(fleet)
        fleet.until(lambda fleet=fleet: len(fleet.committed) == 3)  # type: ignore[misc]
        models.append(fleet.model())
    assert fleets[1].mask(2).all()
    assert models[0] == models[1]


def test_a_pruned_coordinate_with_a_persistent_gradient_comes_back(tmp_path: Path, fleets: list[Fleet]) -> None:
    kept: dict[int, list[bool]] = {}
    for every in (1, 0):
        folder = tmp_path / str(every)
        folder.mkdir()
        fleet = fleet_of(folder, settings_of(folder, 6, 2, report_every=every, refresh_every=2), 2)
        fleets.append(fleet)
        fleet.finish()
        kept[every] = [bool(fleet.mask(version)[TELLING]) for version in range(6)]
    assert kept[1][0] is False
    assert kept[1][-1] is True
    assert not any(kept[0])
    # It came with what it learned while it was out, and was trained on.
    assert fleets[0].dense()[TELLING] > 0


def test_the_dense_copy_is_kept_and_the_model_that_is_evaluated_is_masked(tmp_path: Path, fleets: list[Fleet]) -> None:
    seen: list[Vector] = []
    settings = settings_of(tmp_path, 3, 1, refresh_every=10)
    fleet = fleet_of(tmp_path, settings, 0)
    fleet.kill()
    fleet.examine = lambda model: (seen.append(model.copy()), examine(model))[1]  # type: ignore[func-returns-value]
    fleet.start()
    fleet.add("dev-0")
    fleets.append(fleet)
    fleet.finish()
    dense, mask = fleet.dense(), fleet.mask()
    assert dense[: tiny.TOTAL][~mask].any(), "what was reported moves the dense copy"
    assert seen[-1].tobytes() == masked(dense, mask).tobytes()


def test_an_update_packed_on_another_mask_is_refused_by_name(tmp_path: Path, fleets: list[Fleet]) -> None:
    fleet = fleet_of(tmp_path, settings_of(tmp_path, 1, 1), 1)
    fleets.append(fleet)
    agent = fleet.agents["dev-0"].agent
    other = ~fleet.mask(0)
    other[WEIGHTS:] = True
    assert np.count_nonzero(other) == np.count_nonzero(fleet.mask(0))
    right = agent._assets.masks.read

    def read(digest: bytes, n: int) -> Mask | None:
        """Another mask, of as many weights, as soon as the update is packed."""
        return other if agent.job.phase == "packing" else right(digest, n)

    agent._assets.masks.read = read  # type: ignore[method-assign]
    fleet.until(lambda: bool(fleet.rejected))
    assert fleet.rejected[0].reason == "mask"


def test_a_bundle_that_cannot_be_masked_so_is_refused_by_name(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, 3, 1)
    tiers = write_tiers(tmp_path / "tiers").manifest
    with pytest.raises(ConfigurationError, match=r"sparsity\.final: 0.5 is for a fleet of whole models.* set sparsity"):
        check_mask(settings, tiers)
    check_mask(replace(settings, tiers=TierSettings(select="off")), tiers)
    check_mask(settings_of(tmp_path, 3, 1, "all/float32", final=0.0), tiers)
    with pytest.raises(ConfigurationError, match=r"sparsity\.final: .*no tensor is prunable"):
        check_mask(settings, write_bundle(tmp_path / "none").manifest)
    far = replace(settings, sparsity=replace(settings.sparsity, final=0.95))
    with pytest.raises(ConfigurationError, match=r"sparsity\.final: .*the nearest that works is 0.8333"):
        check_mask(far, tiny.write_bundle(tmp_path / "far").manifest)


def test_the_mask_that_a_pruned_bundle_brings_along_is_kept_by_the_whole_fleet(
    tmp_path: Path, fleets: list[Fleet]
) -> None:
    settings = settings_of(tmp_path, 3, 2, final=0.0)
    fleet = Fleet(tmp_path, settings, tiny.write_bundle(tmp_path / "bundle", mask=BROUGHT), examine=examine)
    fleet.start()
    fleets.append(fleet)
    for device in ("dev-0", "dev-1"):
        fleet.add(device)
    fleet.finish()
    np.testing.assert_array_equal(fleet.mask(), BROUGHT)
    assert all(task.mask is not None and task.mask.report == 0 for task in fleet.tasks(3).values())
    assert fleet.dense()[: tiny.TOTAL][BROUGHT].all()
    assert not fleet.dense()[: tiny.TOTAL][~BROUGHT].any()


def test_a_codec_on_a_mask_needs_one_from_the_settings_or_the_bundle(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, 3, 2, final=0.0)
    with pytest.raises(ConfigurationError, match=r"training\.codec: mask/float32 needs a mask; set sparsity\.final"):
        check_mask(settings, tiny.write_bundle(tmp_path / "plain").manifest)
    check_mask(settings, tiny.write_bundle(tmp_path / "pruned", mask=BROUGHT).manifest)


def test_a_coordinator_does_not_start_on_a_bundle_that_cannot_be_masked(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, settings_of(tmp_path, 3, 1), write_bundle(tmp_path / "bundle"))
    with pytest.raises(ConfigurationError, match=r"sparsity\.final"):
        fleet.start()
    fleet.store.close()


def test_the_mask_has_exactly_the_asked_number_and_the_last_version_keeps_its_own(tmp_path: Path) -> None:
    manifest = tiny.write_bundle(tmp_path / "bundle").manifest
    settings = settings_of(tmp_path, 10, 1, final=0.8, begin_round=2, end_round=6, refresh_every=2, last_refresh=None)
    rng, sizes = np.random.default_rng(0), []
    mask: Mask | None = None
    for version in range(11):
        dense = rng.standard_normal(manifest.total).astype(np.float32)
        before = mask
        mask = next_mask(settings, manifest, before, dense, version)
        assert mask is not None
        sizes.append(int(np.count_nonzero(mask[:WEIGHTS])))
        if version % 2 == 0 and version > 0:
            assert mask is before, "rounds 3, 5, 7 and so on, and what comes after the last, keep the mask"
            if version > 5:
                assert mask is before, "masks rest after round 6"
    # Of 6 weights, at sparsities 0 to round 3, 0.7 for two rounds, and 0.8 from round 6 on.
    assert sizes == [6, 6, 6, 2, 2, 1, 1, 1, 1, 1, 1]


def test_a_mask_that_rotted_on_a_devices_disk_is_told_whole_in_the_same_round(
    tmp_path: Path, fleets: list[Fleet]
) -> None:
    settings = settings_of(tmp_path, 3, 1, end_round=3, report_every=0)
    fleet = fleet_of(tmp_path, settings, 1)
    fleets.append(fleet)
    agent = fleet.agents["dev-0"]
    said: list[TaskReport] = []
    send = agent.agent._link.send

    def listen(channel: str, body: object, **more: object) -> None:
        if isinstance(body, TaskReport):
            said.append(body)
        send(channel, body, **more)  # type: ignore[arg-type]

    agent.agent._link.send = listen  # type: ignore[method-assign,assignment]
    fleet.until(lambda: len(fleet.committed) == 1)
    for path in (tmp_path / "dev-0" / "state" / "masks").iterdir():
        path.write_bytes(b"rotten")
    fleet.finish()
    refused = [report.reason for report in said if report.state == "refused"]
    assert refused == ["mask-base"]
    assert [event.devices for event in fleet.committed] == [1, 1, 1]


def test_momentum_reaches_as_far_as_its_velocity_builds_up(tmp_path: Path) -> None:
    fleet_settings = settings_of(tmp_path, 1, 1)
    for optimizer in (OptimizerSpec(), OptimizerSpec(momentum=0.9), OptimizerSpec(momentum=0.5, nesterov=True)):
        velocity, moved = 0.0, 0.0
        for _ in range(7):
            velocity = optimizer.momentum * velocity + 1.0
            moved += 1.0 + optimizer.momentum * velocity if optimizer.nesterov else velocity
        task = a_task(fleet_settings, optimizer)
        assert reach(task, 100) == pytest.approx(0.3 * moved)
    epochs = replace(a_task(fleet_settings, OptimizerSpec()), local_steps=0, local_epochs=2)
    assert reach(epochs, 100) == pytest.approx(0.3 * 2 * 25)
    assert reach(epochs, 1) == pytest.approx(0.3 * 2)


def a_task(settings: Settings, optimizer: OptimizerSpec) -> Task:
    blob = BlobRef(bytes(32), 0)
    return Task("run", 1, blob, blob, 0, 7, 0, 4, 0.3, optimizer, "mask/float32", 0, 1.0)


def test_the_model_is_written_under_its_mask_and_the_dense_one_on_request(tmp_path: Path, fleets: list[Fleet]) -> None:
    fleet = fleet_of(tmp_path, settings_of(tmp_path, 3, 1, refresh_every=10), 1)
    fleets.append(fleet)
    fleet.finish()
    for version in (0, 2, 3):
        with Reports(tmp_path / "state") as reports:
            read = read_deployable(reports.model(version))
        assert read.mask is not None
        assert mask_digest(read.mask) == mask_digest(fleet.mask(version))
        assert not read.model[: tiny.TOTAL][~read.mask].any()
    assert read.mask is not None
    written = np.frombuffer(inference_file(fleet.bundle, read.model), "<f4")
    assert written.tobytes() == masked(fleet.dense(), fleet.mask()).tobytes()
    assert read.dense.tobytes() == fleet.dense().tobytes()
    assert read.dense[: tiny.TOTAL][~read.mask].any()


def test_costs_say_both_denominators_and_what_devices_measured(tmp_path: Path, fleets: list[Fleet]) -> None:
    fleet = fleet_of(tmp_path, settings_of(tmp_path, 3, 2), 2)
    fleets.append(fleet)
    fleet.finish()
    fleet.coordinator.stop()
    with Reports(tmp_path / "state") as reports:
        found = costs(reports, fleet.bundle)
    dense, deployed = found.models
    assert (dense.model, dense.parameters, dense.prunable, dense.sparsity_of_all) == ("dense", tiny.TOTAL, WEIGHTS, 0)
    assert (deployed.parameters, deployed.prunable) == (tiny.TOTAL - WEIGHTS // 2, WEIGHTS // 2)
    assert deployed.sparsity_of_prunable == 0.5
    assert deployed.sparsity_of_all == WEIGHTS / 2 / tiny.TOTAL
    assert (deployed.accuracy, dense.accuracy) == (fleet.committed[-1].accuracy, None)
    (trained,) = found.training
    assert (trained.variant, trained.updates, trained.devices) == ("full", 6, 2)
    assert trained.step_ms > 0
    assert trained.peak_mib is not None
    assert 1 < trained.peak_mib < 10_000
    # Of a bundle that says no count none is made up.
    assert trained.multiply_adds is None
    assert found.bytes_up > 0
    assert found.bytes_down > found.bytes_up


def test_a_bundle_whose_mask_leaves_out_a_bias_is_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, 3, 2, final=0.0)
    bias = BROUGHT.copy()
    bias[-1] = False
    bundle = tiny.write_bundle(tmp_path / "bundle", mask=bias)
    with pytest.raises(BundleError, match=r"mask\.bin: mask: leaves out values of bias, which is not prunable; export"):
        first_mask(settings, bundle, np.zeros(tiny.TOTAL, np.float32))
