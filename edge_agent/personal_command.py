"""`edge-agent personal show|deploy|predict`: the head that this device keeps to itself, for who uses the model here."""

import argparse
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.options import add_config, add_json
from protocol.command import Parser
from protocol.errors import BundleError, ConfigurationError, DataError, NothingToDoError

if TYPE_CHECKING:
    import numpy as np

    from edge_agent.personal.shelf import Personal
    from edge_agent.runtimes.engine import Array
    from protocol.manifest import Manifest

EPILOG = """\
examples:
  edge-agent personal show                              # how it does on what this device holds out
  edge-agent personal deploy -o model.onnx              # a model with this head in it, for any onnxruntime
  edge-agent personal predict --data x.npz -o y.npz     # both heads, mixed for each example as FedTHE does
deploy and predict need personal.deploy = true. Nothing here is ever sent.
exit codes: 0 ok, 2 there is no such head yet, 3 configuration"""

HEADS = ("mixed", "personal", "fleet")
# Of one prediction: bounds memory, not what comes of it.
_BATCH = 64


def add_parser(commands: "argparse._SubParsersAction[Parser]") -> None:
    personal = commands.add_parser(
        "personal",
        help="this device's own head: how it does, a model with it, and answers by it",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = personal.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, text: str, example: str = "") -> Parser:
        return actions.add_parser(name, help=text, epilog=f"example: edge-agent personal {name}{example}")

    show = add("show", "what it was made from, and its accuracies on what this device holds out", " --json")
    deploy = add("deploy", "write the newest model with this head in it", " -o model.onnx")
    predict = add("predict", "answer for examples, which need no labels", " --data x.npz -o y.npz")
    for action, command in ((show, _show), (deploy, _deploy), (predict, _predict)):
        add_config(action)
        add_json(action)
        action.set_defaults(command=command)
    deploy.add_argument("--head", choices=HEADS[1:], default="personal", help="default: personal")
    predict.add_argument("--head", choices=HEADS, default="mixed", help="default: mixed")
    predict.add_argument(
        "--data", type=Path, required=True, metavar="FILE", help=".npz with the model's inputs by name"
    )
    for action in (deploy, predict):
        action.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the file to write")


def _show(options: argparse.Namespace) -> int:
    from protocol.records import write_record

    _, personal = _kept(options.config)
    origin = personal.origin
    facts: dict[str, Any] = {"figures": None, "model": None, **write_record(origin)}
    facts["classes"], facts["features"] = personal.head.weight.shape
    if options.json:
        print(json.dumps(facts))
        return 0
    print(f"of version {origin.version}, by run {origin.run}, round {origin.round}; variant {origin.variant}")
    sizes = f"{facts['features']} features, {facts['classes']} classes"
    print(f"trained on {origin.trained_on} examples in {origin.steps} steps; {sizes}")
    print(f"a model that has it: {origin.model or 'none; set personal.deploy = true'}")
    if origin.figures is None:
        print("tried on nothing: set data.hold_out, as 0.1")
        return 0
    print(f"on {origin.figures.examples} examples that this device holds out, accuracy")
    for name in ("fleet", "personal", "mixed"):
        print(f"  {name:10}{getattr(origin.figures, name):.4f}")
    print(f"  the fleet's share in the mix: {origin.figures.share:.2f}")
    return 0


def _deploy(options: argparse.Namespace) -> int:
    from protocol.disk import write_durably

    state, personal = _kept(options.config)
    graph = _graph(state, personal)
    if options.head == "fleet":
        graph = _with_fleet(graph, personal, _manifest(state, personal))
    try:
        write_durably(options.out, graph)
    except OSError as error:
        raise ConfigurationError(f"-o: {options.out} cannot be written ({error.strerror})") from None
    said = {"out": str(options.out), "bytes": len(graph), "head": options.head, "version": personal.origin.version}
    print(json.dumps(said) if options.json else f"wrote {options.out}: version {said['version']}, {len(graph):,} bytes")
    return 0


def _predict(options: argparse.Namespace) -> int:
    import numpy as np

    state, personal = _kept(options.config)
    inputs = _inputs(options.data, _manifest(state, personal))
    scores, share = predicted(personal, _graph(state, personal), _manifest(state, personal), inputs, options.head)
    classes = scores.argmax(axis=1)
    try:
        with options.out.open("wb") as file:
            np.savez(file, scores=scores.astype(np.float32), classes=classes, fleet_share=share.astype(np.float32))
    except OSError as error:
        raise ConfigurationError(f"-o: {options.out} cannot be written ({error.strerror})") from None
    said = {"out": str(options.out), "examples": len(scores), "head": options.head, "fleet_share": float(share.mean())}
    print(json.dumps(said) if options.json else f"wrote {options.out}: scores and classes of {len(scores)} examples")
    return 0


def predicted(
    personal: "Personal", graph: bytes, manifest: "Manifest", inputs: "dict[str, Array]", head: str
) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """float64[n, classes] of scores, and float64[n], the fleet's share in each. graph: the deployed model. inputs: by
    their manifest names. The mix sees the examples in their order."""
    import numpy as np

    from edge_agent.personal.mixture import mixed
    from edge_agent.personal.study import RULE
    from edge_agent.runtimes.features import DeployedModel

    model = DeployedModel(personal.origin.model or "model", graph, manifest)
    scores, shares, history = [], [], None
    found: Any
    for start in range(0, len(next(iter(inputs.values()))), _BATCH):
        features = model.read({name: values[start : start + _BATCH] for name, values in inputs.items()})
        fleet, own = personal.fleet.scores(features), personal.head.scores(features)
        if head == "mixed":
            mix = mixed(fleet, own, features, personal.means, RULE, history)
            history, found, share = mix.history, mix.scores, mix.share
        else:
            found, share = (fleet, np.ones(len(fleet))) if head == "fleet" else (own, np.zeros(len(own)))
        scores.append(np.asarray(found, np.float64))
        shares.append(np.asarray(share, np.float64))
    return np.concatenate(scores), np.concatenate(shares)


def _kept(config: Path) -> "tuple[Path, Personal]":
    from edge_agent import settings as agent_settings
    from edge_agent.personal.shelf import kept
    from edge_agent.state_view import open_to_us

    settings = agent_settings.load(config)
    state = open_to_us(agent_settings.state_folder(settings, config))
    personal = kept(state)
    if personal is None:
        why = "the next task brings one" if settings.personal.enabled else "set personal.enabled = true"
        raise NothingToDoError(f"{state}: this device has no head of its own yet: {why}")
    return state, personal


def _graph(state: Path, personal: "Personal") -> bytes:
    from edge_agent.personal.shelf import FOLDER

    name = personal.origin.model
    if name is None:
        raise NothingToDoError(
            "no model with this head is kept: set personal.deploy = true, and the next task brings one (a width tier "
            "has none)"
        )
    try:
        return (state / FOLDER / name).read_bytes()
    except OSError as error:
        # A running agent has put the next one in place since.
        raise BundleError(f"{state / FOLDER / name}: cannot be read ({error.strerror}); try again") from None


def _manifest(state: Path, personal: "Personal") -> "Manifest":
    from edge_agent.slots import folder_of
    from protocol.manifest import MANIFEST_FILE, parse_manifest

    path = state / "bundles" / folder_of(bytes.fromhex(personal.origin.bundle)) / MANIFEST_FILE
    try:
        return parse_manifest(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); the next task brings another head") from None


def _with_fleet(graph: bytes, personal: "Personal", manifest: "Manifest") -> bytes:
    from edge_agent.runtimes.features import head_of

    place, _ = head_of("model", graph, manifest)
    out = bytearray(graph)
    for tensor, values in ((place.weight, personal.fleet.weight), (place.bias, personal.fleet.bias)):
        at, data = manifest.inference.places[tensor.name], values.astype("<f4").tobytes()
        out[at : at + len(data)] = data
    return bytes(out)


def _inputs(path: Path, manifest: "Manifest") -> "dict[str, Array]":
    """The arrays of a file by the model's names; of a model with one input the file's one array, whatever its name."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"--data: {path}: is no .npz file ({error})") from None
    ports = manifest.inputs
    if len(ports) == len(found) == 1:
        found = {ports[0].name: next(iter(found.values()))}
    for port in ports:
        values = found.get(port.name)
        if values is None or values.shape[1:] != port.shape or not len(values):
            there = "no such array" if values is None else str(values.shape)
            raise DataError(f"--data: {path}: {port.name}: {there} where {('examples', *port.shape)} is needed")
    return {port.name: found[port.name] for port in ports}
