"""Which tier a device gets: by memory at first, then as wide as it is fast, without flapping, and by name if none."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.tiering import AGENT_MIB, Measured, Target, Tier, assign, predicted_s, tiers_of
from protocol.errors import Rejection
from protocol.manifest import FULL, Load
from tests.protocol.test_width import MANIFEST

QUARTER, HALF, WHOLE = (
    Tier("tier-025", 8, 60, 1_000),
    Tier("tier-050", 28, 80, 4_000),
    Tier(FULL, 100, 150, 16_000),
)
TIERS = (WHOLE, QUARTER, HALF)
TARGET = Target(steps=10, seconds=1.0)


def one(device: Measured, target: Target = TARGET) -> str | Rejection:
    return assign({"pi": device}, TIERS, target)["pi"]


@pytest.mark.parametrize(
    ("memory", "tier"), [(None, FULL), (500, FULL), (150, FULL), (149, "tier-050"), (60, "tier-025")]
)
def test_an_unmeasured_device_begins_with_the_largest_tier_that_its_memory_holds(
    memory: float | None, tier: str
) -> None:
    assert one(Measured(memory_mib=memory)) == tier


def test_a_device_whose_memory_holds_no_tier_is_refused_with_need_and_have() -> None:
    refused = one(Measured(memory_mib=41.7))
    assert isinstance(refused, Rejection)
    assert refused.reason == "memory"
    assert "pi has 42 MiB for training and the smallest tier, tier-025, needs 60" in refused.detail


@pytest.mark.parametrize(
    ("step_s", "tier"), [(0.05, FULL), (0.1, FULL), (0.2, "tier-050"), (0.5, "tier-025"), (9.0, "tier-025")]
)
def test_a_measured_device_gets_the_largest_tier_that_ends_in_time_or_the_smallest(step_s: float, tier: str) -> None:
    assert one(Measured(tier=FULL, step_s=step_s)) == tier


def test_a_slow_link_makes_a_tier_narrower() -> None:
    fast = Measured(tier=FULL, step_s=0.01)
    assert one(fast) == FULL
    assert one(replace(fast, link_bytes_s=8_000)) == "tier-050"


def test_memory_limits_what_speed_would_allow() -> None:
    assert one(Measured(tier="tier-025", step_s=0.001, memory_mib=100)) == "tier-050"


def test_without_a_configured_target_the_median_device_says_what_is_in_time() -> None:
    fleet = {name: Measured(tier=FULL, step_s=0.1 * slow) for name, slow in (("a", 1), ("b", 2.2), ("c", 4.5))}
    assert assign(fleet, TIERS, Target(steps=10)) == {"a": FULL, "b": FULL, "c": "tier-050"}
    assert assign({"new": Measured()}, TIERS, Target(steps=10)) == {"new": FULL}


@given(st.lists(st.floats(0.86, 1.14), min_size=1, max_size=30), st.sampled_from(TIERS), st.floats(0.5, 1.5))
def test_noise_within_the_hysteresis_does_not_flap(noise: list[float], begun: Tier, pace: float) -> None:
    # Seconds a step of the whole model, around which measurements scatter; a change of tier settles before they do.
    settled = one(Measured(tier=begun.name, step_s=0.1 * pace * begun.cost / WHOLE.cost))
    assert isinstance(settled, str)
    tier, changes = settled, 0
    for factor in noise:
        cost = next(t.cost for t in TIERS if t.name == tier)
        found = one(Measured(tier=tier, step_s=0.1 * pace * factor * cost / WHOLE.cost))
        assert isinstance(found, str)
        changes += found != tier
        tier = found
    # Half a band of noise can cross one edge, never both.
    assert changes <= 1


def test_a_tier_unknown_to_the_bundle_counts_as_not_measured() -> None:
    device = Measured(tier="train-last-1", step_s=9.0)
    assert predicted_s(device, HALF, TIERS, 10) is None
    assert one(device) == FULL


def test_what_a_tier_needs_is_counted_from_the_manifest() -> None:
    load = Load(multiply_adds=500, fixed_bytes=1 << 20, example_bytes=1 << 18)
    full, half = MANIFEST.variants
    manifest = replace(
        MANIFEST, variants=(replace(full, load=load), replace(half, load=replace(load, multiply_adds=140)))
    )
    whole, tier = tiers_of(manifest, batch_size=8)
    assert (whole.name, whole.cost, tier.name, tier.cost) == (FULL, 500, "tier-050", 140)
    assert whole.round_bytes == 8 * MANIFEST.total
    assert tier.round_bytes == 8 * 43
    assert whole.memory_mib == pytest.approx(AGENT_MIB + 3, abs=0.01)
    assert tiers_of(replace(MANIFEST, variants=(full,)), 8) == ()


def test_targets_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="target_s: 0"):
        Target(steps=1, seconds=0)
    with pytest.raises(ValueError, match="steps"):
        Target(steps=0)
