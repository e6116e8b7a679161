"""Reports of gradients: bounded by the median of their round, whatever a device tells."""

from dataclasses import replace

import numpy as np
import pytest

from coordinator.feedback import motion, reach
from coordinator.rows import AcceptedUpdate
from edge_agent.momentum import settings_of
from edge_agent.runtimes import optimizers
from edge_agent.runtimes.engine import Vector
from protocol.messages import BlobRef, OptimizerSpec, SharedMask, Task

N = 6
BLOB = BlobRef(bytes(32), 0)
TASK = Task("run", 1, BLOB, BLOB, 0, 7, 0, 4, 0.3, OptimizerSpec(), "mask/float32", 0, 1.0)
REPORTING = Task(
    *("run", 1, BLOB, BLOB, 0, 7, 0, 4, 0.3, OptimizerSpec(), "mask/float32", 0, 1.0),
    mask=SharedMask(bytes(32), BLOB, report=2),
)


def updates(count: int, task: Task = REPORTING) -> list[AcceptedUpdate]:
    return [AcceptedUpdate(1, f"d{i}", bytes(32), 10, 1.0, "mask/float32", "full", task) for i in range(count)]


def whole(_: AcceptedUpdate) -> float:
    return 1.0


def told(liar: float) -> dict[str, Vector]:
    return {f"d{i}": np.full(N, liar if i == 0 else 1.0, np.float32) for i in range(5)}


@pytest.mark.parametrize("lie", [1e6, -1e30, 3e38])
def test_a_report_of_any_size_moves_the_weights_no_further_than_its_factor_of_the_median(lie: float) -> None:
    reports = told(lie)
    plain = motion(updates(5), lambda u: told(1.0)[u.device], N, whole, 2.0)
    moved = motion(updates(5), lambda u: reports[u.device], N, whole, 2.0)
    assert np.isfinite(moved).all()
    assert (np.abs(moved - plain) <= 3 / 5 * np.abs(plain) + 1e-9).all()
    assert np.abs(motion(updates(5), lambda u: reports[u.device], N, whole)).max() > 1e5


def test_reports_that_are_alike_are_not_touched() -> None:
    reports = told(1.5)
    bounded = motion(updates(5), lambda u: reports[u.device], N, whole, 2.0)
    assert bounded.tobytes() == motion(updates(5), lambda u: reports[u.device], N, whole).tobytes()
    assert not motion(updates(5, TASK), lambda u: reports[u.device], N, whole, 2.0).any()


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerSpec(),
        OptimizerSpec(momentum=0.9),
        OptimizerSpec(momentum=0.9, nesterov=True),
        OptimizerSpec(momentum=0.9, keep_momentum=True),
        OptimizerSpec("qg", momentum=0.9),
        OptimizerSpec("qg", momentum=0.9, nesterov=True, mu=0.5),
    ],
)
def test_a_steady_gradient_reaches_as_far_as_the_devices_optimiser_would_go(optimizer: OptimizerSpec) -> None:
    settings = settings_of(optimizer)
    state, x = optimizers.init(settings, 1), np.zeros(1, np.float32)
    for _ in range(TASK.local_steps):
        state, x = optimizers.step(settings, state, x, np.ones(1, np.float32), TASK.learning_rate)
    assert reach(replace(TASK, optimizer=optimizer), 10) == pytest.approx(-float(x[0]), rel=1e-5)
