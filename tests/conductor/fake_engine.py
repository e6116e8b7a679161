"""An engine without processes: devices are words in memory, and a test says what becomes of them."""

import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from devices.engines.engine import Condition, EngineError, Finding, InForce, Inside, Limits, Start


@dataclass
class FakeEngine:
    """Keeps what real engines keep. calls: what was asked of it, in order. weak: limits that it does not enforce."""

    name: str = "podman"
    findings: tuple[Finding, ...] = ()
    weak: tuple[str, ...] = ()
    calls: list[tuple[str, ...]] = field(default_factory=list)
    prepared: dict[tuple[str, str], Start] = field(default_factory=dict)
    now: dict[tuple[str, str], Condition] = field(default_factory=dict)
    cores: dict[tuple[str, str], float | None] = field(default_factory=dict)
    lives: int = 0

    def check(self) -> tuple[Finding, ...]:
        return self.findings

    def prepare(self, start: Start) -> None:
        if (start.fleet, start.device) in self.prepared:
            raise EngineError(f"{start.fleet}/{start.device} is there already")
        self.prepared[start.fleet, start.device] = start
        self.now[start.fleet, start.device] = Condition("created")

    def inside(self, start: Start) -> Inside:
        return Inside(start.etc, start.state, start.data)

    def start(self, start: Start, words: Sequence[str]) -> None:
        self._known(start.fleet, start.device)
        self.prepared[start.fleet, start.device] = start
        self.cores[start.fleet, start.device] = start.limits.cores
        self.again(start.fleet, start.device)

    def run(self, start: Start, words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        self.calls.append(("run", start.device, *words))
        return subprocess.CompletedProcess(tuple(words), 0, b"", b"")

    def listen(self, fleet: str, device: str, port: int) -> socket.socket:
        self._known(fleet, device)
        return socket.create_server(("127.0.0.1", 0))

    def in_force(self, fleet: str, device: str) -> InForce:
        limits = self.prepared[fleet, device].limits
        got = replace(limits, cores=self.cores.get((fleet, device)), **dict.fromkeys(self.weak))
        return InForce(
            got if limits != Limits() else Limits(), dict.fromkeys(self.weak, "this kernel has no such limit")
        )

    def throttle(self, fleet: str, device: str, cores: float | None) -> None:
        self.calls.append(("throttle", device, str(cores)))
        self.cores[fleet, device] = cores

    def kill(self, fleet: str, device: str) -> None:
        self.calls.append(("kill", device))
        self.ends(fleet, device, 137)

    def cut_power(self, fleet: str, device: str) -> bool:
        self.calls.append(("cut_power", device))
        self.ends(fleet, device, 137)
        return True

    def stop(self, fleet: str, device: str, grace_s: float) -> None:
        self.calls.append(("stop", device))
        self.ends(fleet, device, 0)

    def again(self, fleet: str, device: str) -> None:
        if self.now[fleet, device].state == "running":
            raise EngineError(f"{fleet}/{device} runs already")
        self.lives += 1
        self.calls.append(("start", device))
        self.now[fleet, device] = Condition(
            "running", started_at=float(self.lives), cpu_s=1.0, memory_mib=40.0, peak_mib=50.0
        )

    def condition(self, fleet: str, device: str) -> Condition:
        return self.now.get((fleet, device), Condition("absent"))

    def logs(self, fleet: str, device: str, *, follow: bool = False) -> Sequence[str]:
        return ("echo", f"log of {device}")

    def execute(self, fleet: str, device: str, words: Sequence[str], *, terminal: bool = False) -> Sequence[str]:
        return tuple(words)

    def devices(self, fleet: str) -> tuple[str, ...]:
        return tuple(sorted(device for of, device in self.prepared if of == fleet))

    def fleets(self) -> tuple[str, ...]:
        return tuple(sorted({fleet for fleet, _ in self.prepared}))

    def remove(self, fleet: str) -> None:
        for key in [key for key in self.prepared if key[0] == fleet]:
            del self.prepared[key], self.now[key]

    def ends(self, fleet: str, device: str, code: int, *, out_of_memory: bool = False) -> None:
        """What runs there has ended so."""
        if self.now[fleet, device].state == "running":
            self.now[fleet, device] = replace(
                self.now[fleet, device], state="ended", exit_code=code, out_of_memory=out_of_memory, memory_mib=None
            )

    def _known(self, fleet: str, device: str) -> None:
        if (fleet, device) not in self.prepared:
            raise EngineError(f"{fleet}/{device}: there is no such device")
