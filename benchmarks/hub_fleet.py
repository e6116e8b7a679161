"""A fleet with a hub in one process, everyone in every round: real engines, payloads and fold, bytes as messages."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from benchmarks.algorithm_rows import Problem, Row
from coordinator.fold import Decoded, Folded, Weighted, fold
from coordinator.intake import decode_payload
from coordinator.local_steps import StepRule, steps_of
from coordinator.planner import task_seed
from coordinator.server_step import initial_state, server_step
from coordinator.settings import ServerSettings
from coordinator.wire_bytes import round_bytes
from edge_agent.data import Dataset
from edge_agent.momentum import Memory, carried, memory_of
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.training import DivergedError, LocalTraining, Recipe
from protocol.layout import layout_of, take
from protocol.manifest import FULL
from protocol.messages import BlobRef, OptimizerSpec, Task
from protocol.topics import Topics
from sparse.codecs import encode_update, parse_codec

_TOPICS, _DIGEST, _RUN = Topics("benchmark"), bytes(32), "0" * 12


@dataclass(frozen=True, slots=True)
class Plan:
    """An algorithm, everyone in every round. steps: of a device in the whole run. rule: how rounds divide them; its
    budget is of a fleet's bytes. The learning rate falls along a cosine over the steps that are done, so that it is the
    same curve whatever the rounds.
    """

    algorithm: str
    steps: int
    rule: StepRule
    batch_size: int
    learning_rate: float
    codec: str = "all/float32"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)


def run(problem: Problem, plan: Plan, seed: int) -> Row:
    """Trains the fleet of a problem, and measures the last model. Where training diverged that is the last finite one,
    and the row has the fewer rounds that led to it.
    """
    model, spent = trained(problem, plan, seed)
    return Row(
        *(problem.dataset, problem.split, "hub", plan.algorithm, plan.codec, len(spent)),
        bytes=sum(spent) // len(problem.fleet),
        accuracy_mean=round(problem.accuracy(model), 4),
        accuracy_sd=0.0,
        accuracy_worst_device=round(problem.worst_device(model), 4),
    )


def trained(problem: Problem, plan: Plan, seed: int) -> tuple[Vector, list[int]]:
    """The last model, float32[total], or the last finite one, and the bytes of each round that led to it."""
    fleet = _Fleet(problem, plan, seed)
    model, state, spent, done = problem.initial, initial_state(), list[int](), 0
    while done < plan.steps:
        steps = min(plan.steps - done, steps_of(plan.rule, len(spent) + 1, spent))
        rate = plan.learning_rate * 0.5 * (1 + math.cos(math.pi * done / plan.steps))
        try:
            folded, cost = fleet.round(model, len(spent) + 1, steps, rate)
        except DivergedError:
            break
        state, model = server_step(ServerSettings(), state, model, folded)
        spent.append(cost)
        done += steps
    return model, spent


class _Fleet:
    """The devices between rounds: what the codec left out, and what momentum remembers, as agents keep them."""

    def __init__(self, problem: Problem, plan: Plan, seed: int) -> None:
        self._problem, self._plan, self._seed = problem, plan, seed
        self._layout, self._spec = layout_of(problem.manifest, FULL), parse_codec(plan.codec)
        n = self._layout.n_parameters
        self._residuals = {name: np.zeros(n, np.float32) for name in problem.fleet}
        self._memories: dict[str, Memory] = {}

    def round(self, model: Vector, number: int, steps: int, rate: float) -> tuple[Folded, int]:
        """What the fold makes of a round of so many local steps from float32[total] `model`, and its bytes."""
        manifest, payloads, total = self._problem.manifest, dict[str, bytes](), 0
        for name, data in self._problem.fleet.items():
            task = _task(self._plan, number, steps, rate, task_seed(self._seed, number, name), 4 * manifest.total)
            payloads[name] = self._update(name, data, task, model)
            found = round_bytes(_TOPICS, task, [task.model.size], len(payloads[name]), name)
            total += found.up + found.down
        updates = [Weighted(name, len(data), self._layout) for name, data in self._problem.fleet.items()]
        decode = partial(_decoded, payloads, self._plan.codec)
        return fold(updates, decode, manifest.parameters, manifest.buffers), total

    def _update(self, name: str, data: Dataset, task: Task, model: Vector) -> bytes:
        plan, layout, problem = self._plan, self._layout, self._problem
        base, settings = take(model, layout.parameters), plan.optimizer
        momentum = carried(self._memories.get(name), task, settings, base, None, 0) if settings.carries else None
        recipe = Recipe(task.local_steps, 0, plan.batch_size, task.learning_rate, settings, task.seed)
        local = LocalTraining(problem.engine, problem.manifest, data, recipe, model, momentum=momentum)
        local.advance(float("inf"))
        trained = local.result()
        if trained.momentum is not None:
            self._memories[name] = memory_of(task, settings, trained.steps, trained.momentum, base, None)
        delta = np.subtract(trained.model, model)
        payload, self._residuals[name] = encode_update(
            *(take(delta, layout.parameters), take(delta, layout.buffers), self._residuals[name], self._spec),
            layout.digest,
            shapes=layout.shapes,
            seed=task.seed % (1 << 32),
        )
        return payload


def _decoded(payloads: Mapping[str, bytes], codec: str, update: Weighted) -> Decoded:
    return decode_payload(payloads[update.device], codec, update.layout)


def _task(plan: Plan, number: int, steps: int, rate: float, seed: int, model_bytes: int) -> Task:
    """What the coordinator would send."""
    return Task(
        run=_RUN,
        round=number,
        manifest=BlobRef(_DIGEST, 1 << 14),
        model=BlobRef(_DIGEST, model_bytes),
        version=number - 1,
        local_steps=steps,
        local_epochs=0,
        batch_size=plan.batch_size,
        learning_rate=rate,
        optimizer=OptimizerSpec(),
        codec=plan.codec,
        seed=seed,
        time_left_s=60.0,
    )
