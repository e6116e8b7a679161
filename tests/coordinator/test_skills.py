"""Optimizers that not every agent knows: who does not is not asked, and the budget of bytes as a run keeps it."""

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.local_steps import BudgetSettings
from protocol.messages import KEPT_MOMENTUM, QUASI_GLOBAL, OptimizerSpec, Task
from tests.coordinator.simulation import Simulation

QG = OptimizerSpec(name="qg", momentum=0.9)
KEPT = OptimizerSpec(momentum=0.9, keep_momentum=True)


def fleet(folder: Path, training: dict[str, object], **rounds: object) -> Simulation:
    made = Simulation.make(folder, **rounds)  # type: ignore[arg-type]
    made.kill()
    made.settings = replace(made.settings, training=replace(made.settings.training, **training))  # type: ignore[arg-type]
    made.start()
    return made


@pytest.mark.parametrize(("optimizer", "skill"), [(QG, QUASI_GLOBAL), (KEPT, KEPT_MOMENTUM)])
def test_an_agent_that_does_not_know_the_optimizer_is_not_asked_and_is_named(
    tmp_path: Path, optimizer: OptimizerSpec, skill: str
) -> None:
    made = fleet(tmp_path, {"optimizer": optimizer}, devices=3, minimum=2)
    for device in ("dev-0", "dev-1"):
        made.agents[device].skills = (skill,)
    for agent in made.agents.values():
        agent.restart()
    made.finish()
    assert not any(isinstance(body, Task) for body in made.agents["dev-2"].heard)
    told = [body for body in made.agents["dev-0"].heard if isinstance(body, Task)]
    assert {body.optimizer for body in told} == {optimizer}
    assert len(made.committed) == 3


def test_who_is_there_and_has_not_greeted_since_the_coordinator_began_is_not_called_too_old(tmp_path: Path) -> None:
    made = fleet(tmp_path, {"optimizer": QG}, devices=3, minimum=2)
    for agent in made.agents.values():
        agent.skills = (QUASI_GLOBAL,)
        agent.restart()
    made.until(lambda: len(made.committed) == 1)
    made.kill()
    greet = made.agents["dev-0"].hello
    # Its retained state says that it is there; its greeting is late.
    made.agents["dev-0"].hello = lambda: None  # type: ignore[method-assign]
    made.start()
    made.until(lambda: len(made.committed) == 2)
    assert not [rejection for rejection in made.rejected if rejection.reason == "agent-too-old"]
    made.agents["dev-0"].hello = greet  # type: ignore[method-assign]
    made.finish()


def test_with_an_optimizer_of_before_every_agent_is_asked(tmp_path: Path) -> None:
    made = fleet(tmp_path, {})
    made.finish()
    assert all(any(isinstance(body, Task) for body in agent.heard) for agent in made.agents.values())


def test_post_local_tasks_have_one_step_until_the_switch(tmp_path: Path) -> None:
    made = fleet(tmp_path, {"local_steps": 8, "post_local": 3}, count=4)
    made.finish()
    told = {body.round: body.local_steps for body in made.agents["dev-0"].heard if isinstance(body, Task)}
    assert told == {1: 1, 2: 1, 3: 8, 4: 8}


def test_a_budget_ends_the_run_when_its_steps_are_done_through_a_restart(tmp_path: Path) -> None:
    def steps(folder: Path, *, restart: bool) -> dict[int, int]:
        made = fleet(folder, {"local_steps": 50, "budget": BudgetSettings(60, 0.05)}, count=40)
        if restart:
            made.until(lambda: len(made.committed) == 2)
            made.kill()
            made.start()
        made.finish()
        assert made.ended is not None
        assert made.ended.reason == "steps"
        told = {body.round: body.local_steps for body in made.agents["dev-0"].heard if isinstance(body, Task)}
        assert sum(told.values()) >= 60
        return told

    undisturbed = steps(tmp_path / "a", restart=False)
    assert undisturbed[1] == 1
    assert max(undisturbed.values()) > 1
    again = steps(tmp_path / "b", restart=True)
    assert {number: again[number] for number in (1, 2)} == {number: undisturbed[number] for number in (1, 2)}
