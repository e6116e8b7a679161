"""A fleet under one codec in one process: real engines, local steps, payloads with error feedback, intake's decoding
and the fold; bytes are those that its messages would have."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.tier_fleet import accuracy
from coordinator.downlink import Published, publish
from coordinator.fold import Decoded, Weighted, fold
from coordinator.intake import decode_payload
from coordinator.planner import learning_rate, task_seed
from coordinator.server_step import ServerState, initial_state, server_step
from coordinator.settings import DownlinkSettings, RoundSettings, ServerSettings, Settings, TrainingSettings
from coordinator.wire_bytes import round_bytes
from edge_agent.data import Dataset
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.portable import PortableEngine
from edge_agent.training import LocalTraining, Recipe
from protocol.bundle import Bundle
from protocol.layout import layout_of, take
from protocol.manifest import FULL
from protocol.messages import BlobRef, Difference, OptimizerSpec, Task
from protocol.topics import Topics
from sparse.codecs import encode_update, parse_codec

_TOPICS, _DIGEST, _RUN = Topics("benchmark"), bytes(32), "0" * 12
_MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a fleet trains, everyone in every round. learning_rate falls to zero along a cosine."""

    rounds: int
    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Accuracy of the last model on what is held out, and the mean bytes of a device in a round, each way."""

    accuracy: float
    uplink_bytes: float
    downlink_bytes: float


def run(
    bundle: Bundle,
    initial: Vector,
    fleet: Mapping[str, Dataset],
    codec: str,
    schedule: Schedule,
    held_out: Dataset,
    seed: int,
) -> Outcome:
    """Trains the fleet, datasets by device, from float32[total] `initial`.

    codec: of updates, and after " down " that of the model's differences, where it does not travel whole.
    """
    codec, _, downlink = codec.partition(" down ")
    manifest, model, state = bundle.manifest, initial, initial_state()
    layout, spec, engine = layout_of(manifest, FULL), parse_codec(codec), PortableEngine(bundle, FULL)
    settings, public = _settings(schedule, codec, downlink or "all/float32", seed), Published(initial)
    residuals = {name: np.zeros(layout.n_parameters, np.float32) for name in fleet}
    up = down = 0
    for number in range(1, schedule.rounds + 1):
        payloads: dict[str, bytes] = {}
        for name, data in fleet.items():
            task = _task(settings, number, name, 4 * manifest.total, public.difference)
            local = LocalTraining(engine, manifest, data, _recipe(task), public.model)
            local.advance(float("inf"))
            delta = np.subtract(local.result().model, public.model)
            payloads[name], residuals[name] = encode_update(
                take(delta, layout.parameters),
                take(delta, layout.buffers),
                residuals[name],
                spec,
                layout.digest,
                shapes=layout.shapes,
                seed=task.seed % (1 << 32),
            )
            found = round_bytes(_TOPICS, task, [(public.difference or task.model).size], len(payloads[name]), name)
            up, down = up + found.up, down + found.down
        state, model = _next(bundle, fleet, payloads, codec, state, model)
        public = publish(settings, layout, public.model, model, number, _blob)
    taken = schedule.rounds * len(fleet)
    return Outcome(accuracy(bundle, model, held_out), up / taken, down / taken)


def _next(
    bundle: Bundle,
    fleet: Mapping[str, Dataset],
    payloads: Mapping[str, bytes],
    codec: str,
    state: ServerState,
    model: Vector,
) -> tuple[ServerState, Vector]:
    manifest = bundle.manifest
    layout = layout_of(manifest, FULL)

    def decode(update: Weighted) -> Decoded:
        return decode_payload(payloads[update.device], codec, layout)

    updates = [Weighted(name, len(data), layout) for name, data in fleet.items()]
    return server_step(ServerSettings(), state, model, fold(updates, decode, manifest.parameters, manifest.buffers))


def _settings(schedule: Schedule, codec: str, downlink: str, seed: int) -> Settings:
    return Settings(
        fleet=_TOPICS.fleet,
        bundle="",
        rounds=RoundSettings(schedule.rounds, 1, 60.0),
        training=TrainingSettings(
            schedule.batch_size,
            schedule.learning_rate,
            schedule.steps,
            schedule="cosine",
            codec=codec,
            optimizer=OptimizerSpec(momentum=_MOMENTUM),
        ),
        seed=seed,
        downlink=DownlinkSettings(downlink),
    )


def _blob(data: bytes) -> BlobRef:
    """Its size; of a digest only the length counts."""
    return BlobRef(_DIGEST, len(data))


def _task(settings: Settings, number: int, name: str, model_bytes: int, difference: BlobRef | None) -> Task:
    """What the coordinator would send."""
    training = settings.training
    return Task(
        run=_RUN,
        round=number,
        manifest=BlobRef(_DIGEST, 1 << 14),
        model=BlobRef(_DIGEST, model_bytes),
        version=number - 1,
        local_steps=training.local_steps,
        local_epochs=0,
        batch_size=training.batch_size,
        learning_rate=learning_rate(training, number, settings.rounds.count),
        optimizer=training.optimizer,
        codec=training.codec,
        seed=task_seed(settings.seed, number, name),
        time_left_s=settings.rounds.deadline_s,
        differences=() if difference is None else (Difference(_DIGEST, difference),),
    )


def _recipe(task: Task) -> Recipe:
    optimizer = OptimizerSettings(momentum=_MOMENTUM)
    return Recipe(task.local_steps, 0, task.batch_size, task.learning_rate, optimizer, task.seed)
