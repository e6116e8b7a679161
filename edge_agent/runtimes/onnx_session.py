"""The one way onnxruntime is imported: no telemetry, no torch, graphs only as checked bytes.

The training wheel's own `import onnxruntime` tries `onnxruntime.training.ortmodule` to learn its version, and so
imports torch wherever torch is installed. Blocking that name for the length of the import keeps torch out.
"""

import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from edge_agent.runtimes.engine import Array, Batch
from edge_agent.runtimes.graph_check import INFERENCE, PORTABLE, Kind, check_graph
from protocol.errors import BundleError, ConfigurationError, DataError
from protocol.manifest import Manifest, Port

_TRAINING = "onnxruntime.training"
_ERRORS = 3
# It reads the third input of any LayerNormalization, which is optional, and so ends the process in 1.17. It would fuse
# nothing of ours: it asks for weights within the graph.
_DANGEROUS = "AttentionFusion"
# The oldest release that loads the exported graphs' opset and IR, and that they are tested on.
OLDEST = (1, 17)
_INSTALL = "pip install 'sparsefleet[agent]'"


def switch_telemetry_off() -> None:
    """For this process and its children, whatever the environment says. From 1.29 on, stock wheels for Linux send
    events to their makers unless this is set before the import."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def import_onnxruntime() -> ModuleType:
    """The onnxruntime package, imported without torch. Raises ConfigurationError where there is none or one too old."""
    switch_telemetry_off()
    blocked = "onnxruntime" not in sys.modules and _TRAINING not in sys.modules
    if blocked:
        # None in sys.modules makes an import of that name raise ModuleNotFoundError.
        sys.modules[_TRAINING] = cast(ModuleType, None)
    try:
        import onnxruntime
    except ImportError as error:
        # Releases before 1.19 were built against NumPy 1, let pip put NumPy 2 beside them, and fail without a word.
        reason = str(error) or f"its compiled part fails beside NumPy {np.__version__}; before 1.19 it needs 'numpy<2'"
        raise ConfigurationError(f"onnxruntime: cannot be imported ({reason}); {_INSTALL}") from None
    finally:
        if blocked:
            del sys.modules[_TRAINING]
    _refuse_too_old(onnxruntime.__version__)
    return cast(ModuleType, onnxruntime)


def native_training() -> Any | None:
    """The C classes of the training wheel, or None where the wheel at hand cannot train."""
    import_onnxruntime()
    from onnxruntime.capi import _pybind_state as native

    return native if hasattr(native, "load_checkpoint") and hasattr(native, "Module") else None


def session_options(threads: int) -> Any:
    """Options shared by every session: `threads` threads inside an operator, none that spin, errors only in the log."""
    options = import_onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS
    # From the second call with the same shapes on it would take one more block for all tensors together, beside what
    # the first call took and never gives back: up to a third of the peak, for a few per cent of time.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def deployed(path: Path, threads: int) -> Any:
    """An inference session on a file that holds a model's weights. Raises BundleError, or OSError for no file."""
    with path.open("rb") as file:
        graph = file.read(INFERENCE.most_bytes + 1)
    return session_of(graph, str(path), threads, INFERENCE)


def session_of(graph: bytes, name: str, threads: int, kind: Kind = PORTABLE) -> Any:
    """An inference session on the bytes of a graph, which are checked, and never read again. name: for messages.

    Raises BundleError.
    """
    check_graph(name, graph, kind)
    runtime = import_onnxruntime()
    try:
        return runtime.InferenceSession(
            graph,
            session_options(threads),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=[_DANGEROUS],
        )
    except failures() as error:
        raise BundleError(f"{name}: onnxruntime {runtime.__version__} cannot load it: {first_line(error)}") from None


def arrays(manifest: Manifest, batch: Batch) -> list[Array]:
    """The batch's arrays in graph order, contiguous, of manifest types. Raises DataError on wrong shapes or classes."""
    ports = (*manifest.inputs, *manifest.targets)
    values = (*batch.inputs, *batch.targets)
    if len(values) != len(ports):
        raise DataError(f"batch: {len(values)} arrays where the bundle takes {', '.join(p.name for p in ports)}")
    return [_array(port, value, len(batch)) for port, value in zip(ports, values, strict=True)]


def first_line(error: Exception) -> str:
    """What a runtime's error says first; the rest is C++ addresses."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _array(port: Port, value: Array, examples: int) -> Array:
    if value.shape != (examples, *port.shape) or examples == 0:
        raise DataError(f"{port.name}: an array of shape {value.shape} where {('batch', *port.shape)} is needed")
    # The runtime's cross-entropy reads outside its scores for a class that does not exist.
    if port.classes is not None and not (value.min() >= 0 and value.max() < port.classes):
        raise DataError(f"{port.name}: classes {value.min()} to {value.max()} where 0 to {port.classes - 1} exist")
    return np.ascontiguousarray(value, dtype=port.dtype)


def _refuse_too_old(version: str) -> None:
    """`version` as the package says it; a build's suffix does not count."""
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if found < OLDEST:
        needed = ".".join(str(number) for number in OLDEST)
        raise ConfigurationError(f"onnxruntime: {version} is too old, {needed} or later is needed; {_INSTALL}")


def failures() -> tuple[type[Exception], ...]:
    """What the C++ side raises; its own exceptions derive from Exception alone."""
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    own = tuple(getattr(native, name) for name in names if hasattr(native, name))
    return (RuntimeError, ValueError) + own
