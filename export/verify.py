"""`fleet-export verify`: torch's recorded steps, replayed on the machine at hand. Needs neither torch nor onnx."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_agent.runtimes.certificate import ALL, Replayed, by_tensor, certify, facts
from protocol.bundle import open_bundle
from protocol.command import Parser
from protocol.errors import ConfigurationError, SparsefleetError
from protocol.manifest import Manifest

EPILOG = """\
example: fleet-export verify bundles/digits --backend all --json
exit codes: 0 every backend that runs here agrees with torch, 1 one does not, 3 nothing could be replayed
"""


def options_of(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="fleet-export verify",
        description="Replays torch's recorded steps in every backend of a bundle that runs here, without torch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--backend", default=ALL, help=f"a backend's name (default: {ALL})")
    parser.add_argument("--variant", default="full", help="the variant to replay (default: full)")
    parser.add_argument("--json", action="store_true", help="print every difference as one JSON object")
    return parser.parse_args(list(words))


def run(options: argparse.Namespace) -> int:
    """Replays and prints; returns the exit code."""
    bundle = open_bundle(options.bundle)
    replayed = certify(bundle, options.backend, options.variant)
    ok = all(r.ok for r in replayed if r.ran)
    if options.json:
        said = {
            "bundle": str(options.bundle),
            "variant": options.variant,
            "ok": ok,
            "backends": list(map(facts, replayed)),
        }
        print(json.dumps(said, indent=1))
    else:
        console = Console()
        for one in replayed:
            _print(console, bundle.manifest, one)
    if not any(r.ran for r in replayed):
        reasons = "; ".join(f"{r.backend}: {r.absent}" for r in replayed)
        raise ConfigurationError(f"{options.bundle}: none of its backends runs here. {reasons}")
    return 0 if ok else SparsefleetError.exit_code


def _print(console: Console, manifest: Manifest, replayed: Replayed) -> None:
    name = f"{manifest.line} version {manifest.version}, {replayed.backend}"
    if not replayed.ran or replayed.failed:
        console.print(
            f"{name}: {'FAIL' if replayed.ran else 'not run'}: {replayed.absent or replayed.failed}", markup=False
        )
        return
    table = Table("tensor", "largest difference", "tolerance", "of", "", title=escape(name), title_justify="left")
    for row in by_tensor(replayed.rows):
        verdict = "pass" if row.ok else "[bold red]FAIL[/]"
        table.add_row(escape(row.tensor), f"{row.difference:.1e}", f"{row.tolerance:.0e}", row.kind, verdict)
    console.print(table)
    failed = sum(not row.ok for row in replayed.rows)
    console.print(f"{replayed.backend}: {'pass' if replayed.ok else 'FAIL'}, {failed} of {len(replayed.rows)} differ")
