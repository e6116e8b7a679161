"""Whether podman or docker is there, may be used, and has the kernel hold what a device is limited to: by trying it."""

import os
import socket

from devices.engines.cgroups import Cgroup, cgroup_of
from devices.engines.client import Client, is_root, limits_of_users
from devices.engines.container_options import BARE, limit_words
from devices.engines.engine import EngineError, Finding, Limits
from devices.engines.namespaces import listen_in

_CORES, _MEMORY_MIB = 0.25, 64
_PORT = 1883
_ROOT_REMEDY = "run it as root (sudo); without root limits may be ignored in silence"


def check(client: Client) -> tuple[Finding, ...]:
    """Starts at most one container, of an image that is there, and takes it away."""
    try:
        version = _version(client)
    except EngineError as error:
        return (Finding(client.command, "error", str(error), _remedy(client)),)
    found = Finding(client.command, "ok", version)
    if not is_root():
        detail = f"this is user {os.geteuid()}; containers without root have no limits that are sure to hold"
        return (found, Finding("permission", "error", detail, _ROOT_REMEDY))
    permission = Finding("permission", "ok", "root")
    image = image_at_hand(client)
    if image is None:
        return (found, permission, _controllers())
    return (found, permission, *_tried(client, image))


def image_at_hand(client: Client) -> str | None:
    """One of ours for this machine's own instructions, to try the engine with."""
    printed = client.must("images", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
    ours = sorted(name for name in printed if "sparsefleet" in name and "arm64" not in name and "<none>" not in name)
    return ours[0] if ours else None


def _version(client: Client) -> str:
    """Of the engine itself, which with docker is another process than the command."""
    if client.command == "docker":
        return f"docker {client.must('version', '--format', '{{.Server.Version}}').strip()}"
    return client.must("--version").strip()


def _remedy(client: Client) -> str:
    if client.command == "docker":
        return "apt-get install docker.io and start it (systemctl start docker), or use podman"
    return "apt-get install podman runc"


def _tried(client: Client, image: str) -> tuple[Finding, ...]:
    name = f"sparsefleet.{os.getpid()}.check"
    limits = limit_words(Limits(_CORES, _MEMORY_MIB))
    options = (*BARE, *limits_of_users(), *limits, "--network", "none", "--entrypoint", "sleep")
    try:
        # Gone by itself in a minute, should we be killed.
        client.begin(name, ("--rm", *options, image, "60"))
    except EngineError as error:
        remedy = "see what it says; where crun refuses this machine's control groups, apt-get install runc"
        return (Finding("container", "error", str(error), remedy),)
    try:
        found = client.inspect(name) or {}
        pid = int(found["State"]["Pid"])
        how = f"{image} with {client.runtime or 'the default runtime'}"
        started = Finding("container", "ok", f"a container of {how} starts")
        return (started, _limits(cgroup_of(pid, str(found["Id"]))), _network(pid))
    finally:
        client.call("rm", "--force", name)


def _limits(group: Cgroup) -> Finding:
    cores, memory = group.cores(), group.memory_mib()
    detail = f"asked {_CORES} cores and {_MEMORY_MIB} MiB; the kernel has {cores} cores and {memory} MiB"
    if (cores, memory) == (_CORES, _MEMORY_MIB):
        return Finding("limits", "ok", detail)
    remedy = "enable the cpu and memory controllers of control groups, and run as root"
    return Finding("limits", "error", detail, remedy)


def _network(pid: int) -> Finding:
    try:
        with listen_in(pid, _PORT) as listener:
            assert listener.family == socket.AF_INET
    except EngineError as error:
        return Finding("network", "error", str(error), _ROOT_REMEDY)
    return Finding("network", "ok", "devices have a loopback of their own, and our proxy listens on it")


def _controllers() -> Finding:
    """What can be said without an image: whether this kernel has the controllers at all."""
    folders = cgroup_of(os.getpid()).folders
    unified = folders.get("")
    named = set((unified / "cgroup.controllers").read_text().split()) if unified is not None else set()
    there = {*folders, *named}
    missing = [name for name in ("cpu", "memory") if name not in there]
    if missing:
        remedy = "enable them in the kernel (on a Raspberry Pi: cgroup_enable=memory in cmdline.txt)"
        return Finding("limits", "error", f"control groups lack {' and '.join(missing)}", remedy)
    return Finding("limits", "warning", "not tried, for there is no image of ours", "fleet-emulate images")
