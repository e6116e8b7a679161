"""Commands from another terminal to the conductor: one JSON object a line each way, over a Unix socket.

The socket is reached through its folder's descriptor: a path of it may be longer than a socket's address may be.
"""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devices.conductor.folder import SOCKET
from protocol.errors import ConfigurationError, SparsefleetError, UnreachableError

Words = Mapping[str, Any]
# A line is a word and some names of devices.
_LIMIT = 1 << 20


@contextmanager
def serving(folder: Path) -> Iterator[socket.socket]:
    """The listening socket in a folder, only for this user; taken away at the end."""
    with socket.socket(socket.AF_UNIX) as listener, _inside(folder) as place:
        (folder / SOCKET).unlink(missing_ok=True)
        listener.bind(f"{place}/{SOCKET}")
        (folder / SOCKET).chmod(0o600)
        listener.listen()
        listener.setblocking(False)
        try:
            yield listener
        finally:
            (folder / SOCKET).unlink(missing_ok=True)


async def answer(listener: socket.socket, do: Callable[[Words], Awaitable[Words]]) -> None:
    """Answers each line until cancelled. An error that `do` raises is the answer, and its exit code."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await _answered(line, do)).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError):
            # Whoever asked has gone, or says no end of a line.
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, sock=listener, limit=_LIMIT)
    async with server:
        await server.serve_forever()


def ask(folder: Path, words: Words, timeout_s: float = 60.0) -> dict[str, Any]:
    """What the conductor in a folder answers. Raises UnreachableError where none does, and what it could not do."""
    try:
        with socket.socket(socket.AF_UNIX) as wire, _inside(folder) as place:
            wire.settimeout(timeout_s)
            wire.connect(f"{place}/{SOCKET}")
            wire.sendall(json.dumps(words).encode() + b"\n")
            with wire.makefile("rb") as lines:
                said = json.loads(lines.readline(_LIMIT) or b"{}")
    except (OSError, ValueError) as error:
        raise UnreachableError(
            f"{folder}: its conductor does not answer ({error}); fleet-emulate down takes away what is left of it"
        ) from None
    if "error" in said:
        raise _Refused(str(said["error"]), int(said.get("code", 1)))
    if not said:
        raise UnreachableError(f"{folder}: its conductor ended without an answer")
    return dict(said)


class _Refused(SparsefleetError):
    """The conductor could not do it."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.exit_code = code


async def _answered(line: bytes, do: Callable[[Words], Awaitable[Words]]) -> Words:
    try:
        words = json.loads(line)
        if not isinstance(words, dict):
            raise ConfigurationError("control: a line must be a JSON object")
        return await do(words)
    except ValueError:
        return {"error": "control: a line must be a JSON object", "code": ConfigurationError.exit_code}
    except SparsefleetError as error:
        return {"error": str(error), "code": error.exit_code}


@contextmanager
def _inside(folder: Path) -> Iterator[str]:
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
