"""`fleet-export deploy`: a trained model as one ONNX file, without its zeros where that makes it smaller."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from edge_agent.runtimes import safetensors
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.graph_check import INFERENCE, check_graph
from edge_agent.runtimes.parameters import initial_model, parse_parameters
from export.sparse_graph import without_zeros
from protocol.bundle import Bundle, deploy, open_bundle
from protocol.command import Parser
from protocol.disk import write_durably
from protocol.errors import BundleError, ConfigurationError
from sparse.masks import masked, unpack_mask

EPILOG = """\
examples:
  fleet-export deploy bundles/sparse --out model.onnx
  fleet-export deploy bundles/digits --out model.onnx --model run.ckpt --json

MODEL is a checkpoint of edge-agent train, a .safetensors file of tensors by name, an .onnx file of fleet-coordinator
export-model, or plain float32 values in the manifest's order. Without it the exported model itself is written.
exit codes: 0 ok, 3 the options or files at hand are at fault
"""


def options_of(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="fleet-export deploy",
        description="Writes a model as one ONNX file that any onnxruntime runs. Weights that are zero take no place.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--model", type=Path, metavar="MODEL", help="the trained values (default: the exported ones)")
    parser.add_argument(
        "--sparse",
        choices=("auto", "never"),
        default="auto",
        help="auto: tensors with enough zeros are stored without them (default); never: all values are stored",
    )
    parser.add_argument("--json", action="store_true", help="print the facts as one JSON object")
    return parser.parse_args(list(words))


def run(options: argparse.Namespace) -> int:
    """Writes and prints; returns the exit code."""
    bundle = open_bundle(options.bundle)
    model = initial_model(bundle) if options.model is None else read_model(options.model, bundle)
    dense = deploy(bundle.path(bundle.manifest.inference.path).read_bytes(), bundle.manifest, model)
    data, tensors = (dense, ()) if options.sparse == "never" else without_zeros(dense)
    try:
        write_durably(options.out, data)
    except OSError as error:
        raise ConfigurationError(f"--out: {options.out} cannot be written ({error.strerror})") from None
    facts = {
        "path": str(options.out),
        "bytes": len(data),
        "dense_bytes": len(dense),
        "ratio": round(len(data) / len(dense), 4),
        "values": len(model),
        "nonzero": int(np.count_nonzero(model)),
        "sparse_tensors": list(tensors),
    }
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        print(
            f"wrote {options.out}: {len(data):,} bytes, {facts['ratio']:.1%} of the {len(dense):,} of the dense file; "
            f"{facts['nonzero']:,} of {len(model):,} values are not zero, {len(tensors)} tensors are stored so"
        )
    return 0


def read_model(path: Path, bundle: Bundle) -> Vector:
    """The values in a file: float32[total], manifest order. Raises BundleError or ConfigurationError naming it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--model: {path} cannot be read ({error.strerror})") from None
    total = bundle.manifest.total
    if path.suffix == ".onnx":
        return _of_graph(path, data, bundle)
    if len(data) == 4 * total:
        return np.frombuffer(data, "<f4").astype(np.float32)
    if int.from_bytes(data[:8], "little") > len(data):
        raise ConfigurationError(
            f"--model: {path} has {len(data)} bytes, which are neither {total} float32 values nor safetensors; name "
            "a file of this bundle's model"
        )
    file = safetensors.parse(str(path), data)
    if "model" not in file.header or any(t.name == "model" for t in bundle.manifest.tensors):
        return parse_parameters(bundle.manifest, data)
    # A checkpoint holds the dense model, and which of it is kept.
    model = file.array("model", shape=(total,)).astype(np.float32)
    if "mask" in file.header:
        model[: bundle.manifest.parameters] = _masked(path, file, model[: bundle.manifest.parameters])
    return model


def _masked(path: Path, file: safetensors.TensorFile, parameters: Vector) -> Vector:
    try:
        return masked(parameters, unpack_mask(file.array("mask", ("U8",)).tobytes(), len(parameters)))
    except ValueError as error:
        raise ConfigurationError(f"--model: {path}: {error}; deploy a checkpoint of the variant full") from None


def _of_graph(path: Path, data: bytes, bundle: Bundle) -> Vector:
    # Before the onnx package sees it, which would read the files that external data names.
    check_graph(str(path), data, INFERENCE)
    try:
        held = {i.name: i for i in onnx.load_from_string(data).graph.initializer}
    except DecodeError:
        raise ConfigurationError(f"--model: {path} is not an ONNX file") from None
    model = initial_model(bundle)
    for tensor in bundle.manifest.tensors:
        if tensor.name not in bundle.manifest.inference.places:
            continue
        if tensor.name not in held or tuple(held[tensor.name].dims) != tensor.shape:
            raise BundleError(
                f"{path}: does not hold {tensor.name} of {tensor.shape}; name a file of this bundle's model"
            )
        model[tensor.offset : tensor.offset + tensor.size] = numpy_helper.to_array(held[tensor.name]).ravel()
    return model
