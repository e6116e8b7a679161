"""Which files a task is trained on: listed in order, those still being written left for later, and pinned by a mark.

A folder may grow while a task is in hand. Each task takes the files that are there when it begins; a mark of a few
bytes, kept on disk, lets the same task find the same files after a restart, and says when that cannot be.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.datasets.settings import DataSettings
from protocol.errors import DataError

MAX_FILES = 200_000
ARRAYS, TABLES, SOUNDS = (".npz", ".npy"), (".csv",), (".wav",)
PICTURES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".webp")
DATABASES = (".db", ".sqlite", ".sqlite3")
# What else lies in a folder is no data: notes, and files called .tmp or .part until they are whole.
_DATA = frozenset((*ARRAYS, *TABLES, *SOUNDS, *PICTURES, *DATABASES))


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was when it was listed."""

    path: Path
    size: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Names a listing: the time of its latest change, and the SHA-256 of all names, sizes and times, as hex."""

    latest_ns: int
    digest: str


@dataclass(frozen=True, slots=True)
class Listing:
    """Files in the order of their names. waiting: how many of them are still being written, and left for later. grows:
    whether there may be more of them next time."""

    where: str
    files: tuple[File, ...] = ()
    waiting: int = 0
    grows: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self.files)

    @property
    def mark(self) -> Mark:
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.path}\0{file.size}\0{file.changed_ns}\n".encode(errors="surrogateescape"))
        return Mark(max((file.changed_ns for file in self.files), default=0), digest.hexdigest())

    def until(self, mark: Mark) -> "Listing":
        """Without what changed after the mark was made; a task's own files, if its mark is the result's."""
        return Listing(self.where, tuple(f for f in self.files if f.changed_ns <= mark.latest_ns))


def list_files(settings: DataSettings, base: Path, now_s: float | None = None) -> Listing:
    """The files that the settings name; none for a function. now_s: by the system's clock, to leave out files of a
    folder that changed just now; None takes them all. Raises DataError if the path cannot be listed."""
    if settings.path is None:
        return Listing(settings.source or "")
    try:
        pattern = base / Path(settings.path).expanduser()
        named = pattern.is_file()
        files = [_file(pattern)] if named else sorted(_found(pattern), key=lambda file: file.path)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{settings.path}: cannot be listed: {error}; check data.path") from None
    if len(files) > MAX_FILES:
        raise DataError(f"{pattern}: over {MAX_FILES} files; keep several examples in one file, such as .npz shards")
    if now_s is None or named:
        return Listing(str(pattern), tuple(files), grows=not named)
    # A time in the future says that the clock is wrong, and nothing of the file.
    since = int((now_s - settings.settle_s) * 1e9)
    settled = tuple(file for file in files if not since < file.changed_ns <= now_s * 1e9)
    return Listing(str(pattern), settled, len(files) - len(settled), grows=True)


def _file(path: Path) -> File:
    found = path.stat()
    size, changed_ns = found.st_size, found.st_mtime_ns
    for companion in (f"{path}-wal", f"{path}-journal"):
        # A database's latest rows lie beside it.
        if Path(companion).is_file():
            beside = Path(companion).stat()
            size, changed_ns = size + beside.st_size, max(changed_ns, beside.st_mtime_ns)
    return File(path, size, changed_ns)


def _found(pattern: Path) -> Iterator[File]:
    paths: Iterator[Path]
    if pattern.is_dir():
        paths = _within(pattern)
    else:
        paths = (p for p in Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))) if p.is_file())
    for path in paths:
        if path.name.startswith(".") or path.suffix.lower() not in _DATA:
            continue
        try:
            found = path.stat()
        except FileNotFoundError:
            # Gone since it was listed, or a link to nothing.
            continue
        yield File(path, found.st_size, found.st_mtime_ns)


def _within(folder: Path) -> Iterator[Path]:
    for inner, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(inner, name) for name in names)


def _raise(error: OSError) -> None:
    raise error
