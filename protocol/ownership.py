"""Commands that an operator gives as root, on files that belong to the service's user."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """Has this process, where it is root's, act as the owner of a folder that is another user's, or that would be made
    in one: what it makes there the service can use, and no link there leads it further than that user. Does nothing
    where the folder is root's own. Not to be nested: within it this process is root no more."""
    if os.geteuid() != 0:
        yield
        return
    owner, group = _owner(folder), os.getegid()
    if owner.st_uid == 0:
        yield
        return
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def _owner(folder: Path) -> os.stat_result:
    """Of the folder, or of what it would be made in; of a link that is not root's, whose link it is."""
    folder = folder.absolute()
    place = next(place for place in (folder, *folder.parents) if place.exists())
    link = place.lstat()
    return link if link.st_uid != 0 else place.stat()
