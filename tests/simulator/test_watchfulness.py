"""The simulator sees what it is there to see: daemons and disks that break a law are found out."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from coordinator import version_step
from coordinator.folding import Bounded
from coordinator.reception import Reception
from coordinator.store import Store
from edge_agent.store import AgentStore
from protocol.messages import Offer
from tests.simulator.disk import File
from tests.simulator.faults import COORDINATOR, Kill, Schedule
from tests.simulator.sqlite import Database, Rows
from tests.simulator.world import simulate

# From the middle of the first round to the end of the last.
STEPS = range(200, 640, 20)


def found(kill: Callable[[int], Kill]) -> str:
    """What the first schedule of a broken fleet that is found out has wrong."""
    for step in STEPS:
        outcome = simulate(Schedule(seed=step, faults=(kill(step),)))
        if outcome.wrong:
            return outcome.wrong[0]
    return "nothing"


def power_cut(step: int) -> Kill:
    return Kill(COORDINATOR, step, power=True, down_s=0.1)


def test_a_healthy_fleet_has_nothing_wrong_wherever_its_coordinator_loses_its_power() -> None:
    assert found(power_cut) == "nothing"


def test_a_disk_that_forgets_what_it_promised_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(File, "sync", lambda file: None)
    assert found(power_cut) != "nothing"


def test_a_database_that_does_not_wait_for_the_disk_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = Database.execute

    def hasty(database: Database, statement: str, *values: Any) -> Rows:
        return execute(database, statement.replace("synchronous=FULL", "synchronous=NORMAL"), *values)

    monkeypatch.setattr(Database, "execute", hasty)
    assert "is gone" in found(power_cut) or "was announced" in found(power_cut)


def test_a_receipt_before_its_transaction_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = Reception.settle

    def hasty(reception: Reception) -> Any:
        for decided in reception._decided.values():
            reception._link.send(decided.device, decided.receipt)
        return settle(reception)

    monkeypatch.setattr(Reception, "settle", hasty)
    assert "is gone" in found(power_cut)


def test_a_residual_that_does_not_wait_for_its_receipt_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = AgentStore.keep_update

    def hasty(
        store: AgentStore, offer: Offer, layout: bytes, residual: npt.NDArray[np.float32], momentum: bytes | None
    ) -> None:
        keep(store, offer, layout, residual * np.float32(2), momentum)

    monkeypatch.setattr(AgentStore, "keep_update", hasty)
    assert "does not balance" in found(power_cut)


def test_a_fold_of_other_bits_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fold: Callable[..., Bounded] = version_step.fold_bounded  # type: ignore[attr-defined]

    def almost(*arguments: Any) -> Bounded:
        found = fold(*arguments)
        return replace(found, folded=replace(found.folded, parameters=found.folded.parameters * (1 + 1e-6)))

    monkeypatch.setattr(version_step, "fold_bounded", almost)
    assert "is not the fold of" in found(power_cut)


def test_an_update_that_no_fold_takes_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = Store.accepted

    def without_the_last(store: Store, number: int) -> Any:
        return accepted(store, number)[:-1]

    monkeypatch.setattr(Store, "accepted", without_the_last)
    assert "is in no fold" in found(power_cut)
