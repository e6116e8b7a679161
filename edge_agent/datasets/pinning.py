"""Holds a task to the files that it began with, across pauses and restarts, while its folder grows.

A mark of the files lies with the blobs, under the name of the model that the task starts from, as its checkpoint does,
and goes when the task is over.
"""

import json
import logging
from pathlib import Path

from edge_agent.datasets.listing import Listing, Mark, list_files
from edge_agent.datasets.settings import DataSettings
from protocol.disk import Disk, exists, write_durably
from protocol.records import RecordError, read_record, write_record

log = logging.getLogger("edge-agent")

SUFFIX = ".files"


class Pinned:
    """The files of the task in hand, which is named by the digest of the model that it starts from.

    Where the same files are not there any more the task takes what there is; its checkpoint, which is of other data, is
    then passed over, and training begins anew.
    """

    def __init__(self, settings: DataSettings, base: Path, blobs: Path, disk: Disk) -> None:
        self._settings, self._base, self._blobs, self._disk = settings, base, blobs, disk

    def listing(self, model: bytes, now_s: float) -> Listing:
        """What the task is to be trained on. now_s: by the system's clock. Raises DataError."""
        mark = self._kept(model)
        if mark is not None:
            there = list_files(self._settings, self._base).until(mark)
            if there.mark == mark:
                return there
            log.warning("data changed under a task that had begun: it begins anew")
        found = list_files(self._settings, self._base, now_s)
        if found.waiting:
            log.info("data files=%d waiting=%d: those were changed just now", len(found.files), found.waiting)
        return found

    def keep(self, model: bytes, listing: Listing) -> None:
        """The task has begun with these files."""
        if not listing.grows or self._kept(model) == listing.mark:
            return
        try:
            write_durably(self._path(model), json.dumps(write_record(listing.mark)).encode(), self._disk)
        except OSError as error:
            # Only a restart would miss it: the task then begins anew if the folder grew.
            log.warning("data: the files of the task in hand cannot be noted: %s", error)

    def release(self) -> None:
        """The task is over; the next one takes what is there by then."""
        release(self._blobs, self._disk)

    def _path(self, model: bytes) -> Path:
        return self._blobs / f"{model.hex()}{SUFFIX}"

    def _kept(self, model: bytes) -> Mark | None:
        if not exists(self._disk, self._path(model)):
            return None
        try:
            return read_record(Mark, json.loads(self._disk.read(self._path(model))))
        except (ValueError, RecordError):
            # It saves a task from beginning anew, and is not worth more than that.
            return None


def release(blobs: Path, disk: Disk) -> None:
    """Removes the marks of all tasks."""
    for name in disk.names(blobs):
        if name.endswith(SUFFIX):
            disk.remove(blobs / name)
