"""Failpoints: off in daily work, exact when on, and a misspelt one is an error and not a test that proves nothing."""

import signal
import subprocess
import sys
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol import failpoints
from protocol.errors import ConfigurationError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    yield
    failpoints.install(None)


def test_a_step_costs_next_to_nothing_while_failpoints_are_off() -> None:
    failpoints.install_from({})
    best = min(timeit.repeat(lambda: failpoints.reached("agent.update-kept"), number=10_000, repeat=20)) / 10_000
    # Some 50 ns, measured with the lambda around it; a hundred times that on a machine that is busy is still nothing.
    assert best < 5e-6


def test_what_is_installed_sees_every_step_until_it_is_taken_out() -> None:
    seen: list[str] = []
    failpoints.install(seen.append)
    failpoints.reached("agent.chunk-written")
    failpoints.reached("coordinator.swept")
    failpoints.install(None)
    failpoints.reached("coordinator.swept")
    assert seen == ["agent.chunk-written", "coordinator.swept"]


@pytest.mark.parametrize("wanted", ["coordinator.swep", "swept", "coordinator.swept:", "coordinator.swept:0"])
def test_a_step_that_is_not_known_is_refused_with_what_is(wanted: str) -> None:
    with pytest.raises(ConfigurationError, match=failpoints.VARIABLE) as refused:
        failpoints.install_from({failpoints.VARIABLE: wanted})
    assert "coordinator.swept" in str(refused.value) or "from 1 on" in str(refused.value)


@pytest.mark.parametrize("command", [("edge_agent", "run"), ("coordinator", "run")])
def test_both_daemons_refuse_to_start_with_a_misspelt_failpoint(command: tuple[str, str], tmp_path: Path) -> None:
    sample = subprocess.run(
        [sys.executable, "-m", command[0], "config", "sample"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    config = tmp_path / "settings.toml"
    config.write_text(sample.stdout)
    done = subprocess.run(
        [sys.executable, "-m", *command, "--config", str(config)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={failpoints.VARIABLE: "agent.updates-kept"},
    )
    assert done.returncode == 3
    assert "'agent.updates-kept' is no failpoint; known: agent.task-remembered" in done.stderr


def test_the_process_is_killed_at_the_nth_time_and_not_before() -> None:
    program = (
        "import os; from protocol.failpoints import install_from, reached; install_from(os.environ)\n"
        "for number in range(9):\n"
        "    reached('agent.offer-sent'); reached('agent.update-kept'); print(number, flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={failpoints.VARIABLE: "agent.update-kept:3"},
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["0", "1"]
