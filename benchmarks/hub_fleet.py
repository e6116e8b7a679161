"""A fleet with a hub in one process, everyone in every round: real engines, payloads and fold, bytes as messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from benchmarks.algorithm_rows import Problem, Row
from coordinator.fold import Decoded, Weighted, fold
from coordinator.intake import decode_payload
from coordinator.planner import task_seed
from coordinator.server_step import initial_state, server_step
from coordinator.settings import ServerSettings
from coordinator.wire_bytes import round_bytes
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.training import LocalTraining, Recipe
from protocol.layout import layout_of, take
from protocol.manifest import FULL
from protocol.messages import BlobRef, OptimizerSpec, Task
from protocol.topics import Topics
from sparse.codecs import encode_update, parse_codec

_TOPICS, _DIGEST, _RUN = Topics("benchmark"), bytes(32), "0" * 12


@dataclass(frozen=True, slots=True)
class Plan:
    """An algorithm. local_steps: of each round. The learning rate is constant."""

    algorithm: str
    rounds: int
    local_steps: tuple[int, ...]
    batch_size: int
    learning_rate: float
    codec: str = "all/float32"
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)


def run(problem: Problem, plan: Plan, seed: int) -> Row:
    """Trains the fleet of a problem, and measures the last model."""
    manifest, model, state = problem.manifest, problem.initial, initial_state()
    layout, spec = layout_of(manifest, FULL), parse_codec(plan.codec)
    residuals = {name: np.zeros(layout.n_parameters, np.float32) for name in problem.fleet}
    total = 0
    for number, steps in enumerate(plan.local_steps, 1):
        payloads: dict[str, bytes] = {}
        for name, data in problem.fleet.items():
            task = _task(plan, number, steps, seed, name, 4 * manifest.total)
            recipe = Recipe(steps, 0, plan.batch_size, plan.learning_rate, plan.optimizer, task.seed)
            local = LocalTraining(problem.engine, manifest, data, recipe, model)
            local.advance(float("inf"))
            delta = np.subtract(local.result().model, model)
            payloads[name], residuals[name] = encode_update(
                *(take(delta, layout.parameters), take(delta, layout.buffers), residuals[name], spec, layout.digest),
                shapes=layout.shapes,
                seed=task.seed % (1 << 32),
            )
            found = round_bytes(_TOPICS, task, [task.model.size], len(payloads[name]), name)
            total += found.up + found.down
        updates = [Weighted(name, len(data), layout) for name, data in problem.fleet.items()]
        decode = partial(_decoded, payloads, plan.codec)
        folded = fold(updates, decode, manifest.parameters, manifest.buffers)
        state, model = server_step(ServerSettings(), state, model, folded)
    return Row(
        problem.dataset,
        problem.split,
        "hub",
        plan.algorithm,
        plan.codec,
        plan.rounds,
        total // len(problem.fleet),
        round(problem.accuracy(model), 4),
        0.0,
        round(problem.worst_device(model), 4),
    )


def _decoded(payloads: Mapping[str, bytes], codec: str, update: Weighted) -> Decoded:
    return decode_payload(payloads[update.device], codec, update.layout)


def _task(plan: Plan, number: int, steps: int, seed: int, name: str, model_bytes: int) -> Task:
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
        learning_rate=plan.learning_rate,
        optimizer=OptimizerSpec(),
        codec=plan.codec,
        seed=task_seed(seed, number, name),
        time_left_s=60.0,
    )
