"""One evaluation of each bundle under the onnxruntime of the interpreter that runs this; results go to a file."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_agent.runtimes.backends import load_evaluator
from edge_agent.runtimes.engine import Array, Batch
from edge_agent.runtimes.onnx_session import import_onnxruntime
from edge_agent.runtimes.parameters import initial_model
from protocol.bundle import Bundle, open_bundle
from protocol.manifest import Port

EXAMPLES = 3


def batch_of(bundle: Bundle) -> Batch:
    """The same examples in every environment, from integers: NumPy's other draws may differ between its versions."""
    rng = np.random.default_rng(0)

    def values(port: Port) -> Array:
        shape = (EXAMPLES, *port.shape)
        if port.dtype == "int64":
            return rng.integers(0, port.classes or 2, shape)
        return (rng.integers(-128, 128, shape) / 64).astype(np.float32)

    return Batch(tuple(map(values, bundle.manifest.inputs)), tuple(map(values, bundle.manifest.targets)))


def results(bundle: Bundle) -> Mapping[str, Array]:
    """What an evaluation gives: loss and metrics."""
    model, batch = initial_model(bundle), batch_of(bundle)
    evaluated = load_evaluator(bundle).evaluate(model, batch)
    return {name: np.array(value) for name, value in {"evaluated loss": evaluated.loss, **evaluated.metrics}.items()}


def main() -> None:
    out, *folders = map(Path, sys.argv[1:])
    found = {
        f"{folder.name}/{name}": value for folder in folders for name, value in results(open_bundle(folder)).items()
    }
    print(import_onnxruntime().__version__, np.__version__)
    np.savez(out, allow_pickle=False, **found)


if __name__ == "__main__":
    main()
