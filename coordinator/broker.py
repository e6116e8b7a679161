"""Which broker a fleet talks through: the operator's, else a private mosquitto, else the embedded one.

A private broker is a supervised child: it is started again when it dies, and dies with the coordinator, however that
ends. It keeps nothing on disk, because every law of delivery lies above it.
"""

import importlib.util
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Literal

from coordinator.authority import BrokerFiles
from coordinator.neighbour_access import write_acl
from protocol.errors import ConfigurationError, SparsefleetError
from protocol.messages import MAX_MESSAGE_BYTES
from protocol.mqtt import BrokerAddress, parse_url
from protocol.tls import is_loopback

log = logging.getLogger(__name__)

BrokerKind = Literal["mosquitto", "embedded"]

# A start takes milliseconds; this is for a small board with a slow disk that must first load Python and amqtt.
READY_S = 30.0
# How long a broker may take to end before it is killed; it has nothing to save.
STOP_S = 3.0
FIRST_RESTART_S = 0.5
LONGEST_RESTART_S = 30.0
# A child that lived so long did not die of its configuration.
STABLE_S = 60.0
MAX_LOG_BYTES = 1 << 20

MOSQUITTO_CONFIGURATION = """\
# Written by fleet-coordinator at each start; changes are lost.
listener {port} {host}
{access}# Everything that must survive is kept by coordinator and devices; a broker that keeps nothing cannot be wrong.
persistence false
# The largest message of ours with its topic; longer ones are not from us.
max_packet_size {max_packet}
# What is sent to one client before it acknowledges: a few windows of chunks.
max_inflight_messages 64
# The coordinator's share of a whole fleet talking at once. More is dropped, and said again by its sender.
max_queued_messages 10000
set_tcp_nodelay true
sys_interval 0
{user}# To the log file, through the coordinator, so that it needs no right to write there.
log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages false
"""

# Anybody on this machine is let in.
PLAIN = "allow_anonymous true\n"

# The name in a certificate is who a client is, in everything that it does.
TLS = """\
allow_anonymous false
tls_version tlsv1.2
cafile {roots}
certfile {certificate}
keyfile {key}
crlfile {revoked}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
acl_file {acl}
"""

# %u is the name in a certificate: no device speaks or hears for another.
ACL = """\
# Written by fleet-coordinator at each start; changes are lost.
user {coordinator}
topic readwrite {root}/#

pattern write {root}/%u/state
pattern write {root}/%u/up
pattern write {root}/%u/up/blob
pattern read {root}/%u/down/#
pattern read {root}/all/+
"""

ACL_FILE = "acl"

# Runs between fork and exec, as a program of its own because code in a forked copy of a threaded process may hang: asks
# the kernel to kill this process when its parent ends, then becomes the broker. The parent may have ended before that.
_TIED = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(slots=True)
class Supervised:
    """A child process that is started again when it dies. Start it from the main thread: the kernel ties it to that."""

    name: str
    command: tuple[str, ...]
    log_file: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float | None = None
    failures: int = 0

    def start(self, now: float) -> None:
        """Starts the child; does not wait until it serves."""
        too_long = self.log_file.exists() and self.log_file.stat().st_size > MAX_LOG_BYTES
        with self.log_file.open("wb" if too_long else "ab") as output:
            self.process = _spawn_tied(self.command, output)
        self.started_at, self.restart_at = now, None
        pid_file(self.log_file.parent).write_text(str(self.process.pid))

    def check(self, now: float) -> None:
        """Notices that the child died, and starts it again after a pause that grows with each early death."""
        if self.restart_at is not None and now >= self.restart_at:
            try:
                self.start(now)
            except OSError as error:
                self.restart_at = now + LONGEST_RESTART_S
                log.error("broker cannot be restarted: %s, %s", self.name, error)
                return
            log.warning("broker restarted: %s", self.name)
        if self.restart_at is None and self.process is not None and self.process.poll() is not None:
            self.failures = 0 if now - self.started_at >= STABLE_S else self.failures + 1
            pause = min(FIRST_RESTART_S * 2.0 ** min(self.failures, 32), LONGEST_RESTART_S)
            self.restart_at = now + pause
            log.error(
                "broker died: %s, exit code %s, starts again in %.1f s; %s",
                self.name,
                self.process.returncode,
                pause,
                self.last_words(),
            )

    def stop(self) -> None:
        """Ends the child and waits for it. Safe to call twice."""
        self.restart_at = None
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        pid_file(self.log_file.parent).unlink(missing_ok=True)

    def last_words(self) -> str:
        """Where the child's log is, and its last lines."""
        lines = self.log_file.read_text(errors="replace").splitlines()[-2:]
        return f"see {self.log_file} ({'; '.join(lines)})"


@dataclass(slots=True)
class Broker:
    """The broker in use. `url` is how this machine reaches it; `description` is for people."""

    url: str
    description: str
    child: Supervised | None = None
    access: "Access | None" = None
    acl: Path | None = None

    def allow(self, neighbours: Mapping[str, Sequence[str]]) -> None:
        """Lets these devices of a gossip epoch hear their neighbours, and no others. Who runs another broker does so
        there."""
        if self.access is not None and self.acl is not None:
            write_acl(self.acl, _everyone(self.access), self.access.root, neighbours)
            self.reload()

    def reload(self) -> None:
        """Has a private mosquitto read its lists again, of revoked certificates and of who may say and hear what; those
        who are connected stay."""
        if self.child is not None and self.child.process is not None and self.child.process.poll() is None:
            self.child.process.send_signal(signal.SIGHUP)

    def check(self, now: float) -> None:
        """Keeps a private broker alive; for the daemon's loop, with a monotonic clock. Never waits."""
        if self.child is not None:
            self.child.check(now)

    def close(self) -> None:
        """Ends a private broker. Safe to call twice."""
        if self.child is not None:
            self.child.stop()


@dataclass(frozen=True, slots=True)
class Access:
    """Who a private mosquitto lets in: who has a certificate of the fleet, each to its own topics. root: of all topics;
    coordinator: the name that may use all of them."""

    files: BrokerFiles
    root: str
    coordinator: str


def start_broker(url: str, port: int, state: Path, host: str = "127.0.0.1", access: Access | None = None) -> Broker:
    """The broker for a setting of `auto`, `mosquitto`, `embedded` or an address, ready to be connected to.

    A private one listens on host:port and has its files in the folder `state`. access: for TLS; without it everybody
    is let in who reaches it. Raises ConfigurationError for a setting that cannot be followed, among them a port that is
    taken.
    """
    if url not in ("auto", "mosquitto", "embedded"):
        try:
            address = parse_url(url)
        except ValueError as error:
            raise ConfigurationError(f"broker: {error}, or auto, mosquitto or embedded") from None
        return Broker(address.url, f"external {address.url}")
    state.mkdir(parents=True, exist_ok=True)
    mosquitto = find_mosquitto() if url in ("auto", "mosquitto") else None
    if url == "mosquitto" and mosquitto is None:
        raise ConfigurationError(
            "broker: no mosquitto of version 2.0 or later was found; install it (apt install mosquitto), "
            "or set broker to embedded for trying out"
        )
    child = _mosquitto(mosquitto, host, port, state, access) if mosquitto else _embedded(host, port, state)
    _check_port_free(host, port, state)
    child.start(time.monotonic())
    reachable = BrokerAddress(
        {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, tls=bool(mosquitto and access)
    )
    try:
        _await_ready(child, reachable)
    except BaseException:
        child.stop()
        raise
    if mosquitto is None or access is None:
        return Broker(reachable.url, child.name, child)
    return Broker(reachable.url, child.name, child, access, state / ACL_FILE)


@dataclass(frozen=True, slots=True)
class Mosquitto:
    """An installed mosquitto."""

    path: str
    version: str


def find_mosquitto() -> Mosquitto | None:
    """The mosquitto to use, if there is one of version 2.0 or later."""
    # Debian puts it where the PATH of an ordinary user does not look.
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        return None
    try:
        said = subprocess.run([path, "-h"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"version (\d+)\.(\d+)\S*", said)
    return Mosquitto(path, found[0].removeprefix("version ")) if found and int(found[1]) >= 2 else None


def pid_file(state: Path) -> Path:
    return state / "broker.pid"


def _mosquitto(found: Mosquitto, host: str, port: int, state: Path, access: Access | None) -> Supervised:
    configuration = state / "mosquitto.conf"
    # Started as root it would change to a user of its own, and a process that does so is no longer tied to its parent.
    user = "user root\n" if os.geteuid() == 0 else ""
    allowed = PLAIN if access is None else _write_access(access, state)
    packet = MAX_MESSAGE_BYTES + 1024
    text = MOSQUITTO_CONFIGURATION.format(host=host, port=port, max_packet=packet, user=user, access=allowed)
    configuration.write_text(text)
    command = (found.path, "-c", str(configuration.resolve()))
    how = "plain" if access is None else "mTLS"
    return Supervised(f"mosquitto {found.version} (private, {how})", command, state / "broker.log")


def _write_access(access: Access, state: Path) -> str:
    acl, files = state / ACL_FILE, access.files
    write_acl(acl, _everyone(access), access.root, {})
    return TLS.format(
        roots=files.roots.resolve(),
        certificate=files.certificate.resolve(),
        key=files.key.resolve(),
        revoked=files.revoked.resolve(),
        acl=acl.resolve(),
    )


def _everyone(access: Access) -> str:
    return ACL.format(root=access.root, coordinator=access.coordinator)


def _embedded(host: str, port: int, state: Path) -> Supervised:
    if importlib.util.find_spec("amqtt") is None:
        raise ConfigurationError(
            "broker: neither mosquitto nor amqtt is installed; install mosquitto (apt install mosquitto), "
            "or amqtt for trying out (pip install 'sparsefleet[coordinator]')"
        )
    if not is_loopback(host):
        raise ConfigurationError(
            f"broker.host: {host} is open to other machines, and the embedded broker knows no identities: it is for "
            "trying out on 127.0.0.1; install mosquitto (apt install mosquitto)"
        )
    name = f"embedded (amqtt {version('amqtt')}, for trying out only: plain, keeps nothing, slow)"
    # By its path, so that it starts whatever the working folder; -P so that its neighbours shadow no library.
    program = str(Path(__file__).with_name("embedded_broker.py"))
    command = (sys.executable, "-P", program, "--host", host, "--port", str(port))
    return Supervised(name, command, state / "broker.log")


def _spawn_tied(command: tuple[str, ...], output: IO[bytes]) -> subprocess.Popen[bytes]:
    tied = (sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command)
    # A group of its own: the terminal's Ctrl-C is for the coordinator, which says goodbye through this broker.
    return subprocess.Popen(tied, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0)


def _check_port_free(host: str, port: int, state: Path) -> None:
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        stale = _stale_broker(state)
        remedy = (
            "it is the broker of another coordinator with the same state folder; "
            f"if that one was killed, end its broker with: kill {stale}"
            if stale is not None
            else "stop what listens there, choose another port, or set broker to that broker's mqtt:// address"
        )
        raise ConfigurationError(f"port: cannot listen on {host}:{port} ({reason}); {remedy}") from None


def _stale_broker(state: Path) -> int | None:
    """The process of a broker that an earlier coordinator started from this folder, if it is still that."""
    try:
        pid = int(pid_file(state).read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    ours = str((state / "mosquitto.conf").resolve()).encode() in command or b"embedded_broker.py" in command
    return pid if ours else None


def _await_ready(child: Supervised, address: BrokerAddress) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert child.process is not None
        if child.process.poll() is not None:
            raise SparsefleetError(f"broker: {child.name} ended at once; {child.last_words()}")
        try:
            socket.create_connection((address.host, address.port), timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SparsefleetError(f"broker: {child.name} does not answer after {READY_S:.0f} s; {child.last_words()}")
