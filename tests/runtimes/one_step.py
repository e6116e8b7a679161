"""A portable step of each bundle under the onnxruntime of the interpreter that runs this; results go to a file."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_agent.runtimes import portable
from edge_agent.runtimes.backends import choose, load_evaluator
from edge_agent.runtimes.engine import Array, Batch
from edge_agent.runtimes.onnx_session import import_onnxruntime
from edge_agent.runtimes.parameters import initial_model
from protocol.bundle import Bundle, open_bundle
from protocol.manifest import Port

EXAMPLES = 3
SEED = 5


def batch_of(bundle: Bundle) -> Batch:
    """The same examples in every environment, from integers: NumPy promises no more of its draws."""
    rng = np.random.default_rng(0)

    def values(port: Port) -> Array:
        shape = (EXAMPLES, *port.shape)
        if port.dtype == "int64":
            return rng.integers(0, port.classes or 2, shape)
        return (rng.integers(-128, 128, shape) / 64).astype(np.float32)

    return Batch(tuple(map(values, bundle.manifest.inputs)), tuple(map(values, bundle.manifest.targets)))


def results(bundle: Bundle) -> Mapping[str, Array]:
    """What a step gives, and then the evaluations of device and coordinator of the model that it leads to."""
    model, batch = initial_model(bundle), batch_of(bundle)
    engine = choose(bundle, portable.NAME).engine
    step = engine.step(model, batch, SEED)
    found = {"loss": np.array(step.loss), "gradient": step.gradient.copy(), "buffers": step.buffers.copy()}
    found |= {f"step's {name}": np.array(value) for name, value in step.metrics.items()}
    model[: step.gradient.size] -= np.float32(0.1) * step.gradient
    for who, evaluator in (("engine", engine), ("coordinator", load_evaluator(bundle))):
        evaluated = evaluator.evaluate(model, batch)
        found |= {f"{who}'s {n}": np.array(v) for n, v in {"loss": evaluated.loss, **evaluated.metrics}.items()}
    return found


def main() -> None:
    out, *folders = map(Path, sys.argv[1:])
    found = {
        f"{folder.name}/{name}": value for folder in folders for name, value in results(open_bundle(folder)).items()
    }
    print(import_onnxruntime().__version__, np.__version__)
    # NumPy 1 has no argument to tell the arrays from NumPy 2's allow_pickle.
    np.savez(out, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
