"""A fleet of width tiers in one process: real engines, local steps, choice of channels and fold; emulated slowness."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coordinator.evaluate import examiner
from coordinator.fold import Weighted, fold
from coordinator.planner import learning_rate, task_seed
from coordinator.server_step import initial_state, server_step
from coordinator.settings import ServerSettings, TrainingSettings
from edge_agent.data import Dataset
from edge_agent.runtimes.backends import load_evaluator
from edge_agent.runtimes.engine import Batch, Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import seen_by
from edge_agent.runtimes.portable import PortableEngine
from edge_agent.training import LocalTraining, Recipe
from protocol.bundle import Bundle
from protocol.layout import layout_of, take
from protocol.manifest import FULL
from protocol.width import places
from sparse.widths import Mode, channel_scores, select


@dataclass(frozen=True, slots=True)
class Member:
    """A device: its data, the tier that it works on, and how many times longer than here its steps take."""

    name: str
    data: Dataset
    tier: str
    slowness: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a fleet trains. learning_rate falls to zero along a cosine."""

    rounds: int
    steps: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    refresh_every: int = 1
    explored: float = 0.25
    widest: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """The model at the end: its accuracy and itself. wall_s: the sum over rounds of the slowest device's steps, on the
    median of measured step times of its tier, times its slowness. step_ms: these medians, by tier."""

    accuracy: float
    wall_s: float
    step_ms: Mapping[str, float]
    model: Vector


def run(
    bundle: Bundle,
    initial: Vector,
    fleet: Sequence[Member],
    mode: Mode,
    schedule: Schedule,
    held_out: Dataset,
    seed: int,
) -> Outcome:
    """Trains the fleet from float32[total] `initial`, everyone in every round, and tries the model on what is held out."""
    manifest, model, state = bundle.manifest, initial, initial_state()
    seen = {tier: seen_by(bundle, tier) for tier in {m.tier for m in fleet}}
    engines = {tier: PortableEngine(narrow, tier) for tier, narrow in seen.items()}
    training = TrainingSettings(schedule.batch_size, schedule.learning_rate, schedule.steps, schedule="cosine")
    cheapest = max(seen, key=lambda tier: seen[tier].manifest.total)
    step_s: dict[str, list[float]] = {tier: [] for tier in seen}
    for number in range(1, schedule.rounds + 1):
        scores = channel_scores(manifest.groups, manifest.tensors, manifest.axes, model)
        where = {}
        for tier in seen:
            keep = manifest.variant(tier).keep
            if keep:
                every, explored = schedule.refresh_every, schedule.explored
                chosen = select(mode, manifest.groups, scores, keep, number, every, seed, explored)
                where[tier] = places(manifest, chosen)
        rate = learning_rate(training, number, schedule.rounds)
        updates, decoded = [], {}
        for member in fleet:
            narrow = seen[member.tier].manifest
            base = model if member.tier not in where else model[where[member.tier]]
            recipe = Recipe(
                schedule.steps,
                0,
                schedule.batch_size,
                rate,
                OptimizerSettings(momentum=schedule.momentum),
                task_seed(seed, number, member.name),
            )
            # Of the one thread that computes, so that whatever else runs here does not count.
            clock = time.thread_time
            local = LocalTraining(engines[member.tier], narrow, member.data, recipe, base, member.tier, clock)
            while not local.finished:
                step_s[member.tier].append(local.step().seconds)
            delta, layout = np.subtract(local.result().model, base), layout_of(narrow, member.tier)
            if schedule.widest and cheapest != member.tier:
                layout = replace(layout, buffers=())
            decoded[member.name] = (take(delta, layout.parameters), take(delta, layout.buffers))
            updates.append(Weighted(member.name, len(member.data), layout, where.get(member.tier)))
        folded = fold(updates, decoded.__getitem__, manifest.parameters, manifest.buffers)
        state, model = server_step(ServerSettings(), state, model, folded)
    step_ms = {tier: 1e3 * float(np.median(found)) for tier, found in step_s.items()}
    slowest_ms = max(step_ms[m.tier] * m.slowness for m in fleet)
    wall_s = schedule.rounds * schedule.steps * slowest_ms / 1e3
    return Outcome(accuracy(bundle, model, held_out), wall_s, step_ms, model)


def accuracy(bundle: Bundle, model: Vector, data: Dataset) -> float:
    """The share of examples that the whole model tells right."""
    examine = examiner(load_evaluator(bundle, variant=FULL), Batch(data.inputs, data.targets), 256)
    return examine(model).metrics["accuracy"]
