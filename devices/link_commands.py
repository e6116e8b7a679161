"""The commands `fleet-emulate proxy`, a bad link before any server, and `fleet-emulate links`, those built in."""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from dataclasses import asdict

from devices.links import BREAKS, PROFILES, Profile, changed, named_profile, worsened
from devices.proxy import Proxy
from protocol.command import Parser
from protocol.errors import ConfigurationError
from protocol.mqtt import BrokerAddress

PROXY_EPILOG = """\
examples:
  fleet-emulate proxy --listen 0.0.0.0:8893 --to server:8883 --profile lte-poor    # TLS, passed on as it is
  fleet-emulate proxy --to 127.0.0.1:8883 --latency-ms 300 --up-kbit-s 64 --json

A line on its standard input changes it while it runs: open, stalled, half-open, refused, cut, reset, up_kbit_s=20,
latency_ms=0, limit_bytes=none; several words on one line happen together.
"""
# Flags that overrule the profile's link, each with what it says.
_FLAGS = {
    "latency_ms": "how late everything is, each way",
    "jitter_ms": "by how much that varies, up and down; the order of bytes stays",
    "up_kbit_s": "rate from the client to the server",
    "down_kbit_s": "rate from the server to the client",
    "slice_bytes": "pass nothing in larger pieces",
    "limit_bytes": "cut a connection that passed so much",
    "stall_every_s": "mean time between stalls, as lost packets cause them",
    "stall_s": "how long each lasts",
}


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    proxy = commands.add_parser(
        "proxy",
        help="stand between a client and a server as a bad link would",
        epilog=PROXY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    proxy.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="default: a free port, and says which"
    )
    proxy.add_argument("--to", required=True, metavar="HOST:PORT", help="the server, such as an MQTT broker")
    proxy.add_argument(
        "--profile", metavar="NAME|FILE", help="a built-in link (see fleet-emulate links), or a TOML file"
    )
    for key, text in _FLAGS.items():
        kind = int if key.endswith("_bytes") else float
        proxy.add_argument(f"--{key.replace('_', '-')}", type=kind, metavar="N", help=text)
    proxy.add_argument("--seed", type=int, default=1, metavar="N", help="of jitter and stalls (default: 1)")
    proxy.add_argument("--every-s", type=float, default=1.0, metavar="S", help="how often numbers come (default: 1)")
    proxy.add_argument("--json", action="store_true", help="numbers as a JSON object a line")
    proxy.set_defaults(command=_proxy)
    links = commands.add_parser(
        "links", help="the links that are built in", epilog="example: fleet-emulate links --json"
    )
    links.add_argument("--json", action="store_true")
    links.set_defaults(command=_links)


def _proxy(options: argparse.Namespace) -> int:
    profile = named_profile(options.profile) if options.profile else Profile()
    try:
        link = worsened(profile.link, **{key: getattr(options, key) for key in _FLAGS})
    except ValueError as error:
        raise ConfigurationError(f"--{str(error).replace('_', '-')}") from None
    if options.seed < 0 or not 0.01 <= options.every_s <= 3600:
        raise ConfigurationError("--seed: must not be negative; --every-s: must be in 0.01..3600")
    profile = Profile(link, profile.steps, profile.repeat_s)
    proxy = Proxy(_address("--to", options.to), profile, options.seed)
    return asyncio.run(_run(proxy, _address("--listen", options.listen), options.every_s, options.json))


async def _run(proxy: Proxy, listen: BrokerAddress, every_s: float, as_json: bool) -> int:
    loop, received = asyncio.get_running_loop(), asyncio.Queue[int]()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, received.put_nowait, number)

    def begin() -> None:
        _say({"event": "listening", "host": listen.host, "port": proxy.port}, as_json)
        # A daemon thread, for the standard input may be anything, or nobody's.
        threading.Thread(target=_listen_to_stdin, args=(proxy, loop), daemon=True).start()

    serving, ended = loop.create_task(proxy.serve(listen, begin)), loop.create_task(received.get())
    try:
        while not serving.done() and not ended.done():
            await asyncio.wait({serving, ended}, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
            if proxy.port:
                _say({"event": "counts", "mode": proxy.link.mode, **asdict(proxy.counts)}, as_json)
    finally:
        ended.cancel()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    return 130 if ended.result() == signal.SIGINT else 0


def _say(said: dict[str, object], as_json: bool) -> None:
    text = json.dumps(said) if as_json else " ".join(f"{key}={value}" for key, value in said.items())
    print(text, flush=True)


def _listen_to_stdin(proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
    rest = b""
    # Not by sys.stdin, whose lock a thread that waits would hold while the interpreter ends.
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            loop.call_soon_threadsafe(_obey, proxy, line.decode(errors="replace"))


def _obey(proxy: Proxy, line: str) -> None:
    for word in line.split():
        try:
            if word in BREAKS:
                proxy.do(BREAKS[word])
            else:
                proxy.change(changed(proxy.link, word))
        except ValueError as error:
            print(f"fleet-emulate: {word}: {error}", file=sys.stderr, flush=True)


def _links(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps({name: asdict(profile) for name, profile in PROFILES.items()}))
        return 0
    for name, profile in PROFILES.items():
        said = profile.link
        rates = f"{said.up_kbit_s:g} kbit/s up, {said.down_kbit_s:g} down"
        print(f"{name:12} {said.latency_ms:g} ms each way, +-{said.jitter_ms:g}; {rates}; {profile.source}")
    return 0


def _address(option: str, text: str) -> BrokerAddress:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"{option}: {text!r} must be HOST:PORT")
    return BrokerAddress(host.strip("[]"), int(port))
