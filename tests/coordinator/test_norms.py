"""Norms, weights and quotas: what one device can do at most, and each bound with its own reason and counter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.norms import (
    ENOUGH,
    LEAST,
    UNBOUNDED,
    Norms,
    check_norms,
    clip_factors,
    fold_bounds,
    hard_bounds,
    most_weight,
    norms_of,
)
from coordinator.quotas import Quotas
from coordinator.reports import Reports
from coordinator.settings import LimitSettings
from coordinator.trust_settings import FoldSettings
from protocol.layout import layout_of
from protocol.messages import Hello, Offer
from sparse.codecs import CodecSpec, encode_update
from tests.coordinator.simulation import BUFFERS, FakeAgent, Simulation, named

ONES = [Norms(1.0, 0.5)] * LEAST


def test_a_norm_is_the_root_of_the_mean_square_in_blocks_or_not() -> None:
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    found = norms_of((values, values[:0]))
    assert found.parameters == pytest.approx(float(np.sqrt(np.mean(values.astype(np.float64) ** 2))))
    assert found.buffers == 0.0
    assert norms_of((np.full(4, 3e38, np.float32), values[:1])).parameters == pytest.approx(3e38, rel=1e-6)


def test_nothing_is_too_large_before_there_is_a_measure() -> None:
    assert hard_bounds(50.0, ONES[1:]) == UNBOUNDED
    assert hard_bounds(0.0, ONES) == UNBOUNDED
    assert hard_bounds(50.0, ONES) == Norms(50.0, 25.0)


def test_the_bound_is_the_medians_whatever_fewer_than_half_say() -> None:
    assert hard_bounds(2.0, [*ONES, *[Norms(1e30, 1e30)] * (LEAST - 1)]) == Norms(2.0, 1.0)
    # Who moved nothing is no measure, or a few quiet devices would stop all others.
    assert hard_bounds(2.0, [*ONES, *[Norms(0.0, 0.0)] * 20]) == Norms(2.0, 1.0)


def test_a_norm_beyond_the_hard_bound_is_a_reason_that_names_both() -> None:
    most = Norms(50.0, 25.0)
    assert check_norms(Norms(50.0, 25.0), most) is None
    for found in (Norms(50.1, 1.0), Norms(1.0, 25.1)):
        refused = check_norms(found, most)
        assert refused is not None
        assert refused.reason == "norm"
        assert "limits.norm" in refused.detail


def test_small_folds_look_back_and_large_ones_are_their_own_measure() -> None:
    early, now = [Norms(8.0, 8.0)] * 50, [Norms(1.0, 1.0)] * 2
    chosen = FoldSettings(clip_factor=2.0)
    assert fold_bounds(chosen, 4, now, early) == Norms(16.0, 16.0)
    assert fold_bounds(chosen, 4, now * ENOUGH, early) == Norms(2.0, 2.0)
    assert fold_bounds(FoldSettings(clip=6.0), 4, now, ()).parameters == 3.0
    assert fold_bounds(FoldSettings(clip="none"), 4, now, ()) == UNBOUNDED
    assert clip_factors(Norms(4.0, 1.0), Norms(2.0, 2.0)) == Norms(0.5, 1.0)


def test_no_weight_is_over_its_multiple_of_the_median() -> None:
    assert most_weight([10, 12, 10**6], 2.0) == 24
    assert most_weight([1, 1, 1], 2.0) == 2
    assert most_weight([10, 12, 10**6], 0.0) == 10**6


def five(folder: Path, count: int, minimum: int = 5) -> Simulation:
    """A fleet of five that are all asked in every round."""
    fleet = Simulation.make(folder, devices=5)
    fleet.kill()
    rounds = replace(fleet.settings.rounds, devices=5, minimum=minimum, count=count)
    fleet.settings = replace(fleet.settings, rounds=rounds, fold=FoldSettings(clip_factor=8.0))
    fleet.start()
    return fleet


def enlarge(agent: FakeAgent, number: int, size: float) -> None:
    """From this round on, the agent's update is of that root mean square."""

    def mangle(offer: Offer, payload: bytes) -> tuple[Offer, bytes]:
        if offer.round < number:
            return offer, payload
        layout = layout_of(agent.bundle.manifest, "full")
        n = layout.n_parameters
        values, rest = np.full(n, size, np.float32), np.zeros(BUFFERS, np.float32)
        return named(offer, encode_update(values, rest, np.zeros(n, np.float32), CodecSpec(), layout.digest)[0])

    agent.mangle = mangle


def test_an_update_beyond_the_hard_bound_is_refused_and_counted_and_the_round_goes_on(tmp_path: Path) -> None:
    fleet = five(tmp_path, count=3, minimum=4)
    enlarge(fleet.agents["dev-0"], 2, 1e6)
    fleet.finish()
    assert {(r.device, r.reason) for r in fleet.rejected} == {("dev-0", "norm")}
    assert {u.device for u in fleet.store.accepted(1)} == {f"dev-{i}" for i in range(5)}
    assert "dev-0" not in {u.device for u in fleet.store.accepted(2)}
    with Reports(fleet.folder / "state") as reports:
        assert ("dev-0", "norm", 1) in {(r.device, r.reason, r.count) for r in reports.round(2).rejections}
    fleet.store.close()


def test_a_large_update_within_the_bound_is_accepted_clipped_and_told(tmp_path: Path) -> None:
    fleet = five(tmp_path, count=2)
    enlarge(fleet.agents["dev-0"], 2, 3.0)
    fleet.finish()
    assert not fleet.rejected
    # Accepted as it was sent: its sender's residual is settled by what it said, not by what counts of it.
    assert {r.verdict for a in fleet.agents.values() for r in a.settled.values()} == {"accepted"}
    version = fleet.store.current()
    assert version is not None
    assert version.trust.clipped == 1
    with Reports(fleet.folder / "state") as reports:
        assert reports.status(fleet.settings.rounds).clipped >= 1
    fleet.store.close()


def test_a_device_that_boasts_of_examples_counts_for_little_more_than_the_others(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=1)
    fleet.agents["dev-0"].mangle = lambda o, p: (replace(o, examples=10**6), p)
    fleet.finish()
    version = fleet.store.current()
    assert version is not None
    assert version.trust.clamped == 1
    assert fleet.store.accepted(1)[0].weight == 10**6
    with Reports(fleet.folder / "state") as reports:
        assert reports.status(fleet.settings.rounds).clamped == 1
    fleet.store.close()


def test_a_quota_refills_over_a_minute_and_is_of_each_device() -> None:
    quotas = Quotas(messages=60, mib=1)
    assert not any(quotas.take("a", 100, 0.0) for _ in range(60))
    refused = quotas.take("a", 100, 0.0)
    assert refused is not None
    assert refused.reason == "quota-messages"
    assert quotas.take("b", 100, 0.0) is None
    assert quotas.take("a", 100, 1.0) is None
    assert quotas.take("a", 100, 1.0) is not None
    # A clock that jumps back gives nothing and takes nothing.
    assert quotas.take("a", 100, -50.0) is not None


def test_bytes_have_a_quota_of_their_own() -> None:
    quotas = Quotas(messages=0, mib=1)
    assert quotas.take("a", 1 << 20, 0.0) is None
    refused = quotas.take("a", 1, 0.0)
    assert refused is not None
    assert refused.reason == "quota-bytes"
    assert quotas.take("a", 1 << 19, 30.0) is None
    unlimited = Quotas(0, 0)
    assert not any(unlimited.take("a", 1 << 30, 0.0) for _ in range(1000))


def test_what_is_over_a_devices_quota_is_not_read_and_counted_and_the_others_go_on(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=2)
    fleet.kill()
    limits = LimitSettings(disk_mib=64, device_messages_per_minute=200)
    fleet.settings = replace(fleet.settings, limits=limits)
    fleet.start()
    fleet.until(lambda: bool(fleet.agents["dev-0"].heard))
    for _ in range(300):
        fleet.agents["dev-0"].send(Hello("test", "auto"))
    fleet.finish()
    assert {(r.device, r.reason) for r in fleet.rejected} == {("dev-0", "quota-messages")}
    assert len(fleet.committed) == 2
    fleet.coordinator.stop()
    found = fleet.store._sql.execute("SELECT device, reason, count FROM rejections").fetchall()
    assert [(device, reason) for device, reason, _ in found] == [("dev-0", "quota-messages")]
    assert found[0][2] > 50
    fleet.store.close()
