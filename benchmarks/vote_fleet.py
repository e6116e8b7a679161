"""A fleet in one process that votes on a mask over frozen weights: the daemons' own tasks, ballots, fold and vote."""

import hashlib
from dataclasses import dataclass

from benchmarks.algorithm_rows import Problem, Row
from coordinator.fold import Decoded, Weighted, fold
from coordinator.masking import deployed
from coordinator.planner import make_task
from coordinator.server_step import initial_state
from coordinator.settings import RoundSettings, ServerSettings, Settings, TrainingSettings
from coordinator.structure import Structure
from coordinator.views import View, Views
from coordinator.vote import ballot_delta, first_vote, vote
from coordinator.vote_settings import MaskingSettings
from coordinator.wire_bytes import round_bytes
from edge_agent.data import Dataset
from edge_agent.runtimes.engine import Vector
from edge_agent.scores import ScoreEngine, ballot_of, first_scores
from edge_agent.training import LocalTraining
from edge_agent.workshop import recipe_of
from protocol.manifest import FULL
from protocol.messages import BlobRef, OptimizerSpec, Task
from protocol.topics import Topics
from sparse.codecs import BALLOT
from sparse.votes import pack_chances, unpack_chances

_TOPICS, _RUN, _MANIFEST = Topics("benchmark"), "0" * 12, BlobRef(bytes(32), 1 << 14)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everyone in every round. keep: the chance that all weights begin with. rate: of scores, which falls along a
    cosine over the rounds. vote_rate: how far a vote moves the chances."""

    algorithm: str
    rounds: int
    local_steps: int
    batch_size: int
    keep: float
    rate: float
    vote_rate: float


def run(problem: Problem, plan: Plan, seed: int) -> Row:
    """Learns a mask over the problem's initial weights, and measures the likeliest one of the last round."""
    settings, weights, total = _settings(plan, len(problem.fleet), seed), problem.initial, 0
    structure, state = first_vote(settings, problem.bundle), initial_state()
    engine = ScoreEngine(problem.engine, problem.manifest, weights)
    for number in range(1, plan.rounds + 1):
        view, payloads = _view(problem, weights, structure), dict[str, bytes]()
        for name, data in problem.fleet.items():
            task = make_task(settings, _RUN, number, name, _MANIFEST, number - 1, view, None, "all/float32")
            payloads[name] = _ballot(problem, engine, data, task, view)
            assert task.chances is not None
            # The weights travel once.
            fetched = [task.chances.size, *([task.model.size] if number == 1 else [])]
            total += round_bytes(_TOPICS, task, fetched, len(payloads[name]), name).both
        updates = [Weighted(name, len(data), view.layout) for name, data in problem.fleet.items()]

        def decode(update: Weighted, view: View = view, sent: dict[str, bytes] = payloads) -> Decoded:
            assert view.chances is not None
            return ballot_delta(sent[update.device], view.layout.digest, view.chances)

        folded = fold(updates, decode, problem.manifest.parameters, 0)
        assert structure.chances is not None
        state, structure = vote(settings.server, state, problem.manifest, structure.chances, folded)
    model = deployed(weights, structure)
    return Row(
        *(problem.dataset, problem.split, "hub", plan.algorithm, BALLOT, plan.rounds),
        bytes=total // len(problem.fleet),
        accuracy_mean=round(problem.accuracy(model), 4),
        accuracy_sd=0.0,
        accuracy_worst_device=round(problem.worst_device(model), 4),
    )


def _ballot(problem: Problem, engine: ScoreEngine, data: Dataset, task: Task, view: View) -> bytes:
    """What a device sends of a task, of chances as they travelled."""
    assert view.chances is not None
    told = first_scores(problem.manifest, unpack_chances(pack_chances(view.chances)))
    local = LocalTraining(engine, problem.manifest, data, recipe_of(task), told)
    local.advance(float("inf"))
    return ballot_of(problem.manifest, task, local.result())


def _view(problem: Problem, weights: Vector, structure: Structure) -> View:
    blob = BlobRef(bytes(32), 4 * len(weights))
    return Views(problem.manifest, weights, blob, structure, _named).of(FULL)


def _named(data: bytes) -> BlobRef:
    return BlobRef(hashlib.sha256(data).digest(), len(data))


def _settings(plan: Plan, devices: int, seed: int) -> Settings:
    return Settings(
        fleet="benchmark",
        bundle="the problem's",
        seed=seed,
        rounds=RoundSettings(plan.rounds, devices, 60.0),
        training=TrainingSettings(
            plan.batch_size, plan.rate, plan.local_steps, schedule="cosine", optimizer=OptimizerSpec("adamw")
        ),
        server=ServerSettings(learning_rate=plan.vote_rate),
        masking=MaskingSettings(plan.keep),
    )
