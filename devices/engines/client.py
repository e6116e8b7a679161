"""The command line of podman or docker: run with a limit of time, its refusals told in its own words."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from devices.engines.engine import EngineError

# An engine that starts a container under emulation on a busy machine.
_TIMEOUT_S = 180
# What a board's services get, with which systemd starts them. The engines' own defaults are above the limits of some
# machines, which let nobody raise them.
_FILES = (1024, 524_288)
_PROCESSES = 4096
# podman's own default, and what else Debian has. crun refuses a machine with both versions of control groups at once.
_RUNTIMES = ("crun", "runc")
_RUNTIME_FAILED = ("oci ", "runtime")


@dataclass(slots=True)
class Client:
    """One of the two commands. runtime: podman's, where its default failed and another did not."""

    command: str
    runtime: str | None = None

    def words(self, *words: str) -> tuple[str, ...]:
        return (self.command, *(("--runtime", self.runtime) if self.runtime else ()), *words)

    def call(self, *words: str, timeout_s: float = _TIMEOUT_S) -> "subprocess.CompletedProcess[bytes]":
        """Runs it to its end, whatever that is."""
        try:
            # In a group of its own: Ctrl-C on our terminal is ours to act on, not its to die of half way.
            return subprocess.run(
                self.words(*words), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, process_group=0
            )
        except FileNotFoundError:
            raise EngineError(f"{self.command} is not installed; apt-get install {self.command}") from None
        except subprocess.TimeoutExpired:
            raise EngineError(f"{self.command} {words[0]} took more than {timeout_s:g} s") from None

    def must(self, *words: str) -> str:
        """What it printed, which went well."""
        done = self.call(*words)
        if done.returncode != 0:
            raise EngineError(f"{self.command} {words[0]}: {_said(done)}")
        return done.stdout.decode()

    def begin(self, name: str, words: Sequence[str]) -> None:
        """`run --detach` with a name. Where podman's runtime cannot, tries the others, and stays with what could."""
        tried = []
        for runtime in (self.runtime, *self._others()):
            # By a copy: other threads may start containers meanwhile.
            client = Client(self.command, runtime)
            done = client.call("run", "--detach", "--name", name, *words)
            if done.returncode == 0:
                self.runtime = runtime
                return
            said = _said(done)
            tried.append(f"{runtime or 'default runtime'}: {said}")
            # What was created and could not start keeps the name.
            self.call("rm", "--force", name)
            if not any(word in said.lower() for word in _RUNTIME_FAILED):
                break
        raise EngineError(f"{self.command} run {name}: {'; '.join(tried)}")

    def inspect(self, name: str) -> dict[str, Any] | None:
        """What it knows of a container; None: it has none of that name."""
        done = self.call("container", "inspect", name)
        if done.returncode != 0:
            if b"no such" in done.stderr.lower():
                return None
            raise EngineError(f"{self.command} inspect {name}: {_said(done)}")
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found[0]

    def names(self, *labels: str) -> tuple[str, ...]:
        """Of the containers that bear all of these labels, ended ones too."""
        chosen = [word for label in labels for word in ("--filter", f"label={label}")]
        return tuple(self.must("ps", "--all", *chosen, "--format", "{{.Names}}").split())

    def _others(self) -> tuple[str, ...]:
        if self.command != "podman" or self.runtime is not None:
            return ()
        return tuple(name for name in _RUNTIMES if shutil.which(name) is not None)


def limits_of_users() -> tuple[str, ...]:
    """Options for open files and processes that are never above our own limits, which some machines do not let rise."""
    hard_files = _ceiling(resource.RLIMIT_NOFILE, _FILES[1])
    processes = _ceiling(resource.RLIMIT_NPROC, _PROCESSES)
    files = f"nofile={min(_FILES[0], hard_files)}:{hard_files}"
    return ("--ulimit", files, "--ulimit", f"nproc={processes}:{processes}")


def is_root() -> bool:
    return os.geteuid() == 0


def _ceiling(which: int, most: int) -> int:
    hard = resource.getrlimit(which)[1]
    return most if hard == resource.RLIM_INFINITY else min(hard, most)


def _said(done: "subprocess.CompletedProcess[bytes]") -> str:
    lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    # The last lines say what; the ones before, of docker, how to ask for help.
    return " ".join(lines[-3:])[:1000] or f"exit code {done.returncode}"
