"""Which width tier each device gets, from what it was measured to do: a pure function of devices, tiers and target.

A device that was never measured begins with the largest tier that its memory holds. Afterwards it gets the largest
whose round it is predicted to finish in time: its own seconds a step, scaled by the tiers' multiply-adds, and the
tier's bytes over its own link. So the devices of a fleet end their rounds together, each as wide as it can.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from protocol.errors import Rejection
from protocol.manifest import FULL, Manifest
from protocol.width import narrowed

# Python, NumPy, the runtime and the agent before any model (docs/benchmarks.md, "Footprint").
AGENT_MIB = 48
_FLOAT = 4


@dataclass(frozen=True, slots=True)
class Tier:
    """A variant by name. cost: multiply-adds of an example's step, in any unit that tiers share. memory_mib: that an
    agent needs to train it. round_bytes: model down and update up."""

    name: str
    cost: float
    memory_mib: float
    round_bytes: int

    def __post_init__(self) -> None:
        assert self.cost > 0, f"{self.name} costs nothing"


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a device: None where it is not.

    step_s: seconds of a training step on `tier`, which is the one it trains now. memory_mib: what it says training may
    use. link_bytes_s: bytes a second through its link.
    """

    memory_mib: float | None = None
    tier: str | None = None
    step_s: float | None = None
    link_bytes_s: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """When a round should be over. seconds: as configured, or None for `factor` times what the fleet's median device
    needs for the largest tier. steps: of training in a round. hysteresis: a device changes its tier only if its
    prediction is off by more than this share, so that noise in the measurements does not send new graphs around."""

    steps: int
    seconds: float | None = None
    factor: float = 1.2
    hysteresis: float = 0.15

    def __post_init__(self) -> None:
        if self.steps < 1 or self.factor <= 0 or not 0 <= self.hysteresis < 1:
            raise ValueError(f"target: {self} must have steps and a factor above 0, and a hysteresis from 0 to below 1")
        if self.seconds is not None and self.seconds <= 0:
            raise ValueError(f"target_s: {self.seconds} must be above 0")


def assign(devices: Mapping[str, Measured], tiers: Sequence[Tier], target: Target) -> dict[str, str | Rejection]:
    """A tier's name for each device, or why it gets none: its memory holds not even the smallest.

    A device that is too slow for every tier that fits gets the smallest: late work counts too.
    """
    assert tiers, "a fleet has at least one tier"
    ordered = sorted(tiers, key=lambda tier: (tier.cost, tier.name))
    limit_s = _limit_s(devices, ordered, target)
    return {name: _assigned(name, device, ordered, limit_s, target) for name, device in devices.items()}


def tiers_of(manifest: Manifest, batch_size: int) -> tuple[Tier, ...]:
    """The width tiers of a bundle and what they need, `full` among them; empty if it has none."""
    held = [v for v in manifest.variants if v.load is not None and (v.keep or v.name == FULL)]
    if not any(v.keep for v in held):
        return ()
    tiers = []
    for variant in held:
        assert variant.load is not None
        seen = narrowed(manifest, variant.name)
        # Base model and model, gradient, momentum and what a step makes of them; packing the update takes no more.
        vectors = _FLOAT * (2 * seen.total + 4 * seen.parameters)
        memory = vectors + variant.load.fixed_bytes + batch_size * variant.load.example_bytes
        tiers.append(
            Tier(
                variant.name,
                max(1, variant.load.multiply_adds),
                AGENT_MIB + memory / (1 << 20),
                2 * _FLOAT * seen.total,
            )
        )
    return tuple(tiers)


def predicted_s(device: Measured, tier: Tier, tiers: Sequence[Tier], steps: int) -> float | None:
    """Seconds of a round on that tier, or None for a device that was not measured on one of these."""
    cost = next((t.cost for t in tiers if t.name == device.tier), None)
    if device.step_s is None or cost is None:
        return None
    link_s = tier.round_bytes / device.link_bytes_s if device.link_bytes_s else 0.0
    return steps * device.step_s * tier.cost / cost + link_s


def _limit_s(devices: Mapping[str, Measured], ordered: Sequence[Tier], target: Target) -> float | None:
    if target.seconds is not None:
        return target.seconds
    found = [predicted_s(device, ordered[-1], ordered, target.steps) for device in devices.values()]
    known = [seconds for seconds in found if seconds is not None]
    return target.factor * median(known) if known else None


def _assigned(
    name: str, device: Measured, ordered: Sequence[Tier], limit_s: float | None, target: Target
) -> str | Rejection:
    fitting = [t for t in ordered if device.memory_mib is None or t.memory_mib <= device.memory_mib]
    if not fitting:
        least = min(ordered, key=lambda tier: tier.memory_mib)
        return Rejection(
            "memory",
            f"{name} has {device.memory_mib:.0f} MiB for training and the smallest tier, {least.name}, needs "
            f"{least.memory_mib:.0f}; give it more, train smaller batches, or export a narrower tier",
        )
    if limit_s is None or predicted_s(device, ordered[0], ordered, target.steps) is None:
        return fitting[-1].name
    at = next(t for t in ordered if t.name == device.tier)
    chosen = fitting[0]
    for tier in fitting:
        # Wider than now only with room to spare, and the same or narrower only when it is clearly too slow.
        slack = 1 - target.hysteresis if tier.cost > at.cost else 1 + target.hysteresis if tier is at else 1.0
        seconds = predicted_s(device, tier, ordered, target.steps)
        assert seconds is not None
        if seconds <= limit_s * slack:
            chosen = tier
    return chosen.name
