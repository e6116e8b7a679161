"""A payload that the disk alters after its receipt costs that update alone, and the store says so."""

from pathlib import Path

from tests.coordinator.simulation import Simulation


def damage_first(fleet: Simulation) -> str:
    """Flips a bit of the first update that is accepted; says whose."""
    fleet.until(lambda: bool(fleet.store.accepted(1)))
    first = fleet.store.accepted(1)[0]
    path = fleet.store.updates.path(first.digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return first.device


def fates(fleet: Simulation, number: int) -> dict[str, tuple[int | None, str | None]]:
    found = fleet.store._sql.execute("SELECT device, fold, discarded FROM updates WHERE round = ?", (number,))
    return {device: (fold, discarded) for device, fold, discarded in found}


def test_an_update_whose_payload_is_damaged_is_discarded_and_the_others_are_folded(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=2, deadline_s=10.0)
    for device in ("dev-1", "dev-2"):
        fleet.agents[device].silent = True
    damaged = damage_first(fleet)
    assert damaged == "dev-0"
    for device in ("dev-1", "dev-2"):
        fleet.agents[device].silent = False
        fleet.agents[device].restart()
    fleet.finish()
    first = fates(fleet, 1)
    fold, why = first.pop(damaged)
    assert fold is None
    assert why is not None
    assert why.startswith("damaged: ")
    assert first == {"dev-1": (1, None), "dev-2": (1, None)}
    assert all(fold == 2 and why is None for fold, why in fates(fleet, 2).values())
    assert fleet.committed[0].devices == 2
    fleet.store.close()
