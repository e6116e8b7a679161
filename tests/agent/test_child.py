"""Training in a child process: the bits of training in the agent's own, whatever becomes of the child."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent import child, confinement
from edge_agent.child import MOST_DEATHS, ChildTrainer
from edge_agent.personal import shelf
from edge_agent.personal.settings import PersonalSettings
from edge_agent.same_process import SameProcess
from edge_agent.settings import LimitSettings
from edge_agent.slots import Slots
from edge_agent.trial import software
from protocol.messages import Offer, OptimizerSpec, Task, Withdraw
from protocol.transport import MemoryBroker
from sparse.codecs import BALLOT
from tests.agent.child_home import MODEL, TRAINING, Home
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_masks import task_of
from tests.agent.test_variants import with_backends
from tests.tiny import CLASSES, TOTAL, write_bundle, write_shard
from tests.waiting import until

pytestmark = pytest.mark.native

# A minute of steps: nobody waits for their end.
LONG = 500_000

Make = Callable[..., Home]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    homes: list[Home] = []

    def made(name: str = "home", **how: object) -> Home:
        folder = tmp_path / name
        folder.mkdir()
        bundle = write_bundle(folder / "bundle", recorded=bool(how.pop("recorded", False)))
        write_shard(folder / "shard.npz")
        broker = MemoryBroker()
        home = Home(folder, broker, FakeCoordinator(broker, bundle), None, None, **how)  # type: ignore[arg-type]
        home.start(folder)
        homes.append(home)
        return home

    yield made
    for home in homes:
        home.close()


def plain(home: Home) -> Task:
    return replace(home.coordinator.task(1, MODEL, steps=40), optimizer=OptimizerSpec(momentum=0.9, weight_decay=0.01))


def test_a_child_makes_the_devices_own_head_as_the_agent_itself_would_and_only_its_user_may_read_it(make: Make) -> None:
    files = []
    for process in ("same", "child"):
        personal = PersonalSettings(enabled=True, deploy=True)
        home = make(process, personal=personal, training=replace(TRAINING, process=process))
        home.trust()
        home.say()
        home.payload()
        files.append(sorted((home.folder / "state" / shelf.FOLDER).iterdir()))
    same, child = files
    assert [path.name for path in same] == [path.name for path in child]
    assert len(same) == 2
    assert [path.read_bytes() for path in same] == [path.read_bytes() for path in child]
    assert {path.stat().st_mode & 0o777 for path in child} == {0o600}


def adamw(home: Home) -> Task:
    return replace(home.coordinator.task(1, MODEL, steps=40, codec="topk:0.3/int8"), optimizer=OptimizerSpec("adamw"))


def quasi_global(home: Home) -> Task:
    optimizer = OptimizerSpec("qg", momentum=0.9, mu=0.5)
    return replace(home.coordinator.task(1, MODEL * np.float32(0.9), steps=40), optimizer=optimizer)


def masked(home: Home) -> Task:
    return replace(task_of(home, 1, report=2), local_steps=40)


def voting(home: Home) -> Task:
    chances = home.coordinator.add(bytes([230] * (TOTAL - CLASSES)))
    task = replace(adamw(home), codec=BALLOT, chances=chances, learning_rate=0.3)
    return replace(task, model=home.coordinator.add(MODEL.astype("<f4").tobytes()))


def test_a_child_sends_the_bytes_that_the_agents_own_process_sends(make: Make) -> None:
    child, same = make("child"), make("same", training=replace(TRAINING, process="same"))
    for number, wanted in enumerate((plain, adamw, masked, quasi_global, quasi_global, voting), 1):
        for home in (child, same):
            home.coordinator.say(replace(wanted(home), round=number))
        assert child.payload(number) == same.payload(number)
    assert isinstance(same.agent._trainer, SameProcess)
    assert [r.state for r in child.coordinator.reports] == ["accepted"] * 6
    assert {(r.examples, r.backend) for r in child.coordinator.reports} == {(40, "numpy")}
    assert len(child.children) == 1, "one child for all tasks of a bundle"
    offers = [offer for offer in child.coordinator.of(Offer) if isinstance(offer, Offer)]
    assert all(offer.peak_mib is not None and offer.peak_mib < 200 for offer in offers)


def test_a_child_killed_again_and_again_goes_on_and_sends_the_bytes_of_one_that_was_not(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = make("undisturbed", training=replace(TRAINING, process="same"))
    undisturbed.say(local_steps=15_000)
    home = make()
    home.say(local_steps=15_000)
    for _ in range(MOST_DEATHS - 1):
        kept = [path.stat().st_mtime_ns for path in home.checkpoints]
        home.until(lambda kept=kept: [p.stat().st_mtime_ns for p in home.checkpoints] not in ([], kept))  # type: ignore[misc]
        os.kill(home.children[-1].pid, signal.SIGKILL)
        count = len(home.children)
        home.until(lambda count=count: len(home.children) == count + 1)  # type: ignore[misc]
    assert home.payload() == undisturbed.payload()
    assert len({o.update_sequence for o in home.coordinator.of(Offer) if isinstance(o, Offer)}) == 1
    said = [r.getMessage() for r in caplog.records if "the training process ended" in r.getMessage()]
    assert len(said) == MOST_DEATHS - 1
    assert "ended by signal 9 (SIGKILL)" in said[0]
    assert f"deaths=1 of={MOST_DEATHS}" in said[0]
    assert home.checkpoints == []


def test_a_task_whose_child_dies_too_often_is_given_back_with_what_happened(make: Make) -> None:
    home = make()
    home.trust()
    home.say(local_steps=LONG)
    for count in range(1, MOST_DEATHS + 1):
        home.until(lambda count=count: len(home.children) == count)  # type: ignore[misc]
        os.kill(home.children[-1].pid, signal.SIGFPE)
    home.until(lambda: home.agent.job.phase == "idle")
    home.turn()
    report = home.coordinator.reports[-1]
    assert (report.state, report.reason) == ("failed", "crashed")
    assert f"ended {MOST_DEATHS} times, at last: it was ended by signal 8 (SIGFPE)" in report.detail
    # And the next task is done, by another child.
    home.say(round=2)
    assert home.payload()


def test_a_withdrawn_task_ends_at_once_and_the_next_is_done_by_the_same_child(make: Make) -> None:
    home = make()
    task = home.say(local_steps=LONG)
    home.until(lambda: home.agent.job.phase == "training" and bool(home.checkpoints))
    home.coordinator.say(Withdraw(task.name, "round-closed"))
    home.until(lambda: home.agent.job.phase == "idle")
    home.until(lambda: home.checkpoints == [])
    home.say(round=2)
    assert home.payload()
    assert len(home.children) == 1


SLEEPY = """
import time, numpy
def load():
    if not {once} or not __import__('os').path.exists({flag!r}):
        open({flag!r}, 'w').close()
        time.sleep(1000)
    with numpy.load({shard!r}) as file:
        return file['x'], file['y']
"""


def sleepy(make: Make, tmp_path: Path, *, once: bool = True) -> Home:
    """Its data source never comes back; with `once` only for the first time."""
    flag, shard = str(tmp_path / "loading"), str(tmp_path / "home" / "shard.npz")
    home = make(source="sleepy_source:load")
    (home.folder / "sleepy_source.py").write_text(SLEEPY.format(once=once, flag=flag, shard=shard))
    return home


def test_a_withdrawal_does_not_wait_for_a_child_that_does_not_answer(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "DROP_S", 0.1)
    home = sleepy(make, tmp_path)
    task = home.say()
    home.until((tmp_path / "loading").exists)
    home.coordinator.say(Withdraw(task.name, "round-closed"))
    home.say(round=2)
    assert home.payload()
    assert len(home.children) == 2
    assert [r.state for r in home.coordinator.reports] == ["accepted"]


def test_a_child_that_hangs_is_killed_and_followed_by_another(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = sleepy(make, tmp_path)
    home.trust()
    home.say()
    home.until((tmp_path / "loading").exists)
    trainer = home.agent._trainer
    assert isinstance(trainer, ChildTrainer)
    assert trainer.wait_s() > 60
    trainer._deadline = time.monotonic()  # half an hour later
    assert home.payload()
    assert "the training process ended: it hung; another goes on" in caplog.text


def test_a_child_that_dies_twice_in_a_trial_fails_it_and_one_that_dies_once_is_followed_by_another(
    make: Make, tmp_path: Path
) -> None:
    home, flag = sleepy(make, tmp_path, once=False), tmp_path / "loading"
    home.say()
    for count in (1, 2):
        home.until(lambda count=count: flag.exists() and len(home.children) == count)  # type: ignore[misc]
        flag.unlink()
        os.kill(home.children[-1].pid, signal.SIGILL)
    home.until(lambda: home.agent.job.phase == "idle")
    home.turn()
    report = home.coordinator.reports[-1]
    assert (report.state, report.reason) == ("failed", "trial")
    assert "2 trials did not come to an end: it was ended by signal 4 (SIGILL)" in report.detail
    home.say(round=2)
    home.until(lambda: len(home.coordinator.reports) > 1)
    assert (home.coordinator.reports[-1].state, home.coordinator.reports[-1].reason) == ("refused", "trial")
    assert len(home.children) == 2


def test_a_child_passes_a_trial_for_its_agent(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    home = make(recorded=True)
    home.say()
    assert home.payload()
    assert "trial passed: committed bundle=" in caplog.text
    (slot,) = Slots(home.store.database, software()).all()
    assert (slot.state, slot.begun) == ("committed", 0)


def test_an_idle_child_ends_and_gives_its_memory_back(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    home = make(training=replace(TRAINING, idle_unload_s=0.5))
    home.say()
    home.payload()
    home.until(lambda: home.children[0].gone(time.monotonic()))
    assert "idle: runtime and data unloaded" in caplog.text
    home.say(round=2)
    home.payload(2)
    assert len(home.children) == 2


def test_a_paused_task_gives_its_memory_back_and_goes_on_from_its_checkpoint(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    home = make(training=replace(TRAINING, checkpoint_s=0.05))
    task = home.say(local_steps=40_000)
    home.until(lambda: bool(home.checkpoints))
    trainer, paused = home.agent._trainer, home.children[0]
    trainer.pause()
    until(lambda: paused.gone(time.monotonic()))
    variant, manifest = home.agent._assets.variant_of(task), home.agent._assets.manifest(task)
    trainer.begin(task, home.agent._attempt._selector.selected(manifest, task.manifest.digest, variant))
    home.payload()
    assert f"task={task.name} goes on after step=" in capfd.readouterr().err
    assert home.checkpoints == []


def test_a_task_withdrawn_while_it_is_paused_leaves_no_checkpoint(make: Make) -> None:
    home = make(training=replace(TRAINING, checkpoint_s=0.5))
    home.say(local_steps=LONG)
    home.until(lambda: bool(home.checkpoints))
    trainer = home.agent._trainer
    trainer.pause()
    trainer.drop()
    home.children[0].join(60.0)
    trainer.work(0.0)
    assert home.checkpoints == []


def test_an_agent_that_stops_has_its_child_keep_what_was_trained(make: Make) -> None:
    home = make(training=replace(TRAINING, checkpoint_s=1.0))
    home.say(local_steps=LONG)
    home.until(lambda: home.agent.job.phase == "training")
    # A tenth of the interval is worth a last checkpoint.
    time.sleep(0.3)
    assert home.checkpoints == []
    home.agent.stop()
    assert len(home.checkpoints) == 1
    assert home.children[0].gone(time.monotonic())


def test_a_child_is_of_lower_priority_limited_and_knows_no_secret(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_AGENT_TOKEN", "secret")
    home = make(limits=LimitSettings(disk_mib=100, memory_mib=300))
    home.say(local_steps=LONG)
    home.until(lambda: home.agent.job.phase == "training")
    proc = Path(f"/proc/{home.children[0].pid}")
    assert os.getpriority(os.PRIO_PROCESS, home.children[0].pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int((proc / "oom_score_adj").read_text()) == min(1000, own + 500)
    assert "secret" not in (proc / "environ").read_text()
    limits = {line[:26].strip(): line[26:].split() for line in (proc / "limits").read_text().splitlines()}
    assert limits["Max data size"][:2] == [str((300 + confinement.UNTOUCHED_MIB) << 20)] * 2
    assert limits["Max file size"][:2] == [str(100 << 20)] * 2
    assert limits["Max core file size"][:2] == ["0", "0"]
    assert limits["Max open files"][:2] == ["256", "256"]
    assert limits["Max cpu time"][0] != "unlimited"
    assert oct(int((proc / "status").read_text().partition("Umask:")[2].split()[0], 8)) == "0o77"
    sockets = [path for path in (proc / "fd").iterdir() if str(path.readlink()).startswith("socket")]
    assert len(sockets) == 1, "the one to its agent"


HUNGRY = """
import numpy
def load():
    return numpy.ones((1 << 30, 2), numpy.float32), numpy.zeros(1 << 30, numpy.int64)
"""


def test_training_that_needs_more_memory_than_its_limit_is_given_back_and_says_so(make: Make) -> None:
    home = make(source="hungry_source:load", limits=LimitSettings(memory_mib=300))
    (home.folder / "hungry_source.py").write_text(HUNGRY)
    home.say()
    home.until(lambda: bool(home.coordinator.reports))
    report = home.coordinator.reports[-1]
    assert (report.state, report.reason) == ("failed", "memory")
    assert "more memory than the limit of 300 MiB" in report.detail
    assert "raise limits.memory_mib" in report.detail


def test_a_child_never_outlives_its_agent(make: Make) -> None:
    code = (
        "import sys; from pathlib import Path; from edge_agent import child_wire as wire; "
        "from edge_agent.child_process import ChildProcess; from edge_agent.data import DataSettings; "
        "from edge_agent.settings import TrainingSettings; "
        "start = wire.Start(sys.argv[1], sys.argv[1], 10, 0, TrainingSettings(), DataSettings(path='x')); "
        "child = ChildProcess(start, lambda: None); "
        "assert isinstance(child.next(60.0), wire.Awake); print(child.pid, flush=True); sys.stdin.read()"
    )
    home = make()
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(home.folder / "state")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z (zombie)" in Path(f"/proc/{pid}/status").read_text())


def test_a_child_compares_with_torchs_recorded_step_and_the_next_one_knows(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    home = make(recorded=True)
    home.coordinator.say(home.coordinator.task(1, np.zeros(TOTAL, np.float32)))
    home.payload()
    home.agent.stop()
    home.restart()
    home.say(round=2)
    home.payload(2)
    said = capfd.readouterr().err
    assert "it agrees with torch's recorded step within" in said
    assert "it agreed with torch's recorded step before" in said


def test_a_backend_whose_graphs_the_child_cannot_open_is_followed_by_the_next(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = make()
    # Their bytes are no graphs; NumPy's engine needs none.
    bundle = with_backends(tmp_path / "other", {"portable": "portable.onnx", "numpy": "numpy.onnx"}, "train")
    home.coordinator = FakeCoordinator(home.broker, bundle)
    home.say()
    assert home.payload()
    assert "backend=portable is not usable, another is tried" in caplog.text


def test_data_that_do_not_fit_are_refused_with_the_childs_own_words(make: Make) -> None:
    home = make()
    (home.folder / "shard.npz").unlink()
    home.say()
    home.until(lambda: bool(home.coordinator.reports))
    report = home.coordinator.reports[-1]
    assert (report.state, report.reason) == ("refused", "data")
    assert "shard.npz" in report.detail
