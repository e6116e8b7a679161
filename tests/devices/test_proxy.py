"""The bad link: every word of a profile, seen from a client and a server on either side of a proxy."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from devices.cli import main
from devices.links import PROFILES, Link, Profile, Step, changed, named_profile
from devices.proxy import Proxy
from protocol.errors import ConfigurationError
from protocol.mqtt import BrokerAddress

ROOT = Path(__file__).parent.parent.parent
HOST = "127.0.0.1"

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Client]]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


def through(profile: Profile, talk: Callable[[Proxy, Connect], Awaitable[None]], seed: int = 1) -> Proxy:
    """Has somebody talk to an echo through a proxy; returns the proxy as it was at the end."""

    async def run() -> Proxy:
        server = await asyncio.start_server(echo, HOST, 0)
        proxy = Proxy(BrokerAddress(HOST, server.sockets[0].getsockname()[1]), profile, seed)
        ready = asyncio.Event()
        serving = asyncio.create_task(proxy.serve(BrokerAddress(HOST, 0), ready.set))
        await ready.wait()
        writers: list[asyncio.StreamWriter] = []

        async def connect() -> Client:
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            writers.append(writer)
            return reader, writer

        try:
            await talk(proxy, connect)
        finally:
            for writer in writers:
                writer.close()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            server.close()
        return proxy

    return asyncio.run(asyncio.wait_for(run(), 60))


async def said_back(client: Client, data: bytes) -> float:
    """Says something and reads it back; how long that took."""
    began = asyncio.get_running_loop().time()
    reader, writer = client
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    return asyncio.get_running_loop().time() - began


def test_a_good_link_passes_every_byte_in_both_directions_and_counts_them() -> None:
    data = np.random.default_rng(1).bytes(1 << 20)

    async def talk(proxy: Proxy, connect: Connect) -> None:
        client = await connect()
        await said_back(client, data)
        client[1].write_eof()
        assert await client[0].read() == b"", "the end is passed on as well"

    proxy = through(Profile(), talk)
    assert (proxy.counts.bytes_up, proxy.counts.bytes_down) == (1 << 20, 1 << 20)
    assert (proxy.counts.opened, proxy.counts.open, proxy.counts.cut, proxy.counts.reset) == (1, 0, 0, 0)


def test_latency_is_added_each_way() -> None:
    async def talk(proxy: Proxy, connect: Connect) -> None:
        assert await said_back(await connect(), b"there and back") >= 0.1

    through(Profile(Link(latency_ms=50)), talk)


def test_jitter_keeps_the_order() -> None:
    async def talk(proxy: Proxy, connect: Connect) -> None:
        client = await connect()
        for number in range(50):
            client[1].write(bytes([number]))
            await asyncio.sleep(0.001)
        assert await client[0].readexactly(50) == bytes(range(50))

    through(Profile(Link(latency_ms=40, jitter_ms=40)), talk)


def test_a_rate_holds_in_its_direction_and_is_shared_by_all_connections() -> None:
    async def talk(proxy: Proxy, connect: Connect) -> None:
        one, other = await connect(), await connect()
        # 2 x 25 kB at 100 kB/s take half a second, whoever sends them.
        took = await asyncio.gather(said_back(one, bytes(25_000)), said_back(other, bytes(25_000)))
        assert max(took) >= 0.45

    through(Profile(Link(up_kbit_s=800)), talk)


def test_a_throttled_sender_is_held_back_and_not_bought_off_by_buffers() -> None:
    async def talk(proxy: Proxy, connect: Connect) -> None:
        _, writer = await connect()
        writer.transport.set_write_buffer_limits(high=1)
        writer.write(bytes(32 << 20))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.3)
        writer.transport.abort()

    through(Profile(Link(up_kbit_s=80)), talk)


def test_a_slicer_passes_small_pieces_and_all_of_them() -> None:
    async def talk(proxy: Proxy, connect: Connect) -> None:
        await said_back(await connect(), bytes(range(256)))

    through(Profile(Link(slice_bytes=7)), talk)


def test_a_stalled_link_loses_nothing() -> None:
    async def talk(proxy: Proxy, connect: Connect) -> None:
        client = await connect()
        await said_back(client, b"before")
        proxy.change(changed(proxy.link, "stalled"))
        client[1].write(b"meanwhile")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client[0].read(1), 0.1)
        proxy.change(changed(proxy.link, "open"))
        assert await client[0].readexactly(9) == b"meanwhile"

    assert through(Profile(), talk).counts.swallowed == 0


def test_a_half_open_link_keeps_connections_and_swallows_every_byte_for_ever() -> None:
    async def talk(proxy: Proxy, connect: Connect) -> None:
        old = await connect()
        await said_back(old, b"before")
        proxy.change(changed(proxy.link, "half-open"))
        new = await connect()
        for reader, writer in (old, new):
            writer.write(b"anybody there?")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
        proxy.change(changed(proxy.link, "open"))
        for reader, writer in (old, new):
            writer.write(b"and now?")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
        await said_back(await connect(), b"whoever connects anew is heard")
        assert proxy.counts.open == 3

    assert through(Profile(), talk).counts.swallowed == 2 * len(b"anybody there?and now?")


def test_a_cut_is_an_end_and_a_reset_is_a_reset_and_then_others_may_come() -> None:
    async def talk(proxy: Proxy, connect: Connect) -> None:
        client = await connect()
        await said_back(client, b"x")
        proxy.do("cut")
        assert await client[0].read() == b""
        client = await connect()
        await said_back(client, b"x")
        proxy.do("reset")
        with pytest.raises(ConnectionResetError):
            await client[0].read()
        await said_back(await connect(), b"x")

    counts = through(Profile(), talk).counts
    assert (counts.cut, counts.reset) == (2, 1)  # the last connection was still there when the proxy ended


def test_a_refused_connection_is_reset_as_it_comes() -> None:
    async def talk(proxy: Proxy, connect: Connect) -> None:
        with pytest.raises(ConnectionResetError):
            await (await connect())[0].read()

    assert through(Profile(Link(mode="refused")), talk).counts.refused == 1


def test_a_limit_passes_exactly_so_many_bytes_and_cuts() -> None:
    async def talk(proxy: Proxy, connect: Connect) -> None:
        reader, writer = await connect()
        writer.write(bytes(1000))
        assert len(await reader.read()) <= 100
        assert await reader.read() == b""

    proxy = through(Profile(Link(limit_bytes=100)), talk)
    assert proxy.counts.bytes_up + proxy.counts.bytes_down == 100


def test_a_server_that_is_not_there_is_a_reset_to_the_client() -> None:
    async def talk(proxy: Proxy, connect: Connect) -> None:
        with socket.create_server((HOST, 0)) as gone:
            proxy._to = BrokerAddress(HOST, gone.getsockname()[1])
        with pytest.raises(ConnectionResetError):
            await (await connect())[0].read()

    assert through(Profile(), talk).counts.reset == 1


def test_a_timeline_happens_by_itself_and_again() -> None:
    profile = Profile(Link(), (Step(0.05, link=Link(mode="refused")), Step(0.1, do="reset")), repeat_s=0.15)

    async def talk(proxy: Proxy, connect: Connect) -> None:
        for _ in range(2):
            client = await connect()
            await said_back(client, b"x")
            with pytest.raises(ConnectionResetError):
                await client[0].read()
            await proxy.while_mode("refused")

    assert through(profile, talk).counts.reset == 2


def test_stalls_come_from_the_seed_and_hold_up_what_comes_after() -> None:
    times: list[float] = []

    async def talk(proxy: Proxy, connect: Connect) -> None:
        client = await connect()
        times.append(sum([await said_back(client, bytes(100)) for _ in range(20)]))

    through(Profile(Link(up_kbit_s=100, stall_every_s=0.05, stall_s=0.2)), talk)
    assert times[0] >= 0.16 + 0.2


def test_a_step_of_a_file_says_only_what_changes(tmp_path: Path) -> None:
    path = tmp_path / "link.toml"
    path.write_text(
        "repeat_s = 60.0\n[link]\nlatency_ms = 80.0\nup_kbit_s = 300.0\n"
        '[[steps]]\nat_s = 10.0\nlink = { mode = "stalled" }\n'
        '[[steps]]\nat_s = 12.0\ndo = "reset"\nlink = { mode = "open", up_kbit_s = 50.0 }\n'
    )
    profile = named_profile(str(path))
    assert profile.steps[0] == Step(10.0, None, Link("stalled", 80.0, up_kbit_s=300.0))
    assert profile.steps[1] == Step(12.0, "reset", Link("open", 80.0, up_kbit_s=50.0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[link]\nlatency = 3.0", "link.latency: unknown key"),
        ('[link]\nmode = "broken"', "'broken' is not one of 'open'"),
        ("[link]\nlatency_ms = 10.0\njitter_ms = 20.0", "jitter_ms: 20.0 is more than latency_ms"),
        ("[[steps]]\nat_s = 5.0\n[[steps]]\nat_s = 1.0", "at_s must not be negative, nor fall"),
        ("[link\n", "not valid TOML"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_by_its_key(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "link.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"link\.toml: ") as refused:
        named_profile(str(path))
    assert said in str(refused.value)


def test_a_profile_that_is_nowhere_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="lte-poor"):
        named_profile("lte-pour")


def test_every_profile_that_is_built_in_says_where_its_figures_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(profile.source for profile in PROFILES.values())
    assert main(["links", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(PROFILES)
    assert main(["links"]) == 0
    assert "lte-poor" in capsys.readouterr().out


def test_a_word_changes_a_link_and_a_wrong_one_is_refused() -> None:
    link = changed(changed(Link(), "up_kbit_s=100"), "stalled")
    assert link == Link("stalled", up_kbit_s=100.0)
    assert changed(link, "up_kbit_s=none") == Link("stalled")
    for wrong in ("asleep", "speed=3", "up_kbit_s=fast", "up_kbit_s=0"):
        with pytest.raises(ValueError, match=r"\S"):
            changed(link, wrong)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--to", "nowhere"],
        ["--to", "127.0.0.1:1", "--latency-ms", "-1"],
        ["--to", "127.0.0.1:1", "--profile", "none-such"],
        ["--to", "127.0.0.1:1", "--listen", "192.0.2.1:1"],
        ["--to", "127.0.0.1:1", "--seed", "-1"],
    ],
)
def test_a_command_line_that_cannot_be_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["proxy", *arguments]) == 3
    assert "fleet-emulate: " in capsys.readouterr().err


def test_the_command_says_its_port_takes_words_and_ends_well() -> None:
    with socket.create_server((HOST, 0)) as server:
        command = [sys.executable, "-m", "devices", "proxy", "--to", f"{HOST}:{server.getsockname()[1]}", "--json"]
        with subprocess.Popen(
            [*command, "--every-s", "0.02", "--latency-ms", "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            port = json.loads(process.stdout.readline())["port"]
            with socket.create_connection((HOST, port)) as client:
                client.sendall(b"hello")
                with server.accept()[0] as served:
                    assert served.recv(5) == b"hello"
                    process.stdin.write("nonsense\nup_kbit_s=8 half-open\n")
                    process.stdin.flush()
                    while json.loads(process.stdout.readline())["mode"] != "half-open":
                        pass
                    client.sendall(b"lost")
                    while json.loads(process.stdout.readline())["swallowed"] != 4:
                        pass
            process.terminate()
            _, errors = process.communicate(timeout=20)
            assert process.returncode == 0
            assert "nonsense" in errors
