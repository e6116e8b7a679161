"""The demo on screen: a spinner while something takes time, a line a round, a table at the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from devices.facts import DeviceJoined, Event, Finished, Listening, RoundCommitted, RoundOpened, UpdateRejected
from devices.report import Report
from devices.round_line import HEADING, round_line
from devices.text import MISSING, bytes_text, decimal_text, duration_text, number_text, percent_text


class Screen:
    """Shows stages and events. It has no thread: `tick` turns the spinner, so whoever waits calls it."""

    def __init__(self, console: Console, rounds: int) -> None:
        self.console = console
        self.rounds = rounds
        self._live: Live | None = None
        self._spinner = Spinner("dots")
        self._headed = False
        self._joined: set[str] = set()

    def tick(self) -> None:
        """To be called often: turns the spinner."""
        if self._live is not None:
            self._live.refresh()

    def say(self, text: str) -> None:
        """One line, of rich markup."""
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[list[str]]:
        """A spinner beside `doing`; then one line: the stage, what was put into the list, and the seconds."""
        began, result = time.monotonic(), list[str]()
        self._doing(doing)
        with Live(self._spinner, console=self.console, auto_refresh=False, transient=True) as self._live:
            self.tick()
            try:
                yield result
            finally:
                self._live = None
        if result:
            seconds = duration_text(time.monotonic() - began)
            self.say(f"[green]✓[/] {name:<8} {escape(' '.join(result))}  [dim]{seconds}[/]")

    def show(self, event: Event) -> None:
        """What the coordinator has just told."""
        match event:
            case Listening():
                self.say(f"[green]✓[/] {'broker':<8} {escape(event.broker)} [dim]{escape(event.url)}[/]")
                self._doing("waiting for devices")
            case DeviceJoined():
                self._joined.add(event.device)
                self._doing(f"devices joined: {len(self._joined)}")
            case RoundOpened():
                self._doing(f"round {event.round}: {event.devices} devices are training")
            case RoundCommitted():
                self._show_round(event)
            case UpdateRejected():
                self.say(
                    f"[yellow]! {escape(event.device)} rejected, {escape(event.reason)}: {escape(event.detail)}[/]"
                )
            case Finished():
                self._doing("closing")

    def conclude(self, report: Report, report_path: str, model_path: str) -> None:
        """The table of devices, then what was reached and where the files are."""
        self.console.print()
        self.console.print(_devices_table(report))
        up, down = bytes_text(report.bytes_up), bytes_text(report.bytes_down)
        seconds = duration_text(sum(r.seconds for r in report.rounds))
        self.say(f"\n{len(report.rounds)} rounds in {seconds}: {up} up by {escape(report.codec)}, {down} down")
        if report.evaluation is not None:
            accuracy = f"[bold]{percent_text(report.evaluation.accuracy)}[/] of {report.evaluation.examples}"
            self.say(
                f"model   [cyan]{escape(model_path)}[/]: {accuracy} held-out examples, in a plain onnxruntime session"
            )
        self.say(f"report  [cyan]{escape(report_path)}[/]")
        target = percent_text(report.target_accuracy)
        if report.reached:
            self.say(f"[bold green]Target of {target} reached.[/]")
        else:
            self.say(
                f"[bold red]Target of {target} not reached in {len(report.rounds)} rounds.[/]"
                " More rounds (--rounds) or a lower target (--target-accuracy) may do."
            )

    def _show_round(self, event: RoundCommitted) -> None:
        if not self._headed:
            self._headed = True
            self.say(f"[dim]{HEADING}[/]")
        self.say(round_line(event, self.rounds))

    def _doing(self, text: str) -> None:
        self._spinner.update(text=escape(text))
        self.tick()


def _devices_table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("device", no_wrap=True)
    # Together with their padding these must fit into 80 columns.
    for name in ("examples", "accepted", "up", "down", "loss", "ms/step"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("backend", no_wrap=True)
    for d in report.devices:
        table.add_row(
            d.device,
            number_text(d.examples),
            f"{d.accepted} of {d.accepted + d.rejected}",
            bytes_text(d.bytes_up),
            bytes_text(d.bytes_down),
            decimal_text(d.last_loss, 3),
            decimal_text(d.step_ms, 2),
            escape(d.backend or MISSING),
        )
    return table
