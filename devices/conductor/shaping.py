"""Who makes a link late: netem, where the kernel has it and a device a network of its own; our proxy in any case."""

from dataclasses import replace
from functools import cache
from typing import Protocol, runtime_checkable

from devices.conductor.acts import Acts
from devices.conductor.members import Member
from devices.engines import namespaces
from devices.engines.engine import EngineError
from devices.engines.namespaces import Shape
from devices.links import Profile


@runtime_checkable
class Shaper(Protocol):
    """An engine whose devices have networks that the kernel can shape."""

    def shape(self, fleet: str, device: str, shape: Shape) -> None: ...


@cache
def kernel_shapes() -> bool:
    """Whether this kernel has netem; asked once."""
    return namespaces.has_netem()


def shape_of(profile: Profile) -> Shape | None:
    """What of a link netem can do: its latency and jitter, where they hold throughout. None where that is nothing."""
    link = profile.link
    steady = all(
        (step.link.latency_ms, step.link.jitter_ms) == (link.latency_ms, link.jitter_ms)
        for step in profile.steps
        if step.link is not None
    )
    return Shape(link.latency_ms, link.jitter_ms) if link.latency_ms and steady else None


def without_latency(profile: Profile) -> Profile:
    """What is left to the proxy then: rates, stalls and breaks."""
    steps = tuple(
        step if step.link is None else replace(step, link=replace(step.link, latency_ms=0.0, jitter_ms=0.0))
        for step in profile.steps
    )
    return replace(profile, link=replace(profile.link, latency_ms=0.0, jitter_ms=0.0), steps=steps)


async def shaped(acts: Acts, member: Member, profile: Profile) -> Profile:
    """Has netem do its part of a prepared device's link; returns the proxy's, which is all where netem will not."""
    shape = shape_of(profile)
    if shape is None or not isinstance(member.engine, Shaper) or not kernel_shapes():
        return profile
    try:
        await acts.by_hand(member, member.engine.shape, acts.fleet, member.name, shape)
    except EngineError:
        # Its words say that the proxy alone does it then.
        return profile
    return without_latency(profile)
