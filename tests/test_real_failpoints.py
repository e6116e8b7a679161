"""Real processes killed by SIGKILL at every durable step that has a name: only time is lost."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.broker import Broker
from devices.processes import Child
from protocol.failpoints import FAILPOINTS
from protocol.mqtt import parse_url
from tests.audit import audit
from tests.real_fleet import ROOT, RealFleet

pytestmark = pytest.mark.real

# Enough chunks for a checkpoint of a transfer in its middle, which is taken every eight.
FEATURES = 80_000
# In the middle of a transfer, and not at its beginning.
NTH = {"agent.chunk-written": 5, "coordinator.chunk-written": 5, "agent.chunk-sent": 5, "coordinator.model-put": 2}


Make = Callable[..., RealFleet]


@pytest.fixture
def make(tmp_path: Path, mosquitto: Broker) -> Iterator[Make]:
    """Fleets that meet at a broker of ours, which nobody kills."""
    made: list[RealFleet] = []

    def make(**how: Any) -> RealFleet:
        made.append(RealFleet(tmp_path, mosquitto.url, 10_000, port=parse_url(mosquitto.url).port, **how))
        return made[-1]

    yield make
    for fleet in made:
        fleet.stop()


def finish(fleet: RealFleet) -> None:
    fleet.end_after(2)
    fleet.finish()
    fleet.settle()
    assert audit(fleet.folder) == fleet.version()


def await_kill(fleet: RealFleet, child: Child | None, name: str) -> None:
    assert child is not None
    fleet.until(lambda: child.exit_code is not None)
    assert child.exit_code == -signal.SIGKILL, f"{name} was not reached"


def test_a_coordinator_killed_at_every_step_in_turn_loses_and_doubles_nothing(make: Make) -> None:
    fleet = make(devices=2, training='local_steps = 2\ncodec = "all/float32"', features=FEATURES)
    for device in ("device-00", "device-01"):
        fleet.start_agent(device)
    for name in FAILPOINTS:
        # Of a fleet without a hub: see test_real_gossip.py.
        if name.startswith("coordinator.") and not name.startswith("coordinator.council"):
            fleet.start_coordinator(failpoint=f"{name}:{NTH.get(name, 1)}")
            await_kill(fleet, fleet.coordinator, name)
    fleet.start_coordinator()
    finish(fleet)


def test_an_agent_killed_at_every_step_in_turn_loses_and_doubles_nothing(make: Make) -> None:
    fleet = make(devices=2, training='local_steps = 2\ncodec = "all/float32"', features=FEATURES)
    fleet.start_coordinator()
    fleet.start_agent("device-01")
    for name in FAILPOINTS:
        # What is trained in a moment has no checkpoint, and two deaths in a trial end it: see below. Gossip is another
        # fleet's (tests/test_real_gossip.py).
        others = ("agent.checkpoint-written", "agent.trial", "agent.gossip")
        if name.startswith("agent.") and not name.startswith(others):
            fleet.start_agent("device-00", failpoint=f"{name}:{NTH.get(name, 1)}")
            await_kill(fleet, fleet.agents["device-00"], name)
    fleet.start_agent("device-00")
    finish(fleet)


def test_an_agent_killed_behind_a_checkpoint_of_its_training_goes_on_from_there(make: Make) -> None:
    fleet = make(devices=1, training="local_steps = 8000")
    fleet.start_coordinator()
    fleet.start_agent("device-00", failpoint="agent.checkpoint-written")
    await_kill(fleet, fleet.agents["device-00"], "agent.checkpoint-written")
    fleet.start_agent("device-00")
    log = fleet.agents["device-00"].log
    fleet.until(lambda: "goes on after step=" in log.read_text())
    finish(fleet)


def slot(fleet: RealFleet) -> dict[str, Any]:
    """The only one of the first device, as its command says it."""
    said = model(fleet, "list", "--json")
    assert said.returncode == 0, said.stderr
    (found,) = json.loads(said.stdout)["slots"]
    return dict(found)


def model(fleet: RealFleet, *words: str) -> subprocess.CompletedProcess[str]:
    config = fleet.folder / "device-00" / "agent.toml"
    command = (sys.executable, "-m", "edge_agent", "model", *words, "--config", str(config))
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)


def test_an_agent_killed_twice_in_a_trial_refuses_the_bundle_says_so_and_tries_again_when_told(make: Make) -> None:
    fleet = make(devices=1, training='local_steps = 4\ncodec = "all/float32"', deadline_s=2.0)
    fleet.start_coordinator()
    for name in ("agent.trial-begun", "agent.trial-committing"):
        fleet.start_agent("device-00", failpoint=name)
        await_kill(fleet, fleet.agents["device-00"], name)
        assert slot(fleet)["state"] == "trial"
    # The third start finds it out, and a kill behind that changes nothing.
    fleet.start_agent("device-00", failpoint="agent.trial-failed")
    await_kill(fleet, fleet.agents["device-00"], "agent.trial-failed")
    fleet.start_agent("device-00")
    log = fleet.folder / "logs" / "coordinator.log"
    fleet.until(lambda: re.search("task refused device=device-00 task=.* trial: bundle", log.read_text()))
    failed = slot(fleet)
    assert (failed["state"], failed["failure"], failed["trials"]) == ("failed", "died", 0)
    (row,) = fleet.ask("round", "1")["devices"]
    assert "trial" in row["reason"]
    assert "2 trials did not come to an end" in row["detail"]
    fleet.until(lambda: "refused: trial" in fleet.ask("status")["waiting_for"])

    # Beside the running agent.
    assert model(fleet, "retry", failed["digest"]).returncode == 0
    fleet.until(lambda: fleet.agents["device-00"].exit_code is None and len(fleet.committed()) >= 1)
    assert slot(fleet)["state"] == "committed"
    finish(fleet)


def test_an_agent_killed_behind_its_commit_tries_no_more(make: Make) -> None:
    fleet = make(devices=1, training='local_steps = 4\ncodec = "all/float32"')
    fleet.start_coordinator()
    fleet.start_agent("device-00", failpoint="agent.trial-committed")
    await_kill(fleet, fleet.agents["device-00"], "agent.trial-committed")
    assert slot(fleet)["state"] == "committed"
    fleet.start_agent("device-00")
    finish(fleet)
    assert fleet.agents["device-00"].log.read_text().count("trial begins") == 1
