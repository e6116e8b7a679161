"""What becomes of a device from its first package to the purge, in order; each step is asserted.

The coordinator is this machine's, with its private mosquitto over mTLS; the device is a container.
"""

import contextlib
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

from protocol.bundle import open_bundle
from tests.arm64.fleet import write_shard
from tests.debian import boards
from tests.debian.boards import Board
from tests.real_fleet import RealFleet
from tests.waiting import until

DEVICE = "device-00"
STATE, CONFIG = "/var/lib/edge-agent", "/etc/edge-agent/agent.toml"
# Of the issue: from a blank container to an enrolled, training agent, besides download.
TARGET_S = 90.0
PATIENCE_S = 240.0
INSTALL = ("sh", "/packaging/install.sh")
# As install.sh says it where there is no systemd; its process is to be found by its file.
AS_USER = "setpriv --reuid edge-agent --regid edge-agent --init-groups"
RUN = f"echo $$ > /run/agent.pid; exec {AS_USER} edge-agent run --config {CONFIG}"
# Where it tells a service manager that it is ready, as its unit has it do.
NOTIFY = "notify"
# More than the device will get to.
ROUNDS = 100_000

Say = Callable[[str], None]


def make_fleet(folder: Path, bundle: Path) -> RealFleet:
    """A coordinator for one device, not started yet, with the device's data in its folder."""
    opened = open_bundle(bundle)
    return RealFleet(
        folder,
        "mosquitto",
        rounds=ROUNDS,
        devices=1,
        training="local_steps = 5",
        deadline_s=PATIENCE_S,
        make_bundle=lambda place: shutil.copytree(bundle, place),
        make_shard=lambda path, seed, examples=40: write_shard(path, opened, seed, examples),
        enrols=True,
    )


def travel(board: Board, fleet: RealFleet, old: str, new: str, image: str | None, say: Say) -> None:
    """All of it. old, new: the packages' file names on the board, in /packages. image: of packaging/Containerfile."""
    fleet.start_coordinator(exit_when_finished=False)
    port = enrolment_port(fleet)
    token = fleet.folder / DEVICE / "token"
    token.write_text(fleet.token())
    manager = _manager(fleet.folder / DEVICE / NOTIFY)
    arguments = ("--coordinator", f"127.0.0.1:{port}", "--device", DEVICE, "--data", "/device/shard.npz")

    def install(package: str) -> str:
        return board.must(*INSTALL, *arguments, f"/packages/{package}", "@/device/token")

    def trains() -> None:
        before = len(fleet.committed())
        told = f"NOTIFY_SOCKET=/device/{NOTIFY} WATCHDOG_USEC=2000000"
        fleet.start_agent_elsewhere(DEVICE, board.command("sh", "-c", f"export {told}; {RUN}"))
        until(lambda: len(fleet.committed()) > before, "a round is committed", PATIENCE_S)

    started = time.monotonic()
    say(install(new).strip())
    installed_s = time.monotonic() - started
    trains()
    trained_s = time.monotonic() - started
    told = _told(manager)
    assert {"READY=1", "WATCHDOG=1"} <= told, f"the service manager heard {told}"
    say(f"{board.architecture}: enrolled in {installed_s:.1f} s, first update folded after {trained_s:.1f} s")
    _stop(board, fleet)
    assert trained_s < TARGET_S or board.architecture == "arm64", f"{trained_s:.0f} s is over the target of {TARGET_S}"
    _is_configured(board)
    # What has trained has nothing wrong with it; warnings of this machine are none of the package's.
    checked = board.run(*AS_USER.split(), "edge-agent", "check", "--json", "--config", CONFIG)
    assert checked.returncode == 0, checked.stdout + checked.stderr

    before = identity(board)
    assert "is installed already" in install(new)
    board.must(*INSTALL, "--uninstall")
    assert not board.has("/usr/bin/edge-agent")
    assert identity(board) == before
    assert board.has(CONFIG)
    assert "nothing to do" in board.must(*INSTALL, "--uninstall")
    assert "enrolled already" in install(new)
    trains()
    _stop(board, fleet)
    say(f"{board.architecture}: removed, state left; installed again, trained on without a token")

    if image is not None:
        _runs_in_a_container(board, fleet, image)
        say(f"{board.architecture}: went on in a container, with the same configuration and state")

    assert not [event for event in fleet.events if event["event"] == "rejected"]
    _purges(board)
    say(f"{board.architecture}: purged; state, configuration and user are gone")

    # Who was there before needs a token of its own.
    token.write_text(fleet.token("--device", DEVICE))
    install(old)
    trains()
    _stop(board, fleet)
    before = identity(board)
    said = install(new)
    assert f"over {_version(old)}" in said, said
    assert "enrolled already" in said, said
    assert identity(board) == before
    trains()
    _stop(board, fleet)
    say(f"{board.architecture}: upgraded from {_version(old)} to {_version(new)}, the same identity trained on")
    _purges(board)
    (row,) = fleet.ask("devices")["devices"]
    assert (row["device"], row["accepted"]) == (DEVICE, len(fleet.committed())), row
    # A device that lost its state counts its starts anew: its first words look like old ones, and are said again.
    rejected = {event["reason"] for event in fleet.events if event["event"] == "rejected"}
    assert rejected <= {"replay"}, rejected


def enrolment_port(fleet: RealFleet) -> int:
    """Where the coordinator enrols devices, which it says when it listens."""
    fleet.until(lambda: any(event["event"] == "listening" for event in fleet.events))
    return int(next(event["enrolment"] for event in fleet.events if event["event"] == "listening"))


def identity(board: Board) -> str:
    """A digest of the device's certificate."""
    return board.must("sha256sum", f"{STATE}/identity/identity.pem").split()[0]


def refuses(board: Board, new: str, other: str | None) -> None:
    """What the script says of what will not do, before it changes anything. other: a package of another machine."""
    package = f"/packages/{new}"
    cases = [
        (("--coordinator", "h:1", "/packages/none.deb", "t"), 3, "neither a file nor an address"),
        (("--coordinator", "h:1", "http://h/p.deb", "t"), 3, "say --sha256"),
        (("--sha256", "00", package, "t"), 1, "nothing was installed"),
        ((package,), 3, "needs URL-OR-FILE and TOKEN"),
        ((package, "t"), 3, "say --coordinator HOST:8884; nothing was installed"),
        (("--wrong", package, "t"), 3, "unknown option"),
    ]
    if other is not None:
        cases.append((("--coordinator", "h:1", f"/packages/{other}", "t"), 3, "take the other file"))
    for words, code, text in cases:
        done = board.run(*INSTALL, *words)
        assert (done.returncode, text in done.stderr) == (code, True), f"{words}: {done.returncode} {done.stderr}"
    assert not board.has("/usr/bin/edge-agent")


def _purges(board: Board) -> None:
    board.must(*INSTALL, "--uninstall", "--purge")
    left = [
        path for path in (STATE, "/etc/edge-agent", "/usr/lib/edge-agent", "/usr/bin/edge-agent") if board.has(path)
    ]
    assert left == []
    assert board.run("getent", "passwd", "edge-agent").returncode != 0
    assert "nothing to do" in board.must(*INSTALL, "--uninstall", "--purge")


def _manager(path: Path) -> socket.socket:
    """A socket that a service manager would listen at, and everybody may write to."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    manager.bind(str(path))
    path.chmod(0o777)
    return manager


def _told(manager: socket.socket) -> set[str]:
    found = set()
    with manager, contextlib.suppress(BlockingIOError):
        while True:
            found.update(manager.recv(4096).decode().splitlines())
    return found


def _runs_in_a_container(board: Board, fleet: RealFleet, image: str) -> None:
    """The same configuration and state, taken to a container of the package's image."""
    kept = fleet.folder / "kept"
    board.copy_out((STATE, "/etc/edge-agent"), kept)
    mounts = {STATE: kept / STATE.lstrip("/"), "/etc/edge-agent": kept / "etc/edge-agent"}
    before = len(fleet.committed())
    with boards.running(image, mounts, {"/device": fleet.folder / DEVICE}) as container:
        until(lambda: len(fleet.committed()) > before, "a round is committed by the container", PATIENCE_S)
        boards.stop(container)


def _stop(board: Board, fleet: RealFleet) -> None:
    """As systemd would stop it."""
    board.must("sh", "-c", "kill -TERM $(cat /run/agent.pid)")
    assert fleet.agents[DEVICE].process.wait(60) == 0, fleet.agents[DEVICE].log.read_text()


def _is_configured(board: Board) -> None:
    """Files are whose they should be, and limits of the configuration reach the unit."""
    assert board.must("stat", "-c", "%U %a", STATE).strip() == "edge-agent 700"
    assert board.must("stat", "-c", "%U %a", CONFIG).strip() == "root 644"
    root_owned = board.must("find", STATE, "-not", "-user", "edge-agent").strip()
    assert root_owned == ""
    board.must(
        "sh", "-c", f"sed -i 's/^memory_mib = 0/memory_mib = 256/; s/^cpu_percent = 0/cpu_percent = 50/' {CONFIG}"
    )
    board.must("mkdir", "-p", "/run/units")
    board.must("/lib/systemd/system-generators/edge-agent-limits", "/run/units", "/run/units", "/run/units")
    drop_in = board.must("cat", "/run/units/edge-agent.service.d/50-limits.conf")
    assert "MemoryMax=384M" in drop_in
    assert "CPUQuota=50%" in drop_in


def _version(package: str) -> str:
    return package.split("_")[1]
