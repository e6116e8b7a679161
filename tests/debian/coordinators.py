"""The coordinator's package in a container: installed, configured from its sample, running with mosquitto, purged."""

from pathlib import Path

from protocol.mqtt import free_port
from tests.debian.boards import Board, board
from tests.waiting import until

STATE = "/var/lib/fleet-coordinator"
CONFIG = "/etc/fleet-coordinator/coordinator.toml"
SAMPLE = "/usr/share/fleet-coordinator/coordinator.toml.sample"
AS_USER = ("setpriv", "--reuid", "fleet-coordinator", "--regid", "fleet-coordinator", "--init-groups")


def travel(cache: Path, packages: Path, bundle: Path) -> None:
    """From installation to purge; each step is asserted."""
    (package,) = (path.name for path in packages.glob("fleet-coordinator_*_amd64.deb"))
    with board("amd64", cache, {"/packages": packages, "/bundle": bundle}) as there:
        there.must("apt-get", "-qq", "-y", "install", f"/packages/{package}")
        assert there.has("/usr/sbin/mosquitto"), "apt-get takes what is recommended, and did not"
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
    """As its unit starts it: its private broker listens, tokens are made, and it ends well when it is told to."""
    run = " ".join((*AS_USER, "fleet-coordinator", "run", "--config", CONFIG))
    there.must("sh", "-c", f"sh -c 'echo $$ > /run/c.pid; exec {run}' > /run/c.log 2>&1 &")
    until(lambda: "listening" in there.must("cat", "/run/c.log"), "the coordinator listens")
    assert there.must(*AS_USER, "fleet-coordinator", "token", "--config", CONFIG).startswith("sft1")
    there.must("sh", "-c", "kill -TERM $(cat /run/c.pid)")
    until(lambda: there.run("sh", "-c", "kill -0 $(cat /run/c.pid)").returncode != 0, "the coordinator ends")
