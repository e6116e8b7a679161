"""Settings of a daemon: one frozen dataclass, read once from TOML, mistakes refused by the key's name."""

import tomllib
from pathlib import Path
from typing import TypeVar

from protocol.errors import ConfigurationError
from protocol.records import RecordError, read_record

T = TypeVar("T")


def load_settings(cls: type[T], path: Path) -> T:
    """Reads a TOML file into `cls`. Raises ConfigurationError naming the file and the key."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}); check the path after --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML ({error})") from None
    try:
        return read_record(cls, table)
    except RecordError as error:
        raise ConfigurationError(f"{path}: {error}") from None
