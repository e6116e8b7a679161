"""The command `fleet-emulate report`: what a fleet's record says, on screen and as a page of HTML."""

import argparse
import json
from pathlib import Path

from protocol.command import Parser
from protocol.errors import ConfigurationError, SparsefleetError

PAGE = "report.html"
_RECORD = "record.json"
REPORT_EPILOG = """\
examples:
  fleet-emulate report fleet-mixed
  fleet-emulate report fleet-mixed/record.json --out mixed.html --json
"""


def add_report_command(commands: "argparse._SubParsersAction[Parser]") -> None:
    report = commands.add_parser(
        "report",
        help="say what became of a fleet, and write its report again",
        epilog=REPORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_argument(
        "place",
        nargs="?",
        type=Path,
        metavar="DIR|record.json",
        help="a fleet's folder or record (default: the latest record here or in a folder here)",
    )
    report.add_argument("--out", type=Path, metavar="FILE", help=f"the page (default: {PAGE} beside the record)")
    report.add_argument("--json", action="store_true", help="the facts as one JSON object")
    report.set_defaults(command=_report)


def show_report(place: Path, out: Path | None = None, *, as_json: bool = False) -> int:
    """Writes the page of a fleet's folder or record, and says its facts on standard output."""
    # Imported here so that --help and mistakes answer at once.
    from rich.console import Console
    from rich.text import Text

    from devices.fleet_report import read_record, render_fleet
    from devices.fleet_report.facts import facts, facts_table
    from devices.fleet_report.outcome import concerns, outcome
    from devices.text import plain_text

    record = read_record(place)
    page = out or (place if place.is_dir() else place.parent) / PAGE
    try:
        page.write_text(render_fleet(record), encoding="utf-8")
    except OSError as error:
        raise SparsefleetError(f"{page}: cannot be written ({error.strerror}); name another file by --out") from None
    if as_json:
        print(json.dumps({**facts(record), "report": str(page)}, allow_nan=False))
        return 0
    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width that rows must be broken for.
        console.width = 200
    if record.devices:
        console.print(facts_table(record))
    # Last, for that is what still shows after hundreds of rows.
    console.print(Text(plain_text(outcome(record)[1]), style="bold"))
    for concern in concerns(record):
        console.print(Text(f"! {concern}", style="yellow"))
    console.print(Text(f"report: {page}"), soft_wrap=True)
    return 0


def _report(options: argparse.Namespace) -> int:
    return show_report(options.place or _latest(Path()), options.out, as_json=options.json)


def _latest(folder: Path) -> Path:
    found = [path for path in (folder / _RECORD, *folder.glob(f"*/{_RECORD}")) if path.is_file()]
    if not found:
        raise ConfigurationError(
            f"no {_RECORD} is here or in a folder here; name the folder that fleet-emulate up filled"
        )
    return max(found, key=lambda path: path.stat().st_mtime)
