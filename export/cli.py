"""`fleet-export`: a PyTorch model in, a bundle out."""

import argparse
import dataclasses
import glob
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edge_agent.runtimes.portable import NAME as PORTABLE
from export import prune_command, sign, verify
from export.files import MADE
from protocol.bundle import open_bundle
from protocol.errors import ConfigurationError, SparsefleetError
from protocol.layout import layout_of
from protocol.manifest import Manifest
from protocol.width import narrowed

EXAMPLES = """\
examples:
  fleet-export examples/digits_cnn.py:digits --out bundles/digits
  fleet-export mypackage.models:classifier --out bundles/classifier --model-version 2 --json
  fleet-export examples/digits_cnn.py:digits --out bundles/digits --train-last 1 --freeze 'features.*'
  fleet-export examples/digits_cnn.py:digits --out bundles/digits --backends portable
  fleet-export examples/digits_cnn.py:digits --out bundles/half --keep-channels 0.5
  fleet-export examples/digits_cnn.py:digits --out bundles/sparse --sparsity 0.9
  fleet-export examples/digits_cnn.py:digits --out bundles/digits --tiers 1.0,0.5,0.25
  fleet-export examples/digits_cnn.py:digits --out bundles/digits --distillation bundles/digits-distillation
  fleet-export show bundles/digits
  fleet-export verify bundles/digits
  fleet-export plan bundles/digits --device kitchen-pi.json
  fleet-export deploy bundles/sparse --out model.onnx
  fleet-export sign bundles/digits --key release.key --fleet home --version 3

FUNCTION takes no arguments and returns an export.TrainingSpec. A bundle is written whole or not at all, and only after
one step and three optimiser steps in ONNX Runtime agree with torch.
exit codes: 0 ok, 1 failure, 3 the model, the options or the folder at hand are at fault
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        self.exit(ConfigurationError.exit_code, f"fleet-export: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["show"]:
            return _show(_show_parser().parse_args(words[1:]))
        if words[:1] == ["verify"]:
            return verify.run(verify.options_of(words[1:]))
        if words[:1] == ["plan"]:
            # It imports onnx.
            from export.plan import command as plan

            return plan.run(plan.options_of(words[1:]))
        if words[:1] == ["sign"]:
            return sign.run(sign.options_of(words[1:]))
        if words[:1] == ["release-key"]:
            return sign.make_key(sign.key_options_of(words[1:]))
        if words[:1] == ["deploy"]:
            # Likewise.
            from export import deploy

            return deploy.run(deploy.options_of(words[1:]))
        return _export(_parser().parse_args(words))
    except SparsefleetError as error:
        print(f"fleet-export: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fleet-export: interrupted, nothing was written", file=sys.stderr)
        return SparsefleetError.exit_code


def unfinished(argv: Sequence[str] | None, process: int) -> list[Path]:
    """Folders that an export by this process left when it died."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["show"], ["verify"], ["plan"], ["deploy"], ["sign"], ["release-key"]):
        return []
    options = _parser().parse_args(words)
    outs: list[Path] = [options.out, *([options.distillation] if options.distillation is not None else [])]
    # As export.bundle names them.
    return [path for out in outs for path in out.parent.glob(f".{glob.escape(out.name)}.{process}.*")]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fleet-export",
        description="Turns a PyTorch model into a bundle that devices train without torch.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="FILE.py:FUNCTION", help="the function that returns a TrainingSpec")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the folder to write")
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there already")
    parser.add_argument("--name", metavar="N", help="the model's name (default: the spec's line, or the function)")
    parser.add_argument("--model-version", type=int, metavar="V", help="the model's version (default: the spec's)")
    parser.add_argument(
        "--train-last",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="add a variant train-last-N, which trains the last N layers that hold parameters; may be repeated",
    )
    parser.add_argument(
        "--freeze",
        action="append",
        default=[],
        metavar="PATTERN",
        help="add a variant freeze, which leaves parameters of these names as they are, as in 'backbone.*'; "
        "all patterns given are one variant",
    )
    prune_command.add_options(parser)
    parser.add_argument(
        "--tiers",
        type=_shares,
        default=(),
        metavar="SHARES",
        help="comma-separated, as in 1.0,0.5,0.25: add a variant tier-050 with half of all channels, and so on, for "
        "slower devices; 1.0 is the variant full",
    )
    parser.add_argument(
        "--distillation",
        type=Path,
        metavar="FOLDER",
        help="write a second bundle of the same model as it learns from others' outputs, for the coordinator's "
        "[distillation]",
    )
    parser.add_argument(
        "--backends",
        type=_backends,
        default=MADE,
        metavar="NAMES",
        help=f"comma-separated, of {', '.join(MADE)} (default: both, the second where it covers the model); "
        f"{PORTABLE} is always made",
    )
    parser.add_argument("--json", action="store_true", help="print the facts as one JSON object")
    return parser


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of shares; write them as in 1.0,0.5,0.25") from None


def _backends(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in MADE:
            raise argparse.ArgumentTypeError(f"{name!r} is not one that is made; use {' or '.join(MADE)}")
    return names


def _show_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fleet-export show",
        description="Checks a bundle's files and prints what it holds.",
        epilog="example: fleet-export show bundles/digits --json",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--json", action="store_true", help="print the facts as one JSON object")
    return parser


def _export(options: argparse.Namespace) -> int:
    # The imports below bring torch: --help, show and wrong options need not wait for it.
    started = time.monotonic()
    # This very stream: while torch is kept quiet, sys.stderr is another.
    console = Console(file=sys.stderr)
    if options.distillation is not None and options.distillation.resolve() == options.out.resolve():
        raise ConfigurationError(f"--distillation: {options.distillation} is --out too; name another folder")
    with console.status("importing torch") as status:
        from export.bundle import check_out, write_bundle
        from export.distillation import distillation_line, distillation_spec
        from export.loading import load_spec
        from export.spec import check_line, line_from

        status.update(f"calling {options.target}")
        spec, function = load_spec(options.target)
        if options.model_version is not None:
            spec = dataclasses.replace(spec, version=options.model_version)
        line = check_line(options.name) if options.name else spec.line or line_from(function)
        spec, mask, pruned = prune_command.pruned(spec, options, status.update)
        student = None if options.distillation is None else distillation_spec(spec)
        if student is not None:
            check_out(options.distillation, force=options.force)
        manifest = write_bundle(
            spec,
            options.out,
            line=line,
            force=options.force,
            backends=options.backends,
            train_last=options.train_last,
            freeze=options.freeze,
            mask=mask,
            tiers=options.tiers,
            report=status.update,
        )
        if student is not None:
            write_bundle(
                student,
                options.distillation,
                line=distillation_line(line),
                force=options.force,
                backends=(PORTABLE,),
                report=lambda stage: status.update(f"for distillation: {stage}"),
            )
    _print(options.out, manifest, options.json, time.monotonic() - started, pruned)
    return 0


def _show(options: argparse.Namespace) -> int:
    _print(options.bundle, open_bundle(options.bundle).manifest, options.json, None)
    return 0


def _print(
    root: Path, manifest: Manifest, as_json: bool, seconds: float | None, pruned: Mapping[str, Any] | None = None
) -> None:
    """pruned: what the export was told to prune, as prune_command says it."""
    sparsity = prune_command.sparsity_facts(root, manifest)
    if as_json:
        print(json.dumps({**_facts(root, manifest, seconds), **sparsity, **(pruned or {})}, indent=1))
        return
    console = Console()
    if seconds is not None:
        console.print(f"{root}: {manifest.line} version {manifest.version}, in {seconds:.1f} s", highlight=False)
    summary = _summary(manifest)
    for what, value in (*prune_command.rows(pruned or {}), *prune_command.rows(sparsity)):
        summary.add_row(what, value)
    console.print(summary)
    console.print(_files(manifest))


def _facts(root: Path, manifest: Manifest, seconds: float | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "bundle": str(root),
        "line": manifest.line,
        "version": manifest.version,
        "tensors": len(manifest.tensors),
        "parameters": manifest.parameters,
        "buffers": manifest.buffers,
        "frozen": manifest.count("frozen"),
        "prunable": sum(t.size for t in manifest.tensors if t.prunable),
        "loss": manifest.loss,
        "metrics": list(manifest.metrics),
        "bytes": sum(f.size for f in manifest.files),
        "files": {f.path: f.size for f in manifest.files},
        "variants": {
            v.name: {
                "trained": layout_of(narrowed(manifest, v.name), v.name).n_parameters,
                "backends": sorted(v.backends),
                "frozen": list(v.frozen),
                "frozen_buffers": list(v.frozen_buffers),
                "channels": dict(v.keep),
                "multiply_adds": v.load.multiply_adds if v.load else None,
            }
            for v in manifest.variants
        },
        "left_out": dict(manifest.left_out),
        "parity": {name: dataclasses.asdict(p) for name, p in manifest.parity.items()},
    }
    return facts if seconds is None else {**facts, "seconds": round(seconds, 2)}


def _summary(manifest: Manifest) -> Table:
    table = Table("what", "value", title=f"{manifest.line} version {manifest.version}", title_justify="left")
    table.add_row("tensors", str(len(manifest.tensors)))
    for kind, size in (("parameters", manifest.parameters), ("running statistics", manifest.buffers)):
        table.add_row(kind, f"{size:,}")
    table.add_row("prunable", f"{sum(t.size for t in manifest.tensors if t.prunable):,}")
    table.add_row("frozen", f"{manifest.count('frozen'):,}")
    for title, ports in (("inputs", manifest.inputs), ("targets", manifest.targets), ("outputs", manifest.outputs)):
        table.add_row(title, ", ".join(f"{p.name} {p.dtype}{list(p.shape)}" for p in ports))
    table.add_row("loss, metrics", ", ".join((manifest.loss, *manifest.metrics)))
    for variant in manifest.variants:
        trained = layout_of(narrowed(manifest, variant.name), variant.name).n_parameters
        backends, load = ", ".join(variant.backends), variant.load
        asks = f"; {load.multiply_adds:,} multiply-adds a step and example" if load else ""
        table.add_row(f"variant {variant.name}", f"trains {trained:,} of {manifest.parameters:,} with {backends}{asks}")
    for name, p in manifest.parity.items():
        figures = (
            f"loss {p.loss:.1e}, gradient {p.gradient:.1e}, statistics {p.buffers:.1e}, 3 steps {p.three_steps:.1e}"
        )
        table.add_row(f"parity, {name}", f"{figures} (tolerance {p.tolerance:.0e}, torch {p.torch})")
    for name, reason in manifest.left_out.items():
        table.add_row(f"without {name}", reason)
    return table


def _files(manifest: Manifest) -> Table:
    table = Table("file", "bytes")
    table.columns[1].justify = "right"
    for entry in manifest.files:
        table.add_row(entry.path, f"{entry.size:,}")
    table.add_row("all", f"{sum(f.size for f in manifest.files):,}", style="bold")
    return table
