"""FedDF against averaging: one architecture at equal rounds, and three architectures fused against each third alone.

A third of Fashion-MNIST's training examples is used. 2,000 of these 20,000 are kept aside without their labels, for the
teachers to speak of, and 1,000 with them, by which the best student is kept. Nothing of it was tuned: the clients' rate
is a usual one, distillation is as FedDF's authors have it but for fewer steps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

from torch import nn

from benchmarks.algorithm_rows import NETWORKS, Row
from benchmarks.feddf_fleet import Architecture, Networks, Plan, deal, run
from devices.datasets import load_dataset

DEVICES, ALPHAS = 15, (1.0, 0.1)
_POOL, _VALIDATION = 2000, 1000
# Of the training examples one in so many, so that all fleets together take minutes.
_THINNED = 3
_PLAN = Plan(rounds=6, local_epochs=3, batch_size=32, learning_rate=0.05, steps=200)
_QUICK = Plan(rounds=1, local_epochs=1, batch_size=32, learning_rate=0.05, steps=20)


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def _deep() -> nn.Module:
    layers: list[nn.Module] = []
    for into, out in ((1, 8), (8, 12), (12, 16)):
        layers += [nn.Conv2d(into, out, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 4 * 4, 10))


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {
    "two convolutions": NETWORKS["fashion"],
    "three convolutions": _deep,
    "perceptron": _perceptron,
}
_FIRST = next(iter(ARCHITECTURES))


def rows(dataset: str, seeds: Sequence[int], quick: bool) -> Iterator[Row]:
    """A row for each algorithm, split and seed; none of a data set that this part is not about. Several architectures
    are compared where labels are most uneven."""
    if dataset != "fashion":
        return
    for seed in seeds:
        for alpha in ALPHAS:
            yield from _of(alpha, seed, quick)


def _of(alpha: float, seed: int, quick: bool) -> Iterator[Row]:
    data, plan = load_dataset("fashion"), _QUICK if quick else _PLAN
    train = data.train_indices[:: 20 if quick else _THINNED]
    measured = data.test_indices[::10] if quick else data.test_indices
    scale = 20 if quick else 1
    aside, shares = deal(data, train, DEVICES, alpha, seed, _POOL // scale, _VALIDATION // scale)
    networks, split = _networks(), f"dirichlet {alpha}"
    thirds = {name: shares[i :: len(ARCHITECTURES)] for i, name in enumerate(ARCHITECTURES)}
    for fused in (False, True):
        one = [networks.make(_FIRST, shares, measured, split, seed)]
        run(one, plan, aside, seed, fused=fused)
        yield _row(one[0], "FedDF" if fused else "averaging", plan)
        if alpha != min(ALPHAS):
            continue
        three = [networks.make(name, part, measured, split, seed) for name, part in thirds.items()]
        run(three, plan, aside, seed, fused=fused)
        for third in three:
            yield _row(third, f"{third.name}: {'three architectures fused' if fused else 'a third alone'}", plan)


@cache
def _networks() -> Networks:
    return Networks(load_dataset("fashion"), ARCHITECTURES)


def _row(one: Architecture, algorithm: str, plan: Plan) -> Row:
    problem = one.problem
    return Row(
        dataset=problem.dataset,
        split=problem.split,
        topology="hub",
        algorithm=algorithm,
        codec="all/float32",
        rounds=plan.rounds,
        # A model each way: distillation sends nothing.
        bytes=plan.rounds * 2 * 4 * problem.manifest.total,
        accuracy_mean=round(problem.accuracy(one.model), 4),
        accuracy_sd=0.0,
        accuracy_worst_device=round(problem.worst_device(one.model), 4),
    )
