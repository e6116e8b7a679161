"""Fleets in one process whose clients' models are averaged or fused by distillation, of one architecture or several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from torch import nn

from benchmarks.algorithm_rows import Problem, examples
from coordinator.distil import Logits, Rule, distil, mean_logits
from devices.datasets import Dataset as Labelled
from devices.datasets import Ints
from devices.partition import by_label_skew
from edge_agent.data import Dataset
from edge_agent.runtimes.engine import Array, Batch, Vector
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.portable import PortableEngine
from edge_agent.training import LocalTraining, Recipe
from export import TrainingSpec
from export.bundle import write_bundle
from export.distillation import distillation_spec
from export.layout import flat_model
from protocol.bundle import open_bundle

_BATCH = 512


@dataclass(frozen=True, slots=True)
class Plan:
    """What holds for all fleets that are compared. The clients' rate is constant; distillation is the project's default
    but for its steps."""

    rounds: int
    local_epochs: int
    batch_size: int
    learning_rate: float
    steps: int


@dataclass(frozen=True, slots=True)
class Aside:
    """What is taken from the training examples before they are dealt: inputs without labels, and labelled ones."""

    pool: tuple[Array, ...]
    validation: Dataset


@dataclass
class Architecture:
    """A network with its bundles. problem: its devices' data and how its model is measured."""

    name: str
    problem: Problem
    student: PortableEngine
    model: Vector = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.problem.initial
        manifest = self.problem.manifest
        self._evaluator = Evaluator(self.problem.bundle, manifest.variant("full").backends["portable"].files["eval"])

    def logits(self, model: Vector, inputs: tuple[Array, ...]) -> Logits:
        found = []
        for start in range(0, len(inputs[0]), _BATCH):
            x = inputs[0][start : start + _BATCH]
            target = np.zeros(len(x), np.int64)
            found.append(self._evaluator.outputs(model, Batch((np.asarray(x),), (target,)))[1])
        return np.concatenate(found).astype(np.float64)

    def train(self, plan: Plan, number: int, seed: int) -> tuple[Vector, list[Vector]]:
        """The mean of its clients' models, by examples, and each of them."""
        clients, weights = [], []
        for place, data in enumerate(self.problem.fleet.values()):
            recipe = Recipe(
                0,
                plan.local_epochs,
                plan.batch_size,
                plan.learning_rate,
                OptimizerSettings(),
                int(np.random.SeedSequence((seed, number, place)).generate_state(1)[0]),
            )
            local = LocalTraining(self.problem.engine, self.problem.manifest, data, recipe, self.model)
            local.advance(float("inf"))
            clients.append(local.result().model.copy())
            weights.append(len(data))
        mean = np.average(np.stack(clients).astype(np.float64), axis=0, weights=weights)
        return mean.astype(np.float32), clients


def run(fleet: Sequence[Architecture], plan: Plan, aside: Aside, seed: int, *, fused: bool) -> None:
    """Trains all architectures, side by side; with `fused`, all clients teach each one's model after its average."""
    (labels,) = aside.validation.targets
    for number in range(1, plan.rounds + 1):
        trained = [one.train(plan, number, seed) for one in fleet]
        for one, (mean, _) in zip(fleet, trained, strict=True):
            one.model = mean
        if not fused:
            continue
        teacher = mean_logits(
            one.logits(client, aside.pool)
            for one, (_, clients) in zip(fleet, trained, strict=True)
            for client in clients
        )
        for one in fleet:

            def judge(model: Vector, one: Architecture = one) -> float:
                return float((one.logits(model, aside.validation.inputs).argmax(axis=1) == labels).mean())

            def said(model: Vector, one: Architecture = one) -> Logits:
                return one.logits(model, aside.pool)

            rule = Rule(plan.steps, 128, 1e-3, 100, plan.steps, seed * 1000 + number)
            everything = np.ones(one.problem.manifest.parameters, np.bool_)
            one.model = distil(one.student, one.model, aside.pool, teacher, said, judge, rule, everything).model


def deal(
    data: Labelled, train: Ints, devices: int, alpha: float, seed: int, pool: int, validation: int
) -> tuple[Aside, list[Ints]]:
    """What is kept aside, and each device's examples: by Dirichlet's label skew (devices/partition.py)."""
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(train)
    labelled, dealt = mixed[pool : pool + validation], mixed[pool + validation :]
    shares = by_label_skew(data.y[dealt], devices, alpha, rng)
    return Aside((data.x[mixed[:pool]],), examples(data, labelled)), [dealt[share] for share in shares]


class Networks:
    """Each network exported once a process, with its bundle for distillation."""

    def __init__(self, data: Labelled, networks: Mapping[str, Callable[[], nn.Module]]) -> None:
        self._data, self._networks = data, networks
        self._root = Path(mkdtemp(prefix="feddf-"))

    def make(self, name: str, fleet: Sequence[Ints], measured: Ints, split: str, seed: int) -> Architecture:
        """An untrained one, on the devices that hold these examples."""
        folder, student = self._root / name, self._root / f"{name}-student"
        torch.manual_seed(seed)
        module = self._networks[name]()
        if not folder.exists():
            inputs = torch.randn(8, *self._data.shape), torch.randint(0, self._data.classes, (8,))
            spec = TrainingSpec(module, *inputs, "cross_entropy", ("accuracy",))
            write_bundle(spec, folder, line=f"feddf-{name}", backends=("portable",))
            write_bundle(distillation_spec(spec), student, line=f"feddf-{name}-student", backends=("portable",))
        bundle, data = open_bundle(folder), self._data
        held = {f"device-{i:02d}": examples(data, share) for i, share in enumerate(fleet)}
        weights = np.stack([_mix(data.y[share], data.y[measured], data.classes) for share in fleet])
        initial = flat_model(module, bundle.manifest.tensors)
        problem = Problem(data.name, split, bundle, held, examples(data, measured), weights, initial)
        return Architecture(name, problem, PortableEngine(open_bundle(student)))


def _mix(own: Ints, held: Ints, classes: int) -> Array:
    """How much each held-out example weighs for a device with labels `own`."""
    mix = np.bincount(own, minlength=classes) / np.maximum(1, np.bincount(held, minlength=classes))
    return np.asarray(mix[held] / mix[held].sum())
