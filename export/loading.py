"""The user's function, found by `FILE.py:function` or `module:function`, and called."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from export.spec import TrainingSpec
from protocol.errors import ConfigurationError


def load_spec(target: str) -> tuple[TrainingSpec, str]:
    """What the function returns, and the function's name. Raises ConfigurationError naming file, line and remedy."""
    where, separator, name = target.rpartition(":")
    if not separator or not where or not name:
        raise ConfigurationError(f"{target!r}: name a file and a function in it, as in model.py:digits")
    module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    function = getattr(module, name, None)
    if function is None:
        raise ConfigurationError(f"{where}: has no function {name!r}; {_offered(module)}")
    if not callable(function):
        raise ConfigurationError(
            f"{target}: is a {type(function).__name__}, not a function that returns a TrainingSpec"
        )
    spec = function()
    if not isinstance(spec, TrainingSpec):
        raise ConfigurationError(f"{target}: returned a {type(spec).__name__}; return an export.TrainingSpec")
    return spec, name


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file; give its path from {Path.cwd()}")
    name = f"_fleet_export_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # torch and dataclasses look a class's module up by name.
    sys.modules[name] = module
    # As `python FILE.py` would: files beside it can be imported.
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise ConfigurationError(f"{path}: cannot be imported: {error}") from error
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigurationError(f"{name}: cannot be imported: {error}; give FILE.py:function instead") from error


def _offered(module: ModuleType) -> str:
    own = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
    return f"it has {', '.join(own)}" if own else "it defines none"
