"""Commands that an operator gives as root, on files that belong to the service's user."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """Has this process, where it is root's, act as the owner of a folder that is another user's: what it makes there
    the service can use. Does nothing where the folder is not there, or root's own."""
    if os.geteuid() != 0 or not folder.exists() or folder.stat().st_uid == 0:
        yield
        return
    owner, group = folder.stat(), os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
