"""FedDF's identities, on softmax regression written out here: what a student learns, when it learns nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from coordinator.distil import Distilled, Logits, Rule, distil, divergence, dropped, mean_logits, softmax
from edge_agent.runtimes.engine import Batch, Evaluation, StepResult, Vector

FEATURES, CLASSES, INPUTS = 4, 3, 60
N = FEATURES * CLASSES
ALL = np.ones(N, np.bool_)
RULE = Rule(steps=200, batch_size=20, learning_rate=0.05, check_every=20, patience=1000, seed=3)
X = np.random.default_rng(1).normal(size=(INPUTS, FEATURES)).astype(np.float32)


class Regression:
    """Logits are inputs times weights; the gradient is that of cross entropy against probabilities."""

    name = "formula"

    def __init__(self) -> None:
        self.steps = 0

    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        x, wanted = batch.inputs[0].astype(np.float64), batch.targets[0].astype(np.float64)
        said = softmax(x @ model[:N].reshape(FEATURES, CLASSES).astype(np.float64))
        self.steps += 1
        gradient = (x.T @ (said - wanted) / len(batch)).astype(np.float32).ravel()
        return StepResult(float(-(wanted * np.log(said)).sum(1).mean()), gradient, np.zeros(0, np.float32))

    def evaluate(self, model: Vector, batch: Batch) -> Evaluation:
        raise AssertionError("a student is judged by others")


def logits_of(model: Vector) -> Logits:
    found: Logits = X.astype(np.float64) @ model[:N].reshape(FEATURES, CLASSES).astype(np.float64)
    return found


def model_of(seed: int) -> Vector:
    return np.random.default_rng(seed).normal(size=N).astype(np.float32)


def ever_better() -> Callable[[Vector], float]:
    """A judge that likes each model more than the one before."""
    marks: Iterator[float] = iter(np.linspace(0.0, 1.0, 1000))
    return lambda _: next(marks)


def learn(
    start: Vector,
    teacher: Logits,
    judge: Callable[[Vector], float] | None = None,
    rule: Rule = RULE,
    trained: npt.NDArray[np.bool_] = ALL,
) -> Distilled:
    return distil(Regression(), start, (X,), teacher, logits_of, judge or ever_better(), rule, trained)


def test_feddf_with_one_teacher_equal_to_the_student_moves_nothing() -> None:
    start = model_of(2)
    found = learn(start, logits_of(start))
    assert found.model is start
    assert found.steps == 0
    assert found.divergence < 1e-12


def test_feddf_of_no_steps_is_averaging() -> None:
    start = model_of(2)
    found = learn(start, logits_of(model_of(5)), rule=replace(RULE, steps=0))
    assert found.model is start
    assert found.divergence > 0.01


def test_feddf_learns_what_its_teachers_say() -> None:
    start, teacher = model_of(2), mean_logits(logits_of(model_of(seed)) for seed in (5, 6, 7))
    kept = start.copy()
    found = learn(start, teacher)
    assert divergence(teacher, logits_of(found.model)) < 0.05 * found.divergence
    assert np.array_equal(start, kept), "the average is not changed"
    assert found.best_step == found.steps == RULE.steps


def test_feddf_permuted_teachers_change_nothing() -> None:
    teachers = [logits_of(model_of(seed)) for seed in range(5, 10)]
    forth, back = mean_logits(teachers), mean_logits(reversed(teachers))
    one, other = learn(model_of(2), forth), learn(model_of(2), back)
    np.testing.assert_allclose(one.model, other.model, atol=1e-5)


def test_feddf_of_identical_teachers_is_feddf_of_one() -> None:
    teacher = logits_of(model_of(5))
    once, thrice = learn(model_of(2), teacher), learn(model_of(2), mean_logits([teacher] * 3))
    np.testing.assert_allclose(once.model, thrice.model, atol=1e-6)


def test_feddf_does_not_see_a_constant_added_to_all_logits_of_a_teacher() -> None:
    teachers = [logits_of(model_of(seed)) for seed in (5, 6)]
    moved = [teachers[0] + 7.0, teachers[1]]
    one, other = learn(model_of(2), mean_logits(teachers)), learn(model_of(2), mean_logits(moved))
    np.testing.assert_allclose(one.model, other.model, atol=1e-5)


def test_feddf_with_an_undecided_teacher_pulls_towards_indecision() -> None:
    start = model_of(2)
    undecided = np.zeros((INPUTS, CLASSES))
    found = learn(start, undecided)
    assert softmax(logits_of(found.model)).max() < 0.5 < softmax(logits_of(start)).max()


def test_the_best_on_labelled_examples_is_kept_and_the_average_is_one_of_them() -> None:
    start, marks = model_of(2), iter([0.5, 0.4, 0.7, 0.6, 0.7, *[0.1] * 20])
    found = learn(start, logits_of(model_of(5)), judge=lambda _: next(marks))
    assert (found.before, found.after, found.best_step) == (0.5, 0.7, 40)
    worse = iter([0.5, *[0.4] * 20])
    assert learn(start, logits_of(model_of(5)), judge=lambda _: next(worse)).model is start


def test_a_student_that_gets_no_better_is_not_taught_for_ever() -> None:
    marks = iter([0.5, 0.6, *[0.1] * 20])
    found = learn(model_of(2), logits_of(model_of(5)), lambda _: next(marks), replace(RULE, patience=60))
    assert (found.best_step, found.steps) == (20, 80)


def test_what_a_mask_leaves_out_does_not_move() -> None:
    trained = ALL.copy()
    trained[::2] = False
    start = model_of(2)
    found = learn(start, logits_of(model_of(5)), trained=trained)
    assert np.array_equal(found.model[~trained], start[~trained])
    assert not np.array_equal(found.model[trained], start[trained])


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    teacher = logits_of(model_of(5))
    one, again = learn(model_of(2), teacher), learn(model_of(2), teacher)
    other = learn(model_of(2), teacher, rule=replace(RULE, seed=4))
    assert np.array_equal(one.model, again.model)
    assert not np.array_equal(one.model, other.model)


@pytest.mark.parametrize(
    ("accuracies", "out"),
    [
        ([0.9, 0.8, 0.35], (False, False, True)),
        ([0.2, 0.1, 0.3], (False, False, False)),
        ([0.9, 0.88, 0.9, 0.89, 0.9, 0.5, 0.9], (False, False, False, False, False, True, False)),
        ([0.8], (False,)),
        ([0.1], (False,)),
    ],
)
def test_clients_no_better_than_chance_and_far_below_their_peers_do_not_teach(
    accuracies: list[float], out: tuple[bool, ...]
) -> None:
    assert dropped(accuracies, CLASSES) == out
