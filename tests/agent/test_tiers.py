"""A device on a width tier: what it fetches, the narrower model it trains, what it carries on, and what it refuses."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_agent.agent import Agent
from edge_agent.cli import main
from edge_agent.memory import available_mib
from edge_agent.momentum import unpack_memory
from edge_agent.runtimes.certificate import certify
from edge_agent.settings import TrainingSettings
from protocol.errors import ConfigurationError
from protocol.layout import layout_of
from protocol.messages import Hello, Offer, OptimizerSpec, Task
from protocol.transport import MemoryBroker
from protocol.width import first_channels, narrowed, places
from sparse.codecs import decode_update
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_agent import Fleet
from tests.agent.test_variants import asked, finish
from tests.tiny import write_shard
from tests.tiny_tiers import TIER, initial, write_bundle


def made(folder: Path, **training: str) -> Fleet:
    bundle = write_bundle(folder / "bundle")
    write_shard(folder / "shard.npz")
    broker = MemoryBroker()
    settings = TrainingSettings(**training)  # type: ignore[arg-type]
    fleet = Fleet(folder, broker, FakeCoordinator(broker, bundle), None, None, training=settings)  # type: ignore[arg-type]
    fleet.start(folder)
    return fleet


def model_of(fleet: Fleet, units: list[int]) -> npt.NDArray[np.float32]:
    return initial()[places(fleet.coordinator.bundle.manifest, {"hidden": np.array(units)})]


def task(fleet: Fleet, round_: int, units: list[int], codec: str = "all/float32") -> Task:
    plain = fleet.coordinator.task(round_, model_of(fleet, units), codec=codec)
    return replace(plain, variant=TIER, channels=bytes(units))


def test_a_tier_is_trained_on_its_slice_with_its_own_files(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    fleet.coordinator.say(task(fleet, 1, [1, 3]))
    finish(fleet)
    assert asked(fleet) == {f"numpy/{TIER}/graph.bin"}
    offer = fleet.coordinator.of(Offer)[0]
    assert isinstance(offer, Offer)
    assert offer.variant == TIER
    seen = narrowed(fleet.coordinator.bundle.manifest, TIER)
    layout = layout_of(seen, TIER)
    assert layout.n_parameters == seen.total == 14 < len(initial())
    delta, _ = decode_update(fleet.coordinator.payloads[0], seen.total, 0, layout.digest)
    assert np.count_nonzero(delta) > 0
    fleet.store.close()


def test_a_device_does_another_variant_with_every_task(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    fleet.coordinator.say(task(fleet, 1, [0, 1]))
    finish(fleet)
    fleet.coordinator.say(replace(fleet.coordinator.task(2, initial()), variant="full"))
    finish(fleet, 2)
    fleet.coordinator.say(fleet.coordinator.task(3, initial()))
    finish(fleet, 3)
    assert [offer.variant for offer in fleet.coordinator.of(Offer) if isinstance(offer, Offer)] == [
        TIER,
        "full",
        "full",
    ]
    fleet.store.close()


@pytest.mark.parametrize(
    ("pinned", "wanted", "said"),
    [
        ("full", TIER, "'tier-050' is asked for, and this device's settings say 'full'"),
        ("auto", "tier-025", "'tier-025' is not in this bundle, which holds full, tier-050"),
    ],
)
def test_a_variant_that_is_not_for_this_device_is_refused(tmp_path: Path, pinned: str, wanted: str, said: str) -> None:
    fleet = made(tmp_path, variant=pinned)
    fleet.coordinator.say(replace(task(fleet, 1, [0, 1]), variant=wanted))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    report = fleet.coordinator.reports[0]
    assert (report.state, report.reason) == ("refused", "variant")
    assert said in report.detail
    fleet.store.close()


def test_a_device_pinned_to_a_tier_does_its_tasks(tmp_path: Path) -> None:
    fleet = made(tmp_path, variant=TIER)
    fleet.coordinator.say(task(fleet, 1, [0, 1]))
    finish(fleet)
    assert [r.state for r in fleet.coordinator.reports] == ["accepted"]
    fleet.store.close()


def test_a_whole_model_where_a_slice_belongs_is_refused(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    fleet.coordinator.say(replace(fleet.coordinator.task(1, initial()), variant=TIER))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    assert (fleet.coordinator.reports[0].state, fleet.coordinator.reports[0].reason) == ("refused", "model")
    fleet.store.close()


def left(fleet: Fleet, units: list[int]) -> npt.NDArray[np.float32]:
    layout = layout_of(narrowed(fleet.coordinator.bundle.manifest, TIER), TIER)
    return fleet.store.residual(layout.digest + bytes(units), layout.n_parameters)


def test_what_was_left_unsent_is_carried_on_for_the_same_channels_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge-agent")
    fleet = made(tmp_path)
    fleet.coordinator.say(task(fleet, 1, [0, 1], "topk:0.1/float32"))
    finish(fleet)
    first = left(fleet, [0, 1])
    assert np.count_nonzero(first) > 0
    assert "other channels" not in caplog.text
    fleet.coordinator.say(task(fleet, 2, [0, 2], "topk:0.1/float32"))
    finish(fleet, 2)
    assert "residual of other channels is not carried on" in caplog.text
    assert np.count_nonzero(left(fleet, [0, 1])) == 0
    assert np.count_nonzero(left(fleet, [0, 2])) > 0

    alone = made(tmp_path / "alone")
    alone.coordinator.say(task(alone, 2, [0, 2], "topk:0.1/float32"))
    finish(alone)
    assert fleet.coordinator.payloads[1] == alone.coordinator.payloads[0]
    fleet.store.close()
    alone.store.close()


def test_a_residual_survives_the_rejection_of_an_update_of_other_channels(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    fleet.coordinator.say(task(fleet, 1, [0, 1], "topk:0.1/float32"))
    finish(fleet)
    first = left(fleet, [0, 1])
    fleet.coordinator.reject = "late"
    fleet.coordinator.say(task(fleet, 2, [0, 2], "topk:0.1/float32"))
    finish(fleet, 2)
    np.testing.assert_array_equal(left(fleet, [0, 1]), first)
    fleet.store.close()


def test_a_device_says_how_much_memory_it_has_for_training(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    fleet.agent = Agent(fleet.agent._settings, tmp_path, fleet.store, fleet.transport, np.random.default_rng(1), 256)
    fleet.until(lambda: bool(fleet.coordinator.of(Hello)))
    hello = fleet.coordinator.of(Hello)[-1]
    assert isinstance(hello, Hello)
    assert hello.memory_mib == 256
    fleet.store.close()


def system(root: Path, cgroup: str, **files: str) -> Path:
    for path, text in {"proc/meminfo": "MemTotal: 4096000 kB\nMemAvailable: 1024000 kB\n", **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "mib"),
    [
        ("0::/\n", {}, 1000),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": f"{200 << 20}\n"}, 200),
        ("0::/\n", {"sys/fs/cgroup/memory.max": f"{4000 << 20}\n"}, 1000),
        ("3:cpu:/x\n4:memory:/x\n", {"sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{64 << 20}"}, 64),
        ("", {"proc/meminfo": "nonsense"}, None),
    ],
)
def test_memory_is_what_is_free_within_the_limits_of_the_control_group(
    tmp_path: Path, cgroup: str, files: dict[str, str], mib: int | None
) -> None:
    assert available_mib(0, system(tmp_path, cgroup, **files)) == mib


def test_memory_in_the_settings_is_what_is_told(tmp_path: Path) -> None:
    assert available_mib(77, tmp_path) == 77
    assert available_mib(0, tmp_path) is None


def test_training_offline_takes_the_first_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    shard = write_shard(tmp_path / "shard.npz")
    command = ["train", "--bundle", str(tmp_path / "bundle"), "--data", str(shard), "--steps", "3", "--json"]
    assert main([*command, "--variant", TIER]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["variant"], facts["trained"]) == (TIER, 14)
    chosen = first_channels(bundle.manifest, TIER)
    assert chosen["hidden"].tolist() == [0, 1]
    assert all(np.isfinite(facts["loss"]))


def test_a_check_of_a_tier_says_that_its_steps_are_not_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(tmp_path / "bundle")
    (tmp_path / "agent.toml").write_text(
        'device = "pi-1"\nfleet = "demo"\nstate = "state"\n[broker]\nurl = "mqtt://127.0.0.1"\n[data]\npath = "x.npz"\n'
        f'[training]\nvariant = "{TIER}"\n'
    )
    main(["check", "--bundle", str(tmp_path / "bundle"), "--config", str(tmp_path / "agent.toml"), "--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert checks["backend"]["status"] == "ok"


def test_to_verify_a_tier_is_refused_with_what_can_be_verified(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(ConfigurationError, match=r"'tier-050', a width tier, are not recorded.* those of full"):
        certify(bundle, variant=TIER)


def test_momentum_goes_on_for_the_same_channels_alone(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    kept = OptimizerSpec(momentum=0.9, keep_momentum=True)
    found = []
    for number, units in enumerate(([0, 1], [0, 1], [1, 2]), 1):
        said = replace(task(fleet, number, units), optimizer=kept)
        fleet.coordinator.say(said)
        finish(fleet, number)
        layout = layout_of(narrowed(fleet.coordinator.bundle.manifest, TIER), TIER)
        found.append(fleet.store.momentum(layout.digest + (said.channels or b"")))
        assert fleet.store.database.execute("SELECT count(*) FROM momentum").fetchone() == (1,)
    assert None not in found
    first, second, other = (unpack_memory(data) for data in found if data is not None)
    assert first is not None
    assert second is not None
    assert other is not None
    assert second.vector.tobytes() != first.vector.tobytes()
