"""A fleet of width tiers in one process: real engines, local steps, choice of channels and fold; emulated slowness."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from coordinator.evaluate import examiner
from coordinator.fold import Decoded, Weighted, fold
from coordinator.planner import learning_rate, task_seed
from coordinator.server_step import initial_state, server_step
from coordinator.settings import ServerSettings, TrainingSettings
from edge_agent.data import Dataset
from edge_agent.runtimes.backends import load_evaluator
from edge_agent.runtimes.engine import Batch, Engine, Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import seen_by
from edge_agent.runtimes.portable import PortableEngine
from edge_agent.training import LocalTraining, Recipe
from protocol.bundle import Bundle
from protocol.layout import layout_of, take
from protocol.manifest import FULL, Manifest
from protocol.width import Places, places
from sparse.widths import EXPLORED, Mode, channel_scores, select


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
    explored: float = EXPLORED


@dataclass(frozen=True, slots=True)
class Outcome:
    """The model at the end: its accuracy and itself. step_s: the measured seconds of every step, by tier."""

    accuracy: float
    step_s: Mapping[str, Sequence[float]]
    model: Vector


@dataclass(frozen=True, slots=True)
class _View:
    """A tier: the manifest as it sees it, and its engine."""

    manifest: Manifest
    engine: Engine


def run(
    bundle: Bundle,
    initial: Vector,
    fleet: Sequence[Member],
    mode: Mode,
    schedule: Schedule,
    held_out: Dataset,
    seed: int,
) -> Outcome:
    """Trains the fleet from float32[total] `initial`, everyone in every round, and tries what comes of it."""
    manifest, model, state = bundle.manifest, initial, initial_state()
    tiers = sorted({member.tier for member in fleet})
    views = {tier: _view(bundle, tier) for tier in tiers}
    step_s: dict[str, list[float]] = {tier: [] for tier in tiers}
    for number in range(1, schedule.rounds + 1):
        where = _places(manifest, tiers, mode, schedule, model, number, seed)
        updates: list[Weighted] = []
        decoded: dict[str, Decoded] = {}
        for member in fleet:
            view, at = views[member.tier], where.get(member.tier)
            base = model if at is None else model[at]
            local = _training(member, view, schedule, base, number, seed)
            while not local.finished:
                step_s[member.tier].append(local.step().seconds)
            delta, layout = np.subtract(local.result().model, base), layout_of(view.manifest, member.tier)
            decoded[member.name] = (take(delta, layout.parameters), take(delta, layout.buffers))
            updates.append(Weighted(member.name, len(member.data), layout, at))
        folded = fold(updates, partial(_of, decoded), manifest.parameters, manifest.buffers)
        state, model = server_step(ServerSettings(), state, model, folded)
    return Outcome(accuracy(bundle, model, held_out), step_s, model)


def _of(decoded: Mapping[str, Decoded], update: Weighted) -> Decoded:
    return decoded[update.device]


def wall_s(fleet: Sequence[Member], schedule: Schedule, step_s: Mapping[str, float]) -> float:
    """Seconds of all rounds, each as long as its slowest device's steps. step_s: of a step here, by tier."""
    slowest = max(step_s[member.tier] * member.slowness for member in fleet)
    return schedule.rounds * schedule.steps * slowest


def accuracy(bundle: Bundle, model: Vector, data: Dataset) -> float:
    """The share of examples that the whole model tells right."""
    examine = examiner(load_evaluator(bundle, variant=FULL), Batch(data.inputs, data.targets), 256)
    return examine(model).metrics["accuracy"]


def _view(bundle: Bundle, tier: str) -> _View:
    seen = seen_by(bundle, tier)
    return _View(seen.manifest, PortableEngine(seen, tier))


def _places(
    manifest: Manifest, tiers: Sequence[str], mode: Mode, schedule: Schedule, model: Vector, number: int, seed: int
) -> dict[str, Places]:
    """Where each narrower tier's values lie in the dense model in this round."""
    scores = channel_scores(manifest.groups, manifest.tensors, manifest.axes, model)
    found = {}
    for tier in tiers:
        keep = manifest.variant(tier).keep
        if keep:
            every, explored = schedule.refresh_every, schedule.explored
            found[tier] = places(manifest, select(mode, manifest.groups, scores, keep, number, every, seed, explored))
    return found


def _training(member: Member, view: _View, schedule: Schedule, base: Vector, number: int, seed: int) -> LocalTraining:
    training = TrainingSettings(schedule.batch_size, schedule.learning_rate, schedule.steps, schedule="cosine")
    recipe = Recipe(
        steps=schedule.steps,
        epochs=0,
        batch_size=schedule.batch_size,
        learning_rate=learning_rate(training, number, schedule.rounds),
        optimizer=OptimizerSettings(momentum=schedule.momentum),
        seed=task_seed(seed, number, member.name),
    )
    # Of the one thread that computes, so that whatever else runs here does not count.
    clock = time.thread_time
    return LocalTraining(view.engine, view.manifest, member.data, recipe, base, member.tier, clock)
