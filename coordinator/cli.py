"""The fleet-coordinator command: run the daemon, ask its store, take a trained model out."""

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from coordinator import settings as coordinator_settings
from coordinator.events import Event, as_json
from coordinator.key_options import add_config, add_keys
from coordinator.reports import Reports, RoundDetail
from coordinator.sample import SAMPLE
from protocol.command import EXIT_CODES, Parser, run_command
from protocol.errors import ConfigurationError, NothingToDoError
from protocol.records import write_record
from sparse.codecs import parse_codec

EPILOG = f"""\
examples:
  fleet-coordinator config sample > coordinator.toml      # every key, with what it means
  fleet-coordinator plan --config coordinator.toml        # what each codec would cost a device
  fleet-coordinator token --config coordinator.toml       # for a device to enrol with
  fleet-coordinator run --config coordinator.toml         # train until the target or the last round
  fleet-coordinator status --config coordinator.toml      # while it runs or not
  fleet-coordinator export-model --config coordinator.toml --out inference.onnx
  fleet-coordinator replay --config coordinator.toml      # every bit of every version, from the updates that made it

{EXIT_CODES}
"""

# Of a table in a file or a pipe.
WIDTH = 250


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fleet-coordinator",
        description="Plans rounds, checks and folds updates, keeps every model version.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], text: str, example: str = ""
    ) -> argparse.ArgumentParser:
        words = " ".join(word for word in (name, example, "--config coordinator.toml") if word)
        added = commands.add_parser(name, help=text, epilog=f"example: fleet-coordinator {words}")
        add_config(added)
        added.add_argument("--json", action="store_true", help="JSON instead of text")
        added.set_defaults(command=command)
        return added

    run = add("run", _run, "run the daemon; stops on Ctrl-C or SIGTERM")
    run.add_argument("--exit-when-finished", action="store_true", help="end after the last round")
    add("status", _status, "the run at a glance")
    _add_devices(add("devices", _devices, "every device, with its identity, bytes and counts"))
    _add_token(add("token", _token, "print tokens that devices enrol with, each once"))
    add_keys(add("keys", _keys, "the keys that sign bundles and messages"), _rotate)
    add("rounds", _rounds, "every committed round")
    add("round", _round, "one round, or several: its devices, rejections and decisions", "12").add_argument(
        "numbers", type=int, nargs="+", metavar="N", help="with --json a line for each"
    )
    _add_plan(add("plan", _plan, "what each codec will cost a device, before it is used"))
    add("costs", _costs, "what model and training cost: parameters, files, measured steps, memory, bytes")
    export = add("export-model", _export_model, "write a trained model as an inference ONNX file", "--out model.onnx")
    export.add_argument("--out", type=Path, required=True, help="file to write; compressed if it ends in .gz")
    export.add_argument("--version", type=int, help="model version (default: the newest)")
    export.add_argument("--dense", action="store_true", help="with what the mask leaves out, as nobody tried it")
    evaluate = add(
        "evaluate-model", _evaluate_model, "run an inference ONNX file on the held-out data", "--model model.onnx"
    )
    evaluate.add_argument("--model", type=Path, required=True, help="file written by export-model")

    _add_replay(add("replay", _replay, "fold every kept round again and report the first bit that differs"))
    lost = "--round 12 --device kitchen-pi --reason 'its disk died'"
    discard = add(
        "discard", _discard, "give up one accepted update whose payload is lost; stop the coordinator first", lost
    )
    discard.add_argument("--round", type=int, required=True, metavar="N")
    discard.add_argument("--device", required=True)
    discard.add_argument("--reason", required=True, metavar="TEXT", help="kept with the update, and shown by round")

    config = commands.add_parser("config", help="about the configuration file")
    actions = config.add_subparsers(required=True, metavar="ACTION")
    sample = actions.add_parser(
        "sample",
        help="print a configuration with every key",
        epilog="example: fleet-coordinator config sample > coordinator.toml",
    )
    sample.set_defaults(command=_sample)
    return parser


def _add_plan(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "--codec", action="append", metavar="SPEC", help="again for more (default: what is configured, and auto)"
    )
    plan.add_argument("--devices", type=int, metavar="N", help="in the fleet (default: rounds.devices)")
    plan.add_argument("--link-kbit", type=float, default=1000.0, metavar="K", help="kbit a second (default: 1000)")
    plan.add_argument("--round-s", type=float, metavar="S", help="of a round (default: as measured, or deadline_s)")


def _add_replay(replay: argparse.ArgumentParser) -> None:
    replay.add_argument("--run", metavar="RUN", help="its name, as status says it; another one is refused")
    replay.add_argument("--without", metavar="DEVICE", help="the history as it would have been without its updates")
    replay.add_argument("--out", type=Path, help="with --without: an inference file to write; compressed if .gz")


def _add_devices(devices: argparse.ArgumentParser) -> None:
    actions = devices.add_subparsers(metavar="ACTION", help="none: list them")
    revoke = actions.add_parser(
        "revoke",
        help="take a device's identity away, from its next message on",
        epilog="example: fleet-coordinator devices revoke kitchen-pi --config coordinator.toml",
    )
    revoke.add_argument("device", help="as fleet-coordinator devices lists it")
    add_config(revoke, again=True)
    revoke.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="JSON instead of text")
    revoke.set_defaults(command=_revoke)


def _add_token(token: argparse.ArgumentParser) -> None:
    token.add_argument("--count", type=int, default=1, metavar="N", help="how many, one a device (default: 1)")
    token.add_argument("--ttl", default="1h", metavar="TIME", help="how long they hold: 30m, 1h, 2d (default: 1h)")
    token.add_argument("--device", metavar="ID", help="for this device alone, which may have been enrolled before")


def _run(options: argparse.Namespace) -> int:
    # The daemon's modules are loaded for the daemon alone, so that the questions below are answered quickly.
    from coordinator.process import run

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = coordinator_settings.load(options.config)
    emit = _print_json_event if options.json else _print_event
    return run(settings, emit, exit_when_finished=options.exit_when_finished)


def _status(options: argparse.Namespace) -> int:
    wanted = coordinator_settings.load(options.config).rounds
    with _reports(options) as reports:
        status = reports.status(wanted)
    if options.json:
        _print_json(write_record(status))
        return 0
    said = [(f, getattr(status, f.name)) for f in fields(status)]
    _table("status", ["", "value"], [[f.name, _text(v)] for f, v in said if v is not None or f.default is MISSING])
    return 0


# Of devices: how they train and what that costs, apart from whether they are there and well.
_WORK = frozenset({"backend", "variant", "codec", "examples", "last_loss", "step_ms"}) | {
    f"bytes_{what}" for what in ("up", "down", "today")
}


def _devices(options: argparse.Namespace) -> int:
    from coordinator.trust_commands import with_identities

    settings = coordinator_settings.load(options.config)
    with Reports(Path(settings.state)) as reports:
        rows = with_identities(reports.devices(), Path(settings.trust.folder))
        return _rows(options, "devices", rows, _WORK)


def _revoke(options: argparse.Namespace) -> int:
    from coordinator.trust_commands import revoke

    return revoke(coordinator_settings.load(options.config), options.device, as_json=options.json)


def _keys(options: argparse.Namespace) -> int:
    from coordinator.key_commands import listed

    return _rows(options, "keys", listed(coordinator_settings.load(options.config)))


def _rotate(options: argparse.Namespace) -> int:
    from coordinator.key_commands import print_rotated, rotate

    return print_rotated(rotate(coordinator_settings.load(options.config), options), as_json=options.json)


def _token(options: argparse.Namespace) -> int:
    from coordinator.trust_commands import token

    settings = coordinator_settings.load(options.config)
    return token(settings, options.count, options.ttl, options.device, as_json=options.json)


def _rounds(options: argparse.Namespace) -> int:
    with _reports(options) as reports:
        return _rows(options, "rounds", reports.rounds(), _ON_DEVICES)


def _round(options: argparse.Namespace) -> int:
    with _reports(options) as reports:
        details = [reports.round(number) for number in options.numbers]
    for detail in details:
        _print_round(options, detail)
    return 0


def _print_round(options: argparse.Namespace, detail: RoundDetail) -> None:
    if options.json:
        _print_json(write_record(detail))
        return
    print(f"round {detail.round}: {detail.state}, from version {detail.base_version}")
    if detail.figures is not None:
        _rows(options, "figures", (detail.figures,), _ON_DEVICES)
    _rows(options, "devices", detail.devices)
    if detail.late:
        _rows(options, "late", detail.late)
    if detail.rejections:
        _rows(options, "rejections", detail.rejections)
    for decision in detail.decisions:
        print(decision)


def _costs(options: argparse.Namespace) -> int:
    from coordinator.costs import costs
    from protocol.bundle import open_bundle

    settings = coordinator_settings.load(options.config)
    with Reports(Path(settings.state)) as reports:
        found = costs(reports, open_bundle(Path(settings.bundle)))
    if options.json:
        _print_json(write_record(found))
        return 0
    _rows(options, "models", found.models)
    _rows(options, "training", found.training)
    print(f"version {found.version}; bytes of all devices: {found.bytes_up:,} up, {found.bytes_down:,} down")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from coordinator.forecast import codecs_to_compare, forecast
    from protocol.bundle import open_bundle

    settings = coordinator_settings.load(options.config)
    devices = settings.rounds.devices if options.devices is None else options.devices
    if devices < 1:
        raise ConfigurationError(f"--devices: {devices} must be at least 1")
    _check_positive("--link-kbit", options.link_kbit)
    measured = _measured_round_s(Path(settings.state))
    round_s = options.round_s or measured or settings.rounds.deadline_s
    _check_positive("--round-s", round_s)
    bundle = open_bundle(Path(settings.bundle))
    for codec in options.codec or ():
        try:
            parse_codec(codec)
        except ValueError as error:
            raise ConfigurationError(f"--codec: {error}") from None
    codecs = options.codec or codecs_to_compare(settings, bundle)
    rows = forecast(settings, bundle, codecs, devices, round_s, options.link_kbit * 125.0)
    budget = settings.limits.device_bytes_per_day
    origin = "given" if options.round_s else "measured" if measured else "rounds.deadline_s, assumed"
    if options.json:
        facts = {"round_s": round_s, "round_s_is": origin, "devices": devices, "link_kbit": options.link_kbit}
        _print_json(facts | {"device_bytes_per_day": budget, "plan": [write_record(row) for row in rows]})
        return 0
    _rows(options, "plan", rows)
    print(f"rounds of {round_s:.4g} s ({origin}), {devices} devices, a link of {options.link_kbit:g} kbit/s")
    print(f"device_bytes_per_day = {budget}" if budget else "no device_bytes_per_day is set")
    return 0


def _measured_round_s(state: Path) -> float | None:
    """The median of the rounds so far, None before the first."""
    try:
        with Reports(state) as reports:
            seconds = [row.seconds for row in reports.rounds() if row.round]
    except NothingToDoError:
        return None
    return median(seconds) if seconds else None


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name}: {value} must be a finite number above 0")


def _export_model(options: argparse.Namespace) -> int:
    from coordinator.deployment import compressed, inference_file, read_deployable
    from protocol.bundle import open_bundle
    from protocol.disk import write_durably

    settings = coordinator_settings.load(options.config)
    with Reports(Path(settings.state)) as reports:
        model = reports.model(options.version)
    bundle, read = open_bundle(Path(settings.bundle)), read_deployable(model)
    data = inference_file(bundle, read.dense if options.dense else read.model)
    if options.out.suffix == ".gz":
        data = compressed(data)
    try:
        write_durably(options.out, data)
    except OSError as error:
        raise ConfigurationError(f"--out: {options.out} cannot be written ({error.strerror})") from None
    if options.json:
        _print_json({"version": model.version, "path": str(options.out), "bytes": len(data)})
    else:
        print(f"wrote {options.out}: version {model.version}, {len(data)} bytes")
    return 0


def _evaluate_model(options: argparse.Namespace) -> int:
    from coordinator.evaluate import load_data
    from edge_agent.runtimes.inference import evaluate_inference
    from protocol.bundle import open_bundle

    settings = coordinator_settings.load(options.config)
    if settings.evaluation.data is None:
        raise ConfigurationError(f"{options.config}: evaluation.data: is not set; name the held-out data")
    bundle = open_bundle(Path(settings.bundle))
    data = load_data(Path(settings.evaluation.data), bundle.manifest)
    metrics = evaluate_inference(options.model, bundle.manifest, data, settings.evaluation.batch_size)
    if options.json:
        _print_json({"model": str(options.model), "examples": len(data), "metrics": dict(metrics)})
    else:
        _table(
            f"{options.model}, {len(data)} examples", ["metric", "value"], [[k, _text(v)] for k, v in metrics.items()]
        )
    return 0


def _replay(options: argparse.Namespace) -> int:
    from coordinator.replay_command import run

    return run(options)


def _discard(options: argparse.Namespace) -> int:
    from coordinator.give_up import run

    return run(options)


def _sample(_: argparse.Namespace) -> int:
    print(SAMPLE, end="")
    return 0


def _reports(options: argparse.Namespace) -> Reports:
    return Reports(Path(coordinator_settings.load(options.config).state))


# Of rounds: what devices say of models on their own data, and how far theirs are apart.
_ON_DEVICES = frozenset(
    {f"{of}_{which}" for of in ("device", "personal", "mixed", "own") for which in ("mean", "worst")}
)
_ON_DEVICES |= {"distance"}

# Columns of which a table shows nothing where nobody uses them.
_SELDOM = _ON_DEVICES | {"distilled"}


def _rows(options: argparse.Namespace, name: str, rows: tuple[Any, ...], apart: frozenset[str] = frozenset()) -> int:
    """Prints rows. apart: columns for a second table, where one would be wider than a terminal."""
    if options.json:
        _print_json({name: [write_record(row) for row in rows]})
        return 0
    if not rows:
        print(f"no {name} yet")
        return 0
    unused = {n for n in _SELDOM if all(getattr(row, n, None) is None for row in rows)}
    names = [f.name for f in fields(rows[0]) if f.name not in unused]
    _table(name, *_columns([n for n in names if n not in apart], rows))
    if not apart.isdisjoint(names):
        also = "on devices" if apart is _ON_DEVICES else "their work"
        _table(f"{name}, {also}", *_columns([n for n in names if n in apart or n == names[0]], rows))
    return 0


def _columns(names: list[str], rows: tuple[Any, ...]) -> tuple[list[str], list[list[str]]]:
    return names, [[_cell(n, getattr(row, n)) for n in names] for row in rows]


_WORDS = frozenset({"device", "backend", "variant", "codec", "rests", "warning", "discarded", "identity", "phase"})
_WORDS |= {"reason", "detail", "metric", "model", ""}


def _table(title: str, names: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=name != "detail")
    for row in rows:
        table.add_row(*row)
    # A file or a pipe has no width to fit into.
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def _cell(name: str, value: object) -> str:
    if name == "last_seen_s" and isinstance(value, float):
        return datetime.fromtimestamp(value).isoformat(" ", "seconds")
    if name in ("identity_ends_s", "expires_s") and isinstance(value, float):
        return datetime.fromtimestamp(value).date().isoformat()
    return _text(value)


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_event(event: Event) -> None:
    said = as_json(event)
    name = said.pop("event")
    print(f"{name} " + " ".join(f"{key}={_text(value)}" for key, value in said.items()), flush=True)


def _print_json_event(event: Event) -> None:
    _print_json(as_json(event))


def _print_json(value: object) -> None:
    print(json.dumps(_finite(value), allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    """JSON knows no NaN: what is not finite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
