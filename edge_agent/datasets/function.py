"""A function of the device owner's own that returns the examples; named in the configuration, never on the wire."""

import importlib
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_agent.datasets.settings import DataSettings
from edge_agent.datasets.shards import Shard
from protocol.errors import DataError

# What code may raise, but for what ends a process or is of its memory: said by its place, for whoever wrote it.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
)
_MORE_FAULTS = (NameError, OSError, RuntimeError, SyntaxError, TypeError, ValueError, Warning)


def call(settings: DataSettings, base: Path) -> Shard:
    """What the function returns, as one shard. Its module is also looked for in `base`, after all that is installed.

    It is called without arguments, once each time that data is loaded: for the first task, and when the agent had
    nothing to do in between.
    """
    source = settings.source
    assert source is not None
    module_name, _, function_name = source.partition(":")
    folder = str(base.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        result = _function(source, module_name, function_name, base)()
    except (*_FAULTS, *_MORE_FAULTS) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(f"{source}: raised {type(error).__name__}: {error} at {at.filename}:{at.lineno}") from error
    if isinstance(result, Mapping):
        return Shard(source, result)
    if not isinstance(result, tuple) or len(result) != 2:
        raise DataError(f"{source}: returned {type(result).__name__}; return a dict of arrays or (inputs, targets)")
    arrays: dict[str, Any] = {}
    for key, names, side in (("inputs", settings.inputs, result[0]), ("targets", settings.targets, result[1])):
        parts = side if isinstance(side, tuple) else (side,)
        if len(parts) != len(names):
            raise DataError(f"{source}: returned {len(parts)} {key} where data.{key} names {len(names)}: {names}")
        arrays |= zip(names, parts, strict=True)
    return Shard(source, arrays)


def _function(source: str, module_name: str, function_name: str, base: Path) -> Callable[[], Any]:
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except ImportError as error:
        raise DataError(f"{source}: {error}; install the module or put it in {base.resolve()}") from None
    if not callable(function):
        raise DataError(f"{source}: {module_name} has no function {function_name!r}; check data.source")
    return function  # type: ignore[no-any-return]
