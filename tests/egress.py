"""Where processes connect and send to, as strace saw it: every address that they hand to the kernel."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

_CALL = re.compile(r"^\d+ +(?:connect|sendto|sendmsg|sendmmsg)\(")
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_HOST = re.compile(r'(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"')
_UNIX = re.compile(r'sa_family=AF_UNIX, sun_path=@?"([^"]*)"')
_LISTEN = re.compile(r"^\d+ +listen\((\d+), ")
_OWN = re.compile(r"^\d+ +getsockname\((\d+), ")
# All that makes a socket: network protocols that have no address we read are seen by their family.
_FAMILY = re.compile(r"^\d+ +socket\((AF_\w+)")


def require_strace(folder: Path) -> None:
    """Skips what needs it where it is not installed, or may not trace its children."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run([*watched(folder / "probe"), "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")


def watched(trace: Path) -> tuple[str, ...]:
    """The command that has the next one's sockets written to a file. Threads and children are followed."""
    return ("strace", "-f", "--seccomp-bpf", "-qq", "-s", "256", "-e", "trace=network", "-o", str(trace))


def destinations(trace: Path) -> set[str]:
    """HOST:PORT, or the path of a socket on this machine, of all that was connected or sent to; but for a process's own
    ears on loopback, by which paho wakes its thread."""
    found, own, ears = set(), set(), set()
    for line in trace.read_text(errors="replace").splitlines():
        addresses = {f"{host}:{port}" for host, port in zip(_HOST.findall(line), _PORT.findall(line), strict=True)}
        if match := _LISTEN.match(line):
            ears.add(match[1])
        elif (match := _OWN.match(line)) and match[1] in ears:
            own |= {address for address in addresses if address.startswith("127.0.0.1:")}
        elif _CALL.match(line):
            found |= addresses | set(_UNIX.findall(line))
    return found - own


def families(trace: Path) -> set[str]:
    """Of all sockets that were made."""
    lines = trace.read_text(errors="replace").splitlines()
    return {match[1] for line in lines if (match := _FAMILY.match(line))}
