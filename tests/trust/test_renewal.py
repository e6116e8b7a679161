"""When a certificate is renewed, and what an agent does while it cannot be."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.enrolment import renew
from edge_agent.identity import load_identity
from edge_agent.renewal import RETRY_S, Renewal
from tests.trust.office import Office
from tests.waiting import until

DAY_S = 86400.0
FAILS = (sys.executable, "-c", "import sys; sys.exit('the server: Connection refused')")
HANGS = (sys.executable, "-c", "import time; time.sleep(1000)")


@pytest.fixture
def renewals(office: Office, tmp_path: Path) -> Iterator["Renewals"]:
    made = Renewals(office, tmp_path / "state")
    yield made
    for renewal in made.made:
        renewal.close()


class Renewals:
    """Of one enrolled device, each with a command of the test's."""

    def __init__(self, office: Office, state: Path) -> None:
        self.state, self.identity, self.made = state, office.enrol("pi-1", state), list[Renewal]()

    def of(self, *command: str) -> Renewal:
        self.made.append(Renewal(self.identity, self.state, np.random.default_rng(0), command))
        return self.made[-1]


def is_over(renewal: Renewal, wall_s: float, now: float) -> bool:
    """Looks once more how an attempt went; whether it has ended."""
    renewal.check(wall_s, now)
    return renewal.wait_s > 1.0


def test_nothing_is_asked_before_two_thirds_are_over(renewals: Renewals) -> None:
    renewal = renewals.of("/no/such/command")
    renewal.check(renewals.identity.issued_s + 19.9 * DAY_S, 0.0)
    assert renewal.wait_s == 60.0


def test_a_certificate_that_was_renewed_is_taken_up(
    renewals: Renewals, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    renewal = renewals.of("/bin/true")
    wall_s = renewals.identity.issued_s + 20.1 * DAY_S
    renewal.check(wall_s, 0.0)
    assert renewal.wait_s == 1.0, "the loop looks soon how it went"
    office.now_s += 20.1 * DAY_S
    following = renew(renewals.identity, renewals.state)
    until(lambda: is_over(renewal, wall_s, 1.0))
    assert "certificate renewed until=" in caplog.text
    assert renewal.identity == following


def test_an_attempt_that_fails_is_told_and_made_again_later(
    renewals: Renewals, caplog: pytest.LogCaptureFixture
) -> None:
    renewal = renewals.of(*FAILS)
    wall_s = renewals.identity.issued_s + 20.1 * DAY_S
    renewal.check(wall_s, 0.0)
    until(lambda: is_over(renewal, wall_s, 1.0))
    assert "certificate not renewed, it ends at" in caplog.text
    renewal.check(wall_s, RETRY_S[0] - 1)
    assert renewal.wait_s == 60.0, "too early"
    renewal.check(wall_s, RETRY_S[1] + 2)
    assert renewal.wait_s == 1.0, "the next attempt"
    assert load_identity(renewals.state) == renewals.identity


def test_attempts_come_closer_when_the_end_does(renewals: Renewals, caplog: pytest.LogCaptureFixture) -> None:
    renewal = renewals.of(*FAILS)
    wall_s = renewals.identity.ends_s - 100.0
    renewal.check(wall_s, 0.0)
    until(lambda: is_over(renewal, wall_s, 1.0))
    renewal.check(wall_s, 1.0 + 10.1)
    assert renewal.wait_s == 1.0


def test_an_attempt_that_hangs_holds_up_neither_the_loop_nor_the_end(renewals: Renewals) -> None:
    renewal = renewals.of(*HANGS)
    for now in range(10):
        renewal.check(renewals.identity.issued_s + 20.1 * DAY_S, float(now))
    child = renewal._child
    renewal.close()
    assert child is not None
    assert child.returncode is not None


def test_a_command_that_cannot_be_started_is_told(renewals: Renewals, caplog: pytest.LogCaptureFixture) -> None:
    renewals.of("/no/such/command").check(renewals.identity.issued_s + 21 * DAY_S, 0.0)
    assert "/no/such/command" in caplog.text


def test_a_clock_of_1970_asks_for_nothing(renewals: Renewals) -> None:
    renewal = Renewal(replace(renewals.identity), renewals.state, np.random.default_rng(0), ("/no/such/command",))
    renewal.check(0.0, 0.0)
    assert renewal.wait_s == 60.0
