"""The most memory that a process had, as an agent tells it with its update."""

from pathlib import Path

from edge_agent.memory import peak_mib
from protocol.messages import Offer
from tests.agent.test_agent import ZEROS, Fleet, fleet

__all__ = ["fleet"]


def test_the_peak_is_the_kernels_own_and_none_where_there_is_no_linux(tmp_path: Path) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    assert peak_mib(tmp_path) is None
    (tmp_path / "proc" / "self" / "status").write_text("Name:\tagent\nVmHWM:\t   51200 kB\nVmRSS:\t  40000 kB\n")
    assert peak_mib(tmp_path) == 50.0
    here = peak_mib()
    assert here is not None
    assert 10 < here < 100_000


def test_an_offer_says_the_peak(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.of(Offer)))
    (offer, *_) = fleet.coordinator.of(Offer)
    assert isinstance(offer, Offer)
    assert offer.peak_mib is not None
    assert offer.peak_mib > 10
