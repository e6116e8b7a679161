"""What a device sent, received and wrote today, kept on its disk, so that a restart does not begin the day anew."""

import json
from dataclasses import dataclass
from pathlib import Path

from protocol.disk import LOCAL, Disk, exists, is_disk_trouble, write_durably
from protocol.records import RecordError, read_record, write_record

FILE = "today.json"
# Written when a budget grew by such a part of itself: a kill forgets no more of it, and the disk is spared.
_PART = 64


@dataclass(frozen=True, slots=True)
class Today:
    """A local day, counted from 1970; -1 before any clock was right. sent: bytes either way."""

    day: int = -1
    sent: int = 0
    written: int = 0


class Budgets:
    """Adds up what counters say that begin at nothing with each start. sent, written: the day's limits, 0 for none."""

    def __init__(self, state: Path, sent: int, written: int, disk: Disk = LOCAL) -> None:
        self._path, self._disk, self._sent, self._written = state / FILE, disk, sent, written
        self._seen_sent = self._seen_written = 0
        self.today = self._kept = self._read()

    def count(self, day: int | None, sent: int, written: int | None) -> Today:
        """What today came to. day: None while the clock is wrong: then the last day goes on. sent, written: the
        counters of this start; a counter that went back began anew."""
        added_sent = sent - self._seen_sent if sent >= self._seen_sent else sent
        now = self._seen_written if written is None else written
        # The child's part of it goes with the child, and is seen at the latest a look before.
        added_written = max(0, now - self._seen_written)
        self._seen_sent, self._seen_written = sent, now
        before = self.today
        if day is not None and _is_another(before.day, day):
            before = Today(day)
        self.today = Today(before.day, before.sent + added_sent, before.written + added_written)
        if self._grew():
            self.save()
        return self.today

    def save(self) -> None:
        """Writes it down, if it says anything new."""
        if self.today == self._kept or not (self._sent or self._written):
            return
        self._kept = self.today
        try:
            write_durably(self._path, json.dumps(write_record(self.today)).encode(), self._disk)
        except OSError as error:
            if not is_disk_trouble(error):
                raise

    def _grew(self) -> bool:
        if self.today.day != self._kept.day:
            return True
        sent, written = self.today.sent - self._kept.sent, self.today.written - self._kept.written
        return bool((self._sent and sent * _PART >= self._sent) or (self._written and written * _PART >= self._written))

    def _read(self) -> Today:
        if not exists(self._disk, self._path):
            return Today()
        try:
            return read_record(Today, json.loads(self._disk.read(self._path)))
        except (ValueError, RecordError):
            return Today()


def _is_another(before: int, day: int) -> bool:
    """Whether a budget begins anew. Not on the day before: a clock that was set back a little, or another time zone,
    must not give a day's budget twice; one that was days ahead was wrong."""
    return day > before or day < before - 1
