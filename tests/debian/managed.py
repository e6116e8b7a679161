"""The agent's package where systemd is the first process: its unit starts, is watched, limited, confined and ended.

The coordinator is this machine's, as in journey; the device is a container that systemd has booted.
"""

import time
from pathlib import Path

from edge_agent.service_limits import BESIDES_TRAINING_MIB
from protocol.errors import ConfigurationError
from tests.debian.boards import Board, managed_board
from tests.debian.journey import CONFIG, DEVICE, INSTALL, PATIENCE_S, STATE, Say, enrolment_port, identity
from tests.real_fleet import RealFleet
from tests.waiting import until

UNIT = "edge-agent.service"
# In place of the unit's 300 s, 10 s and 60 s, so that the test sees more than one of them. The last is how long systemd
# waits for what it aborted, which a process that SIGSTOP has stopped does not notice.
WATCHDOG_S = 2
HURRY = f"[Service]\nWatchdogSec={WATCHDOG_S}\nRestartSec=1\nTimeoutAbortSec=1\n"
TRAINING_MIB, CPU_PERCENT = 256, 50
# Of the unit: CPUWeight=, as control groups of version 1 have it, where 100 is 1024.
CPU_WEIGHT, CPU_SHARES = 20, 204


def travel(cache: Path, fleet: RealFleet, mounts: dict[str, Path], package: str, say: Say) -> None:
    """All of it; each step is asserted. package: its file name on the board, in /packages."""
    fleet.start_coordinator(exit_when_finished=False)
    port = enrolment_port(fleet)
    (fleet.folder / DEVICE / "token").write_text(fleet.token())
    with managed_board(cache, mounts) as there:
        arguments = ("--coordinator", f"127.0.0.1:{port}", "--device", DEVICE, "--data", "/device/shard.npz")
        install = (*INSTALL, *arguments, f"/packages/{package}", "@/device/token")

        started = time.monotonic()
        assert "started; systemctl status edge-agent" in there.must(*install)
        # The installer waits for the unit, which is active from READY=1 on.
        assert _shown(there, "Type", "ActiveState", "SubState", "UnitFileState") == "notify active running enabled"
        _folds(fleet)
        say(f"systemd: installed, enrolled, ready and in a fold after {time.monotonic() - started:.1f} s")

        _is_confined(there)
        _is_limited(there)
        _folds(fleet)
        say("systemd: confined, and limited as agent.toml says; it trains so")
        _is_watched(there, fleet)
        say(f"systemd: fed its watchdog of {WATCHDOG_S} s; stopped by SIGSTOP it was ended and started again")
        _comes_back(there, fleet)
        say("systemd: came back after SIGKILL; a killed training process cost no restart")
        _ends_well(there, fleet)
        say("systemd: ended well, state kept; started again, the same device")
        _upgrades(there, fleet, package)
        say("systemd: an upgrade ended and started it, and left a stopped one stopped")
        _refuses_a_mistake(there)
        say("systemd: a mistake in agent.toml is not tried again, and its remedy is in the journal")
        _is_removed(there, fleet, install)
        say("systemd: removed, installed, started; purged")


def _is_confined(there: Board) -> None:
    """What the unit takes away is gone, as the kernel says of the process."""
    lines = there.must("cat", f"/proc/{_pid(there)}/status").splitlines()
    found = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert (found["NoNewPrivs"], found["Seccomp"], found["CapBnd"]) == ("1", "2", "0" * 16)
    uid = there.must("id", "-u", "edge-agent").strip()
    assert set(found["Uid"].split()) == {uid}
    # Of the file system it may write its state, and nothing else that its user might.
    mounts = [line.split() for line in there.must("cat", f"/proc/{_pid(there)}/mountinfo").splitlines()]
    writable = {words[4]: "rw" in words[5].split(",") for words in mounts}
    assert (writable["/"], writable[STATE]) == (False, True)


def _is_limited(there: Board) -> None:
    """Limits of the configuration and the unit's weight are the control group's."""
    there.must(
        *(
            "sed",
            "-i",
            f"s/^memory_mib = 0/memory_mib = {TRAINING_MIB}/; s/^cpu_percent = 0/cpu_percent = {CPU_PERCENT}/",
        ),
        CONFIG,
    )
    there.must("mkdir", "-p", f"/run/systemd/system/{UNIT}.d")
    there.must("sh", "-c", f"printf '%s' '{HURRY}' > /run/systemd/system/{UNIT}.d/90-hurry.conf")
    there.must("systemctl", "daemon-reload")
    there.must("systemctl", "restart", UNIT)
    group = _shown(there, "ControlGroup")
    most = (TRAINING_MIB + BESIDES_TRAINING_MIB) << 20
    if there.has("/sys/fs/cgroup/memory"):
        files = {
            "memory/{}/memory.limit_in_bytes": str(most),
            "cpu/{}/cpu.shares": str(CPU_SHARES),
        }
        quota = there.must("cat", *(f"/sys/fs/cgroup/cpu{group}/cpu.cfs_{name}_us" for name in ("quota", "period")))
    else:
        files = {"{}/memory.max": str(most), "{}/cpu.weight": str(CPU_WEIGHT)}
        quota = there.must("cat", f"/sys/fs/cgroup{group}/cpu.max")
    for file, value in files.items():
        assert there.must("cat", f"/sys/fs/cgroup/{file.format(group)}").strip() == value, file
    of, period = map(int, quota.split())
    assert of / period == CPU_PERCENT / 100


def _is_watched(there: Board, fleet: RealFleet) -> None:
    """A working agent lives longer than its watchdog waits; one that is stuck is ended, and another started."""
    pid, restarts = _pid(there), _restarts(there)
    since = int(_shown(there, "WatchdogTimestampMonotonic"))
    fed_until = since + 2 * WATCHDOG_S * 1_000_000
    until(
        lambda: int(_shown(there, "WatchdogTimestampMonotonic")) > fed_until, "the watchdog is fed for twice its time"
    )
    assert (_pid(there), _restarts(there)) == (pid, restarts)
    _signal(there, "STOP")
    until(lambda: _restarts(there) == restarts + 1, "systemd starts another")
    _folds(fleet)
    assert "Watchdog timeout" in _journal(there)


def _comes_back(there: Board, fleet: RealFleet) -> None:
    before, restarts = identity(there), _restarts(there)
    _signal(there, "KILL")
    until(lambda: _restarts(there) == restarts + 1, "systemd starts another")
    _folds(fleet)
    assert identity(there) == before
    pid = _pid(there)
    until(lambda: _children(there, pid), "it trains")
    there.must("sh", "-c", f"kill -KILL {' '.join(_children(there, pid))}")
    _folds(fleet)
    assert (_pid(there), _restarts(there)) == (pid, restarts + 1)


def _ends_well(there: Board, fleet: RealFleet) -> None:
    before = identity(there)
    there.must("systemctl", "stop", UNIT)
    assert _shown(there, "ActiveState", "Result", "ExecMainStatus") == "inactive success 0"
    journal = _journal(there)
    for line in (f"INFO start device={DEVICE}", "INFO connected broker=", "INFO stop\n", f"Stopped {UNIT}"):
        assert line in journal, journal[-3000:]
    assert identity(there) == before
    assert there.has(f"{STATE}/agent.sqlite")
    there.must("systemctl", "start", UNIT)
    _folds(fleet)


def _upgrades(there: Board, fleet: RealFleet, package: str) -> None:
    """By the package's own scripts, which a package of the same version runs as well."""
    again = ("dpkg", "--install", f"/packages/{package}")
    pid = _pid(there)
    there.must(*again)
    assert _shown(there, "ActiveState") == "active"
    assert _pid(there) != pid
    _folds(fleet)
    there.must("systemctl", "stop", UNIT)
    there.must(*again)
    assert _shown(there, "ActiveState", "UnitFileState") == "inactive enabled"


def _refuses_a_mistake(there: Board) -> None:
    there.must("sh", "-c", f"cp {CONFIG} /root/kept.toml; echo 'nonsense = 1' > /etc/edge-agent/agent.d/90.toml")
    assert there.run("systemctl", "start", UNIT).returncode != 0
    assert _shown(there, "ActiveState", "ExecMainStatus") == f"failed {ConfigurationError.exit_code}"
    assert "nonsense: unknown key" in _journal(there)
    there.must("rm", "/etc/edge-agent/agent.d/90.toml")
    there.must("systemctl", "start", UNIT)
    assert _shown(there, "ActiveState", "NRestarts") == "active 0"


def _is_removed(there: Board, fleet: RealFleet, install: tuple[str, ...]) -> None:
    before = identity(there)
    there.must(*INSTALL, "--uninstall")
    assert _shown(there, "ActiveState", "LoadState") == "inactive masked"
    assert "enrolled already" in there.must(*install)
    _folds(fleet)
    assert identity(there) == before
    there.must(*INSTALL, "--uninstall", "--purge")
    assert _shown(there, "ActiveState", "LoadState") == "inactive not-found"
    assert not there.has(STATE)


def _folds(fleet: RealFleet) -> None:
    """The device is in the fold of a round that is committed from now on."""
    before = len(fleet.committed())
    until(lambda: len(fleet.committed()) > before + 1, "rounds are committed", PATIENCE_S)


def shown(there: Board, unit: str, *names: str) -> str:
    """Values of a unit's properties, as systemd has them, in this order."""
    lines = there.must("systemctl", "show", unit, *(f"--property={name}" for name in names)).splitlines()
    found = dict(line.split("=", 1) for line in lines)
    return " ".join(found[name] for name in names)


def _shown(there: Board, *names: str) -> str:
    return shown(there, UNIT, *names)


def _pid(there: Board) -> str:
    return _shown(there, "MainPID")


def _restarts(there: Board) -> int:
    return int(_shown(there, "NRestarts"))


def _signal(there: Board, name: str) -> None:
    """To the agent itself, and not to its training."""
    there.must("systemctl", "kill", "--kill-whom=main", f"--signal={name}", UNIT)


def _children(there: Board, pid: str) -> list[str]:
    return there.must("cat", f"/proc/{pid}/task/{pid}/children").split()


def _journal(there: Board) -> str:
    return there.must("journalctl", "--unit", UNIT, "--output", "cat", "--no-pager")
