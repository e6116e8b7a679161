"""Sockets and link shaping inside a network namespace that this process is not in."""

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from dataclasses import dataclass

from devices.engines.engine import EngineError

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_TIMEOUT_S = 30


def listen_in(pid: int, port: int) -> socket.socket:
    """A socket that listens on the loopback of a process' network. It stays there for as long as it is open.

    A thread of its own enters that network and ends: a socket belongs to where it was made, whoever serves it.
    """
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def make() -> None:
        try:
            namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _LIBC.setns(namespace, _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            finally:
                os.close(namespace)
            made.append(socket.create_server(("127.0.0.1", port)))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=make, name="listen-in-namespace")
    thread.start()
    thread.join()
    if failed:
        raise EngineError(
            f"port {port} in the network of process {pid} cannot be listened on ({failed[0].strerror}); "
            "this needs root (CAP_SYS_ADMIN): sudo fleet-emulate ..."
        )
    return made[0]


@dataclass(frozen=True, slots=True)
class Shape:
    """What netem does to every packet on a link, in each direction."""

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0


def has_netem() -> bool:
    """Whether the kernel can: tried in a network that is thrown away."""
    if shutil.which("tc") is None or shutil.which("unshare") is None:
        return False
    command = ("unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    return subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S).returncode == 0


def shape_in(pid: int, shape: Shape) -> None:
    """Puts netem on the loopback of a process' network. Raises EngineError where that cannot be done.

    Both directions of a connection pass the loopback, so each packet is late by `latency_ms` either way.
    """
    words = ["netem", "delay", f"{shape.latency_ms:g}ms", f"{shape.jitter_ms:g}ms", "loss", f"{shape.loss * 100:g}%"]
    done = subprocess.run(shape_command(pid, words), capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode != 0:
        raise EngineError(
            f"the network of process {pid} cannot be shaped: {done.stderr.strip()}; the proxy alone does it then"
        )


def shape_command(pid: int, words: list[str]) -> tuple[str, ...]:
    return ("nsenter", "--target", str(pid), "--net", "tc", "qdisc", "replace", "dev", "lo", "root", *words)
