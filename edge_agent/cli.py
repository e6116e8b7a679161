"""The edge-agent command: run the daemon, train offline, show a sample configuration."""

import argparse
from pathlib import Path

from edge_agent import check_command, config_command, diag_command, outbox_command, personal_command, status_command
from edge_agent.options import add_config, config_to_make
from protocol.command import EXIT_CODES, Parser, run_command

EPILOG = f"""\
examples:
  edge-agent config sample > agent.toml     # every key, with its default
  edge-agent enroll --url server:8884 --token TOKEN --device kitchen-pi    # once, before the first run
  edge-agent run --config agent.toml        # join the fleet and train when asked
  edge-agent train --bundle bundle --data shard.npz --steps 20
  edge-agent check                          # is this device fit to work? what is to be done?
  edge-agent status                         # what does the agent do?
  edge-agent check --bundle bundle          # does this device compute what torch computes?
  edge-agent calibrate --out device.json    # what fleet-export plan must know of this device

{EXIT_CODES}
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    return run_command(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="edge-agent",
        description="The device's end of a training fleet: trains on local data, keeps its updates, sends them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="join the fleet and train when asked; stops on Ctrl-C or SIGTERM",
        epilog="example: edge-agent run --config agent.toml",
    )
    add_config(run)
    run.add_argument("--backend", help="in place of the configuration's; auto, or a backend's name")
    run.set_defaults(command=_run)

    _add_enroll(commands)
    _add_train(commands)

    check_command.add_parser(commands)

    calibrate = commands.add_parser(
        "calibrate",
        help="measure this device in a few seconds, for fleet-export plan",
        epilog="example: edge-agent calibrate --out kitchen-pi.json",
    )
    calibrate.add_argument("--out", type=Path, metavar="FILE", help="write the profile there")
    calibrate.add_argument("--name", help="of the profile (default: this machine's)")
    calibrate.add_argument("--threads", type=int, default=1, help="of one training step (default: 1)")
    calibrate.add_argument("--json", action="store_true", help="print the profile itself instead of text")
    calibrate.set_defaults(command=_calibrate)

    _add_model(commands)
    config_command.add_parser(commands)
    status_command.add_parser(commands)
    outbox_command.add_parser(commands)
    personal_command.add_parser(commands)
    diag_command.add_parser(commands)
    return parser


def _add_enroll(commands: "argparse._SubParsersAction[Parser]") -> None:
    enroll = commands.add_parser(
        "enroll",
        help="get an identity in a fleet: makes the key here, and has it certified",
        epilog="""\
examples:
  edge-agent enroll --url server:8884 --token TOKEN --device kitchen-pi   # writes agent.toml if there is none
  edge-agent enroll --url server:8884 --token-file - < token              # no secret in the list of processes""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    enroll.add_argument("--url", required=True, metavar="HOST:PORT", help="where the coordinator enrols devices")
    given = enroll.add_mutually_exclusive_group(required=True)
    given.add_argument("--token", help="of fleet-coordinator token")
    given.add_argument("--token-file", type=Path, metavar="FILE", help="the token is in a file; - for standard input")
    enroll.add_argument("--device", metavar="ID", help="this device's name (default: the configuration's)")
    enroll.add_argument("--config", type=Path, default=config_to_make(), help="default: %(default)s; made if absent")
    enroll.add_argument(
        "--state", default="state", metavar="DIR", help="for the configuration if made (default: state)"
    )
    enroll.add_argument("--data", metavar="PATH", help="likewise: where this device's data is")
    enroll.add_argument("--json", action="store_true", help="one JSON object instead of text")
    enroll.set_defaults(command=_enroll)

    renew = commands.add_parser(
        "renew",
        help="get the next certificate; a running agent does so by itself",
        epilog="example: edge-agent renew --config agent.toml",
    )
    add_config(renew)
    renew.set_defaults(command=_renew)


def _add_model(commands: "argparse._SubParsersAction[Parser]") -> None:
    model = commands.add_parser(
        "model",
        help="the bundles in this device's slots: list, show, commit, rollback, retry",
        epilog="""\
examples:
  edge-agent model list
  edge-agent model show 3f1c --json
  edge-agent model rollback    # back to the bundle before; the present one is not tried again
exit codes: 0 ok, 1 failure, 2 nothing to do, 3 configuration""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = model.add_subparsers(required=True, metavar="ACTION")
    for name, does in (
        ("list", "every slot, with state, age and size"),
        ("show", "one slot, its bundle and what became of its trial"),
        ("commit", "end a trial well, by hand"),
        ("rollback", "go back to the bundle before; the present one fails, by hand"),
        ("retry", "forget that a bundle failed, so that it is tried again"),
    ):
        which = " 3f1c" if name in ("show", "retry") else ""
        action = actions.add_parser(name, help=does, epilog=f"example: edge-agent model {name}{which}")
        if name in ("show", "retry"):
            action.add_argument("name", metavar="DIGEST|VERSION", help="as list has it; the digest's first digits do")
        elif name == "commit":
            action.add_argument("name", nargs="?", metavar="DIGEST|VERSION", help="default: the one on trial")
        add_config(action)
        if name in ("list", "show"):
            action.add_argument("--json", action="store_true", help="one JSON object instead of text")
        action.set_defaults(command=_model, action=name)


def _add_train(commands: "argparse._SubParsersAction[Parser]") -> None:
    train = commands.add_parser(
        "train",
        help="train offline on this machine, with the same code",
        epilog="""\
examples:
  edge-agent train --bundle demo/bundle --data shard.npz --steps 20 --json
  edge-agent train --bundle b --data shard.npz --steps 2000 --sparsity 0.9 --method dpf --checkpoint run.ckpt""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--bundle", type=Path, required=True, help="folder made by fleet-export")
    train.add_argument("--data", required=True, help=".npz or .npy file, folder or glob, or module:function")
    train.add_argument("--inputs", default="x", help="names of the input arrays, comma-separated (default: x)")
    train.add_argument("--target", default="y", help="name of the target array (default: y)")
    train.add_argument("--steps", type=int, required=True, help="how many batches to train on")
    train.add_argument("--batch-size", type=int, default=32, help="examples a batch (default: 32)")
    train.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="default: sgd")
    train.add_argument("--learning-rate", type=float, default=0.01, help="default: 0.01")
    train.add_argument("--momentum", type=float, default=0.9, help="for sgd (default: 0.9)")
    train.add_argument("--weight-decay", type=float, default=0.0, help="default: 0")
    train.add_argument("--backend", default="auto", help="default: the first of the bundle's that runs here")
    train.add_argument("--variant", default="full", help="of the bundle, as fleet-export show lists (default: full)")
    train.add_argument("--threads", type=int, default=1, help="of one training step (default: 1)")
    train.add_argument("--seed", type=int, default=0, help="of the examples' order (default: 0)")
    train.add_argument(
        "--decay-at", default="", metavar="STEPS", help="a tenth of the rate after each, as in 1000,1500"
    )
    sparse = train.add_argument_group("sparsity (docs/sparsity.md)")
    sparse.add_argument("--sparsity", type=float, help="share of the prunable parameters to leave out, as 0.9")
    # Checked with the rule itself: naming them here would load NumPy before --help answers.
    sparse.add_argument("--method", help="dpf (default), rigl, set, gradual, one-shot or static")
    sparse.add_argument("--distribution", help="over tensors: global, uniform or erk (default: erk for rigl and set)")
    sparse.add_argument("--refresh-every", type=int, metavar="STEPS", help="between two masks (default: 16)")
    sparse.add_argument(
        "--sparsity-until", type=int, metavar="STEP", help="no new mask after it (default: three quarters of --steps)"
    )
    kept = train.add_argument_group("checkpoints")
    kept.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="go on from it if it is there; written at the end"
    )
    kept.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS", help="and so often (default: 100)")
    train.add_argument("--json", action="store_true", help="one JSON object instead of text")
    train.set_defaults(command=_train)


def _run(options: argparse.Namespace) -> int:
    # Imported here so that --help and mistakes answer at once.
    from edge_agent.daemon import run

    return run(options.config, options.backend)


def _enroll(options: argparse.Namespace) -> int:
    from edge_agent.enroll_command import run

    return run(options)


def _renew(options: argparse.Namespace) -> int:
    from edge_agent.enroll_command import renew_now

    return renew_now(options.config)


def _model(options: argparse.Namespace) -> int:
    from edge_agent.model_command import ACTIONS

    return ACTIONS[options.action](options)


def _train(options: argparse.Namespace) -> int:
    from edge_agent.offline import train

    return train(options)


def _calibrate(options: argparse.Namespace) -> int:
    from edge_agent.calibrate import run

    return run(options)
