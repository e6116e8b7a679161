"""The coordinator of an emulated fleet, as a process of its own: what it tells, and what it is asked."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM

from devices.conductor.folder import SETTINGS
from devices.datasets import PROJECT_ROOT
from devices.facts import Event, parse_event, parse_tokens
from devices.processes import Child, PartFailedError, start
from protocol.errors import ConfigurationError, SparsefleetError

_ANSWER_S = 120.0
# An event is a line of at most some thousand characters.
_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class Coordinating:
    """command: how fleet-coordinator is started here. folder: the fleet's."""

    command: tuple[str, ...]
    folder: Path

    def begin(self) -> Child:
        """Starts it; it has a broker to end before it ends itself, also when we die without a word."""
        return start(
            "coordinator",
            (*self.command, "run", "--config", str(self.folder / SETTINGS), "--json", "--exit-when-finished"),
            self.folder / "logs" / "coordinator.log",
            folder=PROJECT_ROOT,
            pipe=True,
            orphaned=SIGTERM,
        )

    def check(self) -> None:
        """Raises ConfigurationError, with its words, where it would not start with its settings."""
        done = self._call("rounds")
        # That nothing has run here yet is no mistake.
        if done.returncode == ConfigurationError.exit_code:
            raise ConfigurationError(
                f"{_said(done)}; it follows from the fleet's file, whose [coordinator.rounds], [coordinator.training] "
                "and so on are laid over it"
            )

    def ask(self, *question: str) -> bytes:
        """What one of its commands prints, of its store. Blocks. Raises SparsefleetError with its words."""
        done = self._call(*question)
        if done.returncode != 0:
            raise SparsefleetError(f"fleet-coordinator {question[0]}: {_said(done)}")
        return done.stdout

    def _call(self, *question: str) -> "subprocess.CompletedProcess[bytes]":
        words = (*self.command, *question, "--config", str(self.folder / SETTINGS), "--json")
        try:
            return subprocess.run(words, capture_output=True, cwd=PROJECT_ROOT, timeout=_ANSWER_S, process_group=0)
        except subprocess.TimeoutExpired:
            raise SparsefleetError(f"fleet-coordinator {question[0]} took more than {_ANSWER_S:g} s") from None

    def tokens(self, count: int) -> tuple[str, ...]:
        return parse_tokens(self.ask("token", "--count", str(count)))


def _said(done: "subprocess.CompletedProcess[bytes]") -> str:
    return done.stderr.decode(errors="replace").strip()


async def events(child: Child) -> AsyncIterator[Event]:
    """What it tells, until it ends well. Raises PartFailedError where it does not."""
    reader = asyncio.StreamReader(_LINE)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), child.stdout)
    try:
        while line := await reader.readline():
            event = parse_event(line)
            if event is not None:
                yield event
    finally:
        transport.close()
    while child.exit_code is None:
        await asyncio.sleep(0.02)
    if child.exit_code != 0:
        raise PartFailedError(child)
