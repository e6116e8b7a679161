"""Power cuts of real processes: their writes are recorded by strace, and what was not made durable is taken away.

As ALICE does (Pillai et al. 2014, "All File Systems Are Not Created Equal", OSDI), with the strictest file system that
POSIX allows: a file's bytes survive once it was fsynced, its name once its folder was. Of what was neither, a cut keeps
nothing, or by a random generator some: of the names a folder was given the first few, of the writes to a file any, the
last of them torn at a sector. We depart from ALICE in that a process is killed where it is and started on the state,
in place of all states being made from one recording: what it said to others before is known to them, as it must be.
"""

import ast
import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from devices.processes import Child

_SECTOR = 512
_CALLS = "openat,write,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir"
# What a crash always takes: SQLite makes it anew.
_REMADE = "-shm"
_STRING = r'"((?:[^"\\]|\\.)*)"'
_AT = r"\w+<([^>]*)>, "
_OPEN = re.compile(rf"openat\({_AT}{_STRING}, ([A-Z_|]+)[^)]*\) = (\d+)<(.*)>$")
_WRITE = re.compile(rf"p?write(?:64)?\((\d+)<([^>]*)>, {_STRING}, \d+(?:, (\d+))?\) = (\d+)$")
_TRUNCATE = re.compile(r"ftruncate\(\d+<([^>]*)>, (\d+)\) = 0$")
_SYNC = re.compile(r"f(?:data)?sync\(\d+<([^>]*)>\) = 0$")
_RENAME = re.compile(rf"rename(?:at2?)?\((?:{_AT})?{_STRING}, (?:{_AT})?{_STRING}[^)]*\) = 0$")
_REMOVE = re.compile(rf"(?:unlink|rmdir)(?:at)?\((?:{_AT})?{_STRING}[^)]*\) = 0$")
_MAKE = re.compile(rf"mkdir(?:at)?\((?:{_AT})?{_STRING}[^)]*\) = 0$")
_UNFINISHED, _RESUMED = re.compile(r"(.*) <unfinished \.\.\.>$"), re.compile(r"<\.\.\. \w+ resumed>(.*)$")


def recording(trace: Path) -> tuple[str, ...]:
    """The command that has the next one's disk operations written to a file. Threads and children are followed."""
    return ("strace", "-f", "--seccomp-bpf", "-y", "-qq", "-s", str(1 << 24), "-e", f"trace={_CALLS}", "-o", str(trace))


def kill_recorded(child: Child) -> None:
    """SIGKILL to the process under strace, which then ends as well, its recording complete."""
    pid = child.process.pid
    for tracee in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(tracee), signal.SIGKILL)
    child.process.wait(30)


@dataclass(eq=False)
class _File:
    """Bytes as all see them, as they are durable, and the writes between the two: where and what, or a new length."""

    now: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def write(self, start: int, data: bytes | None) -> None:
        self.pending.append((start, data))
        _apply(self.now, start, data)

    def sync(self) -> None:
        self.durable, self.pending = bytes(self.now), []

    def after_cut(self, rng: np.random.Generator | None) -> bytes:
        found = bytearray(self.durable)
        for start, data in self.pending:
            if rng is None or rng.random() < 0.5:
                continue
            if data is not None and rng.random() < 0.3:
                data = data[: int(rng.integers(0, len(data) // _SECTOR + 1)) * _SECTOR]
            _apply(found, start, data)
        return bytes(found)


# What happened to names of one folder, in one step of the file system: a name was given, or taken (None).
_Naming = tuple[tuple[Path, "_File | _Folder | None"], ...]


@dataclass(eq=False)
class _Folder:
    """Names not yet durable, the oldest first."""

    pending: list[_Naming] = field(default_factory=list)


class Disk:
    """A folder, as the recordings of the processes that wrote into it say; all in it is durable at the beginning."""

    def __init__(self, root: Path, working: Path) -> None:
        self.root, self._working = root, working
        self._names: dict[Path, _File | _Folder] = {root.parent: _Folder()}
        for path in (root, *sorted(root.rglob("*"))) if root.exists() else ():
            self._names[path] = _Folder() if path.is_dir() else _File(bytearray(path.read_bytes()), path.read_bytes())
        self._durable = dict(self._names)
        self._places: dict[int, int] = {}

    def replay(self, trace: Path) -> None:
        """Has all happen that was recorded."""
        for call in _calls(trace):
            self._replay(call)

    def cut(self, rng: np.random.Generator | None = None) -> None:
        """Writes what a power cut leaves into the folder. rng: of what was not durable some survives, else nothing."""
        for folder in [node for node in self._names.values() if isinstance(node, _Folder)]:
            kept = 0 if rng is None else int(rng.integers(0, len(folder.pending) + 1))
            for naming in folder.pending[:kept]:
                _name(self._durable, naming)
        shutil.rmtree(self.root, ignore_errors=True)
        for path, node in sorted(self._durable.items(), key=lambda item: item[0]):
            if not path.is_relative_to(self.root) or not path.parent.exists() or path.name.endswith(_REMADE):
                continue
            if isinstance(node, _Folder):
                path.mkdir()
            else:
                path.write_bytes(node.after_cut(rng))

    def _replay(self, call: str) -> None:
        if found := _WRITE.match(call):
            number, path, data, start, length = found.groups()
            place = int(start) if start is not None else self._places.get(int(number), 0)
            self._write(Path(path), place, _bytes(data)[: int(length)])
            if start is None:
                self._places[int(number)] = place + int(length)
        elif found := _OPEN.match(call):
            self._open(found[3], int(found[4]), Path(found[5]))
        elif found := _TRUNCATE.match(call):
            self._write(Path(found[1]), int(found[2]), None)
        elif found := _SYNC.match(call):
            self._sync(Path(found[1]))
        elif found := _RENAME.match(call):
            old, new = self._path(found[1], found[2]), self._path(found[3], found[4])
            if old in self._names and old.parent == new.parent:
                self._rename(((new, self._names[old]), (old, None)))
        elif found := _REMOVE.match(call):
            self._rename(((self._path(found[1], found[2]), None),))
        elif found := _MAKE.match(call):
            self._rename(((self._path(found[1], found[2]), _Folder()),))

    def _open(self, flags: str, number: int, path: Path) -> None:
        if not self._ours(path):
            return
        self._places[number] = 0
        if "O_CREAT" in flags and path not in self._names:
            self._rename(((path, _File()),))
        elif "O_TRUNC" in flags:
            self._write(path, 0, None)

    def _write(self, path: Path, start: int, data: bytes | None) -> None:
        node = self._names.get(path)
        if isinstance(node, _File):
            node.write(start, data)

    def _sync(self, path: Path) -> None:
        node = self._names.get(path)
        if isinstance(node, _File):
            node.sync()
        elif node is not None:
            for naming in node.pending:
                _name(self._durable, naming)
            node.pending = []

    def _rename(self, naming: _Naming) -> None:
        path = naming[0][0]
        folder = self._names.get(path.parent)
        if self._ours(path) and isinstance(folder, _Folder):
            folder.pending.append(naming)
            _name(self._names, naming)

    def _ours(self, path: Path) -> bool:
        return path.is_relative_to(self.root)

    def _path(self, folder: str | None, said: str) -> Path:
        return Path(folder or self._working) / os.fsdecode(_bytes(said))


def _calls(trace: Path) -> Iterator[str]:
    """The calls in the order in which they returned; two threads' may be cut in two."""
    begun: dict[str, str] = {}
    with trace.open(encoding="latin-1") as lines:
        for line in lines:
            thread, _, call = line.rstrip("\n").partition(" ")
            call = call.lstrip()
            if cut := _UNFINISHED.match(call):
                begun[thread] = cut[1]
            elif rest := _RESUMED.match(call):
                yield re.sub(r"\)\s+= ", ") = ", begun.pop(thread, "") + rest[1].lstrip(), count=1)
            else:
                head, equals, result = call.rpartition(" = ")
                yield head.rstrip() + equals + result


def _bytes(said: str) -> bytes:
    """A string as strace prints it, whose escapes are those of C, and of Python."""
    found: bytes = ast.literal_eval(f'b"{said}"')
    return found


def _apply(content: bytearray, start: int, data: bytes | None) -> None:
    if len(content) < start:
        content.extend(bytes(start - len(content)))
    if data is None:
        del content[start:]
    else:
        content[start : start + len(data)] = data


def _name(names: dict[Path, _File | _Folder], naming: _Naming) -> None:
    for path, node in naming:
        if node is None:
            names.pop(path, None)
        else:
            names[path] = node
