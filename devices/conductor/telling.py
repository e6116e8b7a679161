"""What the conductor says while a fleet runs: a line a stage, a round and a fault for people, or JSON lines."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape

from devices.facts import RoundCommitted
from devices.fleet.record import Committed, Happening
from devices.round_line import HEADING, round_line
from devices.text import duration_text
from protocol.records import write_record

# What is news for people, not trouble.
_CALM = frozenset({"start", "enrolled", "on", "off"})


@dataclass(slots=True)
class Telling:
    """Where all that happens is said, and kept for the record. clock: seconds of the emulated clock, 0 before it runs.

    as_json: events as JSON lines on standard output, with nothing else there; stages go to the console in any case.
    """

    console: Console
    rounds: int
    as_json: bool = False
    clock: Callable[[], float] = lambda: 0.0
    happenings: list[Happening] = field(default_factory=list)
    committed: list[Committed] = field(default_factory=list)
    headed: bool = False

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Says what was put into the list when it is done, with the seconds that it took."""
        began, result = time.monotonic(), list[str]()
        yield result
        seconds = time.monotonic() - began
        self.event("stage", stage=name, said=" ".join(result), seconds=round(seconds, 2))
        self.line(f"[green]✓[/] {name:<11} {escape(' '.join(result))}  [dim]{duration_text(seconds)}[/]")

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """A part of a stage that takes its time."""
        began = time.monotonic()
        yield
        self.note(what, time.monotonic() - began)

    def note(self, what: str, seconds: float | None = None) -> None:
        self.event("progress", said=what)
        self.line(f"[dim]  {escape(what)}{'' if seconds is None else '  ' + duration_text(seconds)}[/]")

    def happened(self, device: str | None, what: str, detail: str = "") -> None:
        happening = Happening(round(self.clock(), 3), device, what, detail)
        self.happenings.append(happening)
        self.event("happening", **write_record(happening))
        colour = "dim" if what in _CALM or what.endswith(" ends") else "yellow"
        text = " ".join(word for word in (what, device or "", detail) if word)
        self.line(f"[{colour}]  {happening.at_s:8.1f} s  {escape(text)}[/]")

    def round(self, event: RoundCommitted) -> None:
        self.committed.append(Committed(round(self.clock(), 3), event))
        self.event("round-committed", at_s=self.committed[-1].at_s, **write_record(event))
        if not self.headed:
            self.headed = True
            self.line(f"[dim]{HEADING}[/]")
        self.line(round_line(event, self.rounds))

    def event(self, name: str, **facts: object) -> None:
        if self.as_json:
            print(json.dumps({"event": name, **facts}), flush=True)

    def line(self, text: str) -> None:
        """One line for people, of rich markup."""
        self.console.print(text, highlight=False, soft_wrap=True)
