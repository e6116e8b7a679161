"""One sparse training run as a device does it: data set, network and bundle, a seed's beginning, steps, accuracy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from devices import datasets
from edge_agent.data import Dataset
from edge_agent.runtimes import portable
from edge_agent.runtimes.backends import choose
from edge_agent.runtimes.engine import Batch, Engine, Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.training import LocalTraining, Recipe
from export import TrainingSpec
from export.bundle import write_bundle
from protocol.bundle import Bundle, open_bundle
from sparse.dynamic import SparseRule

# Of one evaluation pass; it does not change what comes out.
EVALUATED = 500


@dataclass(frozen=True, slots=True)
class Task:
    """A data set, a network for it, and how it is trained; `prunable` as in TrainingSpec.

    examples: how many of the training examples are used, the first ones; None for all.
    """

    dataset: str
    network: Callable[[], nn.Module]
    prunable: tuple[str, ...]
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    examples: int | None = None

    @property
    def decay_at(self) -> tuple[int, int]:
        """As in Lin et al. 2020, where the rate falls after epochs 150 and 225 of 300."""
        return self.steps // 2, self.steps * 3 // 4

    def recipe(self, rule: SparseRule | None, seed: int) -> Recipe:
        optimizer = OptimizerSettings(momentum=0.9, nesterov=True, weight_decay=self.weight_decay)
        return Recipe(self.steps, 0, self.batch_size, self.learning_rate, optimizer, seed, self.decay_at, rule)


@dataclass(frozen=True, slots=True)
class Split:
    """Examples to train on, and others to measure on."""

    train: Dataset
    measured: Dataset
    said: str


def fashion_cnn() -> nn.Module:
    """28x28 grey pixels to ten classes: two strided convolutions and a hidden layer, each with BatchNorm; 28 thousand
    parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 32, bias=False),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


# As in Lin et al. 2020, everything but norms, biases and the last layer is prunable; rate and decay are theirs too.
# A device holds thousands of examples, not tens of thousands: it passes over them many times, as they do over CIFAR.
_ON_A_DEVICE = Task("fashion", fashion_cnn, ("0.weight", "3.weight", "7.weight"), 1800, 64, 0.2, 1e-4, 6000)
TASKS: Mapping[str, Task] = {
    "fashion": _ON_A_DEVICE,
    # Not two passes in as many steps: nothing is learnt to the end, and noise decides much of what is pruned.
    "fashion-60k": replace(_ON_A_DEVICE, examples=None),
}


def split_of(task: Task, *, validation: bool) -> Split:
    """Measured on what is held out; for validation the training examples alone are split, by people where known."""
    data = datasets.load_dataset(task.dataset)
    measured, kept = data.test, ~data.test
    said = f"its {np.count_nonzero(measured)} held-out examples"
    if validation:
        if data.group is None:
            measured = kept & (np.arange(len(kept)) % 6 == 5)
            said = "every sixth example, none of them held out"
        else:
            people = np.unique(data.group[kept])[::5]
            measured = kept & np.isin(data.group, people)
            said = f"the people {', '.join(map(str, people))}, none of them held out"
        kept = kept & ~measured
    parts = np.flatnonzero(kept)[: task.examples], np.flatnonzero(measured)
    train, test = (Dataset((data.x[part],), (data.y[part],)) for part in parts)
    return Split(train, test, f"{task.dataset}: trained on {len(train)} examples, measured on {said}")


def bundle_of(task: Task, folder: Path) -> Bundle:
    """The network exported, with parity; every seed begins from its own model in the same bundle."""
    data = datasets.load_dataset(task.dataset)
    torch.manual_seed(0)
    inputs, targets = torch.randn(8, *data.shape), torch.randint(0, data.classes, (8,))
    spec = TrainingSpec(task.network(), inputs, targets, "cross_entropy", ("accuracy",), task.prunable)
    write_bundle(spec, folder, line=f"sparse-{task.dataset}")
    return open_bundle(folder)


def initial(task: Task, bundle: Bundle, seed: int) -> Vector:
    """The network as torch draws it from a seed: float32[total], manifest order."""
    torch.manual_seed(seed)
    drawn = task.network().state_dict()
    return np.concatenate([drawn[t.name].numpy().astype(np.float32).ravel() for t in bundle.manifest.tensors])


def engine_of(bundle: Bundle) -> Engine:
    return choose(bundle, portable.NAME).engine


def accuracy(engine: Engine, model: Vector, data: Dataset) -> float:
    """The share of examples that the model tells right, in evaluation mode."""
    right = 0.0
    for start in range(0, len(data), EVALUATED):
        part = slice(start, start + EVALUATED)
        found = engine.evaluate(model, Batch((data.inputs[0][part],), (data.targets[0][part],)))
        right += found.metrics["accuracy"] * found.examples
    return right / len(data)


def trained_accuracy(
    task: Task, bundle: Bundle, engine: Engine, split: Split, rule: SparseRule | None, seed: int
) -> float:
    """Trains from the seed's beginning, and measures the masked model."""
    recipe, model = task.recipe(rule, seed), initial(task, bundle, seed)
    training = LocalTraining(engine, bundle.manifest, split.train, recipe, model)
    training.advance(float("inf"))
    return accuracy(engine, training.result().model, split.measured)
