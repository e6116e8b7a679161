"""A fleet of which some lie, in one process: real engines and payloads, the checks of intake, and the fold."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.codec_fleet import Schedule
from benchmarks.tier_fleet import accuracy
from coordinator.fold import Decoded, Folded, Weighted
from coordinator.folding import Caution, fold_bounded
from coordinator.intake import check_payload, weigh
from coordinator.norms import ENOUGH, RECENT, Norms, check_norms, hard_bounds, length, most_weight, norms_of
from coordinator.planner import learning_rate, task_seed
from coordinator.server_step import initial_state, server_step
from coordinator.settings import LimitSettings, ServerSettings, TrainingSettings
from coordinator.trust_settings import FoldSettings
from edge_agent.data import Dataset
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.portable import PortableEngine
from edge_agent.training import DivergedError, LocalTraining, Recipe
from protocol.bundle import Bundle
from protocol.errors import Rejection
from protocol.layout import Layout, layout_of, take
from protocol.manifest import FULL
from sparse.codecs import encode_update, parse_codec

Attack = Literal["none", "absent", "sign-flip", "scaled", "random"]
CODEC = "all/float32"
# A lying device sends so many times its honest update, the other way; or so much noise.
SCALE = 10.0
_MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Defence:
    """A fold, and what is believed of devices: as multiples of the median, 0 for all."""

    name: str
    fold: FoldSettings
    weight: float
    norm: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Accuracy of the last model on what is held out, and how many updates were refused."""

    accuracy: float
    rejected: int


@dataclass(slots=True)
class _Round:
    """What intake took."""

    updates: list[Weighted] = field(default_factory=list)
    decoded: dict[str, Decoded] = field(default_factory=dict)
    norms: dict[str, Norms] = field(default_factory=dict)


def run(
    bundle: Bundle,
    initial: Vector,
    fleet: Mapping[str, Dataset],
    liars: frozenset[str],
    attack: Attack,
    defence: Defence,
    schedule: Schedule,
    held_out: Dataset,
    seed: int,
    folder: Path,
) -> Outcome:
    """Trains the fleet, datasets by device, from float32[total] `initial`. Liars say that they have as many examples as
    a device may have."""
    manifest, model, state = bundle.manifest, initial, initial_state()
    layout, engine = layout_of(manifest, FULL), PortableEngine(bundle, FULL)
    recent: tuple[Norms, ...] = ()
    rejected = 0
    for number in range(1, schedule.rounds + 1):
        taken, most = _Round(), hard_bounds(defence.norm, recent[:RECENT])
        for name, data in fleet.items():
            if attack == "absent" and name in liars:
                continue
            recipe = _recipe(schedule, number, seed, name)
            local = LocalTraining(engine, manifest, data, recipe, model)
            try:
                local.advance(float("inf"))
            except DivergedError:
                # An agent tells so, and sends nothing.
                continue
            delta = np.subtract(local.result().model, model)
            told: Attack = attack if name in liars else "none"
            payload = _payload(delta, layout, told, recipe.seed)
            examples = len(data) if told == "none" else 10**12
            rejected += not _take_in(taken, name, payload, examples, layout, model, most)
        if not taken.updates:
            # Nobody can train what is left of the model.
            break
        caution = Caution(defence.fold, recent=recent[:ENOUGH], folder=folder, standing=state.standing)
        label = f"{seed}/{number}".encode()
        folded = _folded(taken, defence.weight, caution, manifest.parameters, manifest.buffers, label)
        stepped, model = server_step(ServerSettings(), state, model, folded)
        state = replace(stepped, standing=folded.standing)
        recent = (*(taken.norms[name] for name in sorted(taken.norms)), *recent)
    return Outcome(accuracy(bundle, model, held_out), rejected)


def _folded(taken: _Round, weight: float, caution: Caution, n_parameters: int, n_buffers: int, label: bytes) -> Folded:
    most = most_weight([update.weight for update in taken.updates], weight)
    updates = [Weighted(u.device, min(u.weight, most), u.layout) for u in taken.updates]
    found = fold_bounded(
        caution,
        updates,
        {(0, name): norms for name, norms in taken.norms.items()},
        lambda update: taken.decoded[update.device],
        n_parameters,
        n_buffers,
        label,
    )
    return found.folded


def _payload(delta: Vector, layout: Layout, attack: Attack, seed: int) -> bytes:
    if attack == "sign-flip":
        delta = -delta
    elif attack == "scaled":
        with np.errstate(over="ignore"):
            delta = np.float32(-SCALE) * delta
    elif attack == "random":
        noise = np.random.default_rng(seed).standard_normal(len(delta)).astype(np.float32)
        delta = noise * np.float32(min(1e30, SCALE * length(delta) / length(noise)))
    # What no float32 can say is said as the largest that it can.
    delta = np.nan_to_num(delta)
    parameters = take(delta, layout.parameters)
    none = np.zeros(layout.n_parameters, np.float32)
    return encode_update(parameters, take(delta, layout.buffers), none, parse_codec(CODEC), layout.digest)[0]


def _take_in(
    taken: _Round, name: str, payload: bytes, examples: int, layout: Layout, model: Vector, most: Norms
) -> bool:
    """As reception.py does, from the bounded decode on."""
    checked = check_payload(payload, CODEC, layout, model)
    if isinstance(checked, Rejection):
        return False
    norms = norms_of(checked)
    if check_norms(norms, most) is not None:
        return False
    taken.updates.append(Weighted(name, weigh(examples, LimitSettings().examples), layout))
    taken.decoded[name], taken.norms[name] = checked, norms
    return True


def _recipe(schedule: Schedule, number: int, seed: int, name: str) -> Recipe:
    training = TrainingSettings(schedule.batch_size, schedule.learning_rate, schedule.steps, schedule="cosine")
    rate = learning_rate(training, number, schedule.rounds)
    optimizer = OptimizerSettings(momentum=_MOMENTUM)
    return Recipe(schedule.steps, 0, schedule.batch_size, rate, optimizer, task_seed(seed, number, name))
