"""The coordinator's package where systemd is the first process: installed, configured from its sample, started with its
private mosquitto, started again after SIGKILL, stopped, removed and purged."""

from pathlib import Path

from protocol.mqtt import free_port
from tests.debian.boards import Board, managed_board
from tests.debian.managed import shown
from tests.waiting import until

UNIT = "fleet-coordinator.service"
STATE = "/var/lib/fleet-coordinator"
CONFIG = "/etc/fleet-coordinator/coordinator.toml"
SAMPLE = "/usr/share/fleet-coordinator/coordinator.toml.sample"


def travel(cache: Path, packages: Path, bundle: Path) -> None:
    """From installation to purge; each step is asserted."""
    (package,) = (path.name for path in packages.glob("fleet-coordinator_*_amd64.deb"))
    with managed_board(cache, {"/packages": packages, "/bundle": bundle}) as there:
        # The broker's package would start one of its own, on a port of this machine.
        there.must("systemctl", "mask", "mosquitto")
        there.must("apt-get", "-qq", "-y", "install", f"/packages/{package}")
        assert there.has("/usr/sbin/mosquitto"), "apt-get takes what is recommended, and did not"
        there.must("systemctl", "start", UNIT)
        assert shown(there, UNIT, "ActiveState", "ConditionResult") == "inactive no"
        there.must("cp", "-r", "/bundle", f"{STATE}/bundle")
        there.must("chown", "-R", "fleet-coordinator:fleet-coordinator", f"{STATE}/bundle")
        there.must("sh", "-c", _configured(free_port(), free_port()))
        _runs(there)
        there.must("apt-get", "-qq", "-y", "remove", "fleet-coordinator")
        assert there.has(f"{STATE}/trust/root.key")
        assert there.has(CONFIG)
        there.must("dpkg", "--purge", "fleet-coordinator")
        assert not there.has(STATE)
        assert not there.has("/etc/fleet-coordinator")
        assert there.run("getent", "passwd", "fleet-coordinator").returncode != 0


def _configured(broker: int, enrolment: int) -> str:
    """The sample, with ports of this machine that are free."""
    return f"sed 's/^port = 8883/port = {broker}/; s/^port = 8884/port = {enrolment}/' {SAMPLE} > {CONFIG}"


def _runs(there: Board) -> None:
    """Its private broker listens, root makes tokens with no word of configuration, and it ends well when told to."""
    there.must("systemctl", "start", UNIT)
    assert shown(there, UNIT, "Type", "ActiveState") == "notify active"
    assert there.must("fleet-coordinator", "token").startswith("sft1")
    owners = there.must("find", STATE, "-not", "-user", "fleet-coordinator").strip()
    assert owners == ""
    there.must("systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT)
    until(lambda: shown(there, UNIT, "NRestarts", "ActiveState") == "1 active", "systemd starts another")
    assert there.must("fleet-coordinator", "token").startswith("sft1")
    there.must("systemctl", "stop", UNIT)
    assert shown(there, UNIT, "ActiveState", "Result", "ExecMainStatus") == "inactive success 0"
    assert "listening" in there.must("journalctl", "--unit", UNIT, "--output", "cat", "--no-pager")
