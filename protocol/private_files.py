"""Files that only their owner may read: keys and what stands beside them."""

import os
import secrets
import stat
from pathlib import Path

from protocol.disk import LOCAL
from protocol.errors import ConfigurationError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private_folder(folder: Path) -> None:
    """Makes a folder of mode 0700. One that is there and open to others is closed to them."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & _OTHERS:
            folder.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            f"{folder}: cannot be made private to this user ({error.strerror}); name a folder that this user owns"
        ) from None


def write_private(path: Path, data: bytes) -> None:
    """Writes a file of mode 0600, whole or not at all, and durably. Nobody else can read it at any moment."""
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
    LOCAL.sync(path.parent)


def check_private(path: Path) -> None:
    """Raises ConfigurationError for a file that others than its owner may read."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        raise ConfigurationError(
            f"{path}: has mode {mode:04o}, so that others on this machine may use it; chmod 600 it, and if somebody "
            "else may have read it, revoke it and enrol again"
        )
