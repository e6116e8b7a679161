"""What devices are asked when their heads are compared: never what they trained on."""

import numpy as np
import pytest

from benchmarks.head_fleet import Answers, accuracies, joined, split_by_activity
from edge_agent.data import Dataset
from edge_agent.personal.head import Head
from edge_agent.personal.mixture import Means, MixRule


def numbered(n: int, labels: int, first: int = 0) -> Dataset:
    x = np.arange(first, first + n, dtype=np.float32)[:, None]
    return Dataset((x,), (np.arange(n) % labels,))


@pytest.mark.parametrize("validate", [False, True])
def test_a_person_is_asked_the_last_of_each_activity_and_settings_are_chosen_without_it(validate: bool) -> None:
    data = numbered(100, 4)
    train, asked = split_by_activity(data, validate=validate)
    last, _ = split_by_activity(data, validate=False)
    seen, questions = (set(np.asarray(d.inputs[0]).ravel().tolist()) for d in (train, asked))
    assert not seen & questions
    assert len(questions) == 20
    for label in range(4):
        own = [np.asarray(d.inputs[0])[np.asarray(d.targets[0]) == label].max() for d in (train, asked)]
        assert own[0] < own[1]
    if validate:
        assert seen | questions == set(np.asarray(last.inputs[0]).ravel().tolist())


def test_a_mixed_test_has_as_many_of_each_in_one_drawn_order() -> None:
    found = joined(numbered(30, 3), numbered(50, 3, first=1000), np.random.default_rng(0))
    elsewhere = np.asarray(found.inputs[0]).ravel() >= 1000
    assert (len(found), elsewhere.sum()) == (60, 30)
    assert 0 < elsewhere[:30].sum() < 30


def test_each_way_to_answer_is_measured_on_each_device() -> None:
    right, wrong = (Head(np.eye(2, dtype=np.float32) * s, np.zeros(2, np.float32)) for s in (4, -4))
    x, y = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]], np.array([0, 1, 0, 1])
    here, there = np.full(2, 0.5, np.float32), np.full(2, 9.0, np.float32)
    devices = [
        Answers(wrong, right, Means(here, there), {"own": x}, {"own": y}),
        Answers(right, wrong, Means(here, here), {"own": x}, {"own": y}),
    ]
    found = accuracies(devices, "own", MixRule())
    assert found["fleet's head"] == [0.0, 1.0]
    assert found["personal head"] == [1.0, 0.0]
    assert found["FedTHE mix"][0] == 1.0
