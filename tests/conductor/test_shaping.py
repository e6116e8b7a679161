"""A link is made late by the kernel where it can, and by the proxy where it cannot or will not."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from devices.conductor import shaping
from devices.conductor.acts import Acts
from devices.conductor.members import Member
from devices.conductor.raising import start_of
from devices.conductor.telling import Telling
from devices.engines.engine import EngineError
from devices.engines.namespaces import Shape
from devices.fleet.clock import Clock
from devices.links import Link, Profile, Step
from tests.conductor.fake_engine import FakeEngine
from tests.conductor.plans import plan_of

LATE = Profile(Link(latency_ms=80.0, jitter_ms=20.0, up_kbit_s=300.0), (Step(3.0, "cut"),))


@dataclass
class Kernel(FakeEngine):
    """Its devices' networks can be shaped, unless it refuses."""

    refuses: bool = False
    shapes: list[Shape] = field(default_factory=list)

    def shape(self, fleet: str, device: str, shape: Shape) -> None:
        if self.refuses:
            raise EngineError("no such queue")
        self.shapes.append(shape)


def left_to_the_proxy(folder: Path, engine: FakeEngine, profile: Profile) -> Profile:
    plan = plan_of(folder)
    start = start_of(plan, plan.devices[0], folder, engine, "image", None)
    acts = Acts(plan.name, Telling(Console(quiet=True), plan.rounds), Clock(1.0))
    try:
        return asyncio.run(shaping.shaped(acts, Member(plan.devices[0], engine, start), profile))
    finally:
        acts.hands.shutdown()


@pytest.fixture(autouse=True)
def netem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaping, "kernel_shapes", lambda: True)


def test_the_kernel_delays_and_the_proxy_does_the_rest(tmp_path: Path) -> None:
    engine = Kernel()
    left = left_to_the_proxy(tmp_path, engine, LATE)
    assert engine.shapes == [Shape(80.0, 20.0)]
    assert left == Profile(Link(up_kbit_s=300.0), LATE.steps)


def test_the_proxy_does_all_of_it_where_the_kernel_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert left_to_the_proxy(tmp_path, Kernel(refuses=True), LATE) is LATE
    assert left_to_the_proxy(tmp_path, FakeEngine(), LATE) is LATE
    monkeypatch.setattr(shaping, "kernel_shapes", lambda: False)
    engine = Kernel()
    assert left_to_the_proxy(tmp_path, engine, LATE) is LATE
    assert engine.shapes == []


def test_a_latency_that_changes_on_the_way_is_the_proxys(tmp_path: Path) -> None:
    changing = Profile(LATE.link, (Step(5.0, link=Link(latency_ms=400.0)),))
    engine = Kernel()
    assert left_to_the_proxy(tmp_path, engine, changing) is changing
    assert engine.shapes == []
