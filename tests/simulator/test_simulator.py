"""Fleets under faults: nothing receipted is lost or folded twice, and a seed repeats its run byte for byte."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.simulator.disk import Trouble
from tests.simulator.faults import (
    CODECS,
    COORDINATOR,
    COORDINATOR_STEPS,
    BitFlip,
    BrokerDeath,
    ClockJump,
    Cut,
    DiskTrouble,
    Fault,
    Heat,
    Kill,
    Partition,
    Schedule,
    Storm,
    device_names,
    draw_schedule,
)
from tests.simulator.network import Weather
from tests.simulator.world import simulate

DEVICES = 3
BATCH = 25
SEEDS = 150
TROUBLES: tuple[Trouble, ...] = ("full", "read-only", "failing")


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_under_random_faults_nothing_receipted_is_lost_or_folded_twice(first: int) -> None:
    for seed in range(first, first + BATCH):
        outcome = simulate(draw_schedule(seed))
        assert not outcome.wrong, f"{outcome.wrong}; python -m benchmarks.faults --replay-seed {seed}"
        assert outcome.bit_identical


def test_devices_that_may_not_train_for_a_while_pause_and_every_update_has_the_same_bits() -> None:
    waited = 0
    for seed in range(1000, 1012):
        drawn, rng = draw_schedule(seed), Random(seed)
        heat = tuple(
            Heat(name, rng.random(), rng.choice((0.5, 3.0, 12.0))) for name in device_names(drawn.devices) for _ in "ab"
        )
        outcome = simulate(replace(drawn, faults=(*drawn.faults, *heat)))
        assert not outcome.wrong, f"{outcome.wrong}; seed {seed}"
        assert outcome.bit_identical
        waited += sum("is too hot to train" in line for line in outcome.log)
    assert waited > 12


machines = st.sampled_from((COORDINATOR, *device_names(DEVICES)))
devices = st.sampled_from(device_names(DEVICES))
moments = st.floats(0, 10)
spans = st.floats(0, 30)
shares = st.sampled_from((0.0, 0.1, 0.3))
kills = st.builds(Kill, machines, st.integers(1, COORDINATOR_STEPS), st.booleans(), st.sampled_from((0.1, 15.0)))
faults: st.SearchStrategy[Fault] = st.one_of(
    kills,
    st.builds(Cut, machines, moments, st.sampled_from((0.0, 60.0)), st.sampled_from((0.0, 60.0))),
    st.builds(Partition, machines, moments, spans),
    st.builds(BrokerDeath, moments, spans, st.booleans()),
    st.builds(Storm, moments, spans, st.builds(Weather, st.sampled_from((0.05, 1.0)), shares, shares, shares)),
    st.builds(DiskTrouble, machines, moments, spans, st.sampled_from(TROUBLES)),
    st.builds(Heat, devices, moments, spans),
    st.builds(BitFlip, devices, moments, st.just("blobs"), st.floats(0, 1)),
    st.builds(ClockJump, machines, moments, st.sampled_from((-1e9, 3600.0, 1e9))),
)


@given(st.lists(faults, max_size=6), st.integers(0, 3), st.sampled_from(CODECS), st.integers(1, DEVICES))
@settings(max_examples=60)
def test_whatever_faults_come_together_the_laws_hold(drawn: list[Fault], seed: int, codec: str, minimum: int) -> None:
    schedule = Schedule(seed, devices=DEVICES, wanted=DEVICES, minimum=minimum, codec=codec, faults=tuple(drawn))
    note(f"to repeat it: tests.simulator.world.simulate({schedule!r})")
    assert not simulate(schedule).wrong


def test_the_same_seed_gives_the_same_log_byte_for_byte_in_any_process() -> None:
    # Each process has hashes of its own, so that what follows the order of a set is found out.
    script = (
        "from tests.simulator.faults import draw_schedule\nfrom tests.simulator.world import simulate\n"
        "for seed in range(40, 48):\n    print(simulate(draw_schedule(seed)).digest)"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            check=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": hashes, "PYTHONPATH": ":".join(path for path in sys.path if path)},
        ).stdout
        for hashes in ("1", "2")
    ]
    assert digests[0] == digests[1]
    assert len(set(digests[0].split())) == 8, "seeds differ"


def test_a_run_without_faults_takes_every_update_and_ends_soon() -> None:
    outcome = simulate(Schedule(0))
    assert (outcome.wrong, outcome.receipted, outcome.kills) == ([], 9, 0)
    assert outcome.seconds < 5
