"""Words between a conductor and another terminal, over a real socket in a folder."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.conductor import control
from devices.conductor.control import Words
from protocol.errors import ConfigurationError, SparsefleetError, UnreachableError


async def _do(words: Words) -> Words:
    if words.get("do") == "wrong":
        raise ConfigurationError("device: 'toaster' is not of this fleet")
    return {"heard": words["do"]}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """One in which a conductor listens; its path is longer than a socket's address may be."""
    place = tmp_path / ("long" * 30)
    place.mkdir()
    ready, loops = threading.Event(), list[asyncio.AbstractEventLoop]()

    async def serve() -> None:
        with control.serving(place) as listener:
            loops.append(asyncio.get_running_loop())
            task = asyncio.create_task(control.answer(listener, _do))
            ready.set()
            try:
                await stop.wait()
            finally:
                task.cancel()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    yield place
    loops[0].call_soon_threadsafe(stop.set)
    thread.join()
    assert list(place.iterdir()) == []


def test_a_word_is_answered_and_an_error_comes_with_its_exit_code(folder: Path) -> None:
    assert control.ask(folder, {"do": "status"}) == {"heard": "status"}
    with pytest.raises(SparsefleetError, match="toaster") as caught:
        control.ask(folder, {"do": "wrong"})
    assert caught.value.exit_code == ConfigurationError.exit_code


def test_where_no_conductor_is_the_word_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="fleet-emulate down"):
        control.ask(tmp_path, {"do": "status"})


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b"\xff\xfe"])
def test_a_line_that_is_no_object_is_refused_and_nothing_else_happens(line: bytes) -> None:
    said = asyncio.run(control._answered(line, _do))
    assert said == {"error": "control: a line must be a JSON object", "code": 3}
