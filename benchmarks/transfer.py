"""What a transfer costs beyond its payload: bytes of TCP between an agent and mosquitto, in real processes.

    python -m benchmarks.transfer --json

One device fetches the whole model and sends an update as large, `all/float32`, in every round. What a proxy on its link
counts in a long run less what it counts in a short one is what the rounds between them took, so that connecting and the
bundle's files are not in it: task, report, offer, needs, chunks, receipts, MQTT's headers and acknowledgements.
"""

import asyncio
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Row, options, progress_console, publish
from devices.proxy import Counts, Proxy
from protocol.mqtt import BrokerAddress
from tests.real_fleet import RealFleet

SIZES = (1_000, 10_000, 100_000, 1_000_000)
SHORT, LONG = 2, 7
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes of TCP in each direction over a whole run, and of one update and one model."""

    up: int
    down: int
    update: int
    model: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for each size of update."""
    chosen = options(str(__doc__).partition("\n")[0]).parse_args(arguments)
    console, rows = progress_console(), list[Row]()
    for size in SIZES[:1] if chosen.quick else SIZES:
        short, long = (measure(size, rounds) for rounds in (SHORT, LONG))
        rows.append(row_of(short, long, LONG - SHORT))
        console.print(f"{size:,} bytes: {100 * rows[-1]['overhead']:.2f} % over")
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Transfer", notes=["bytes of TCP's payload, a round"])
    return 0


def measure(size: int, rounds: int) -> Run:
    """A whole run of one device, over a link that counts."""
    with tempfile.TemporaryDirectory(prefix="transfer-") as folder:
        # Two classes of four bytes, and their biases.
        fleet = RealFleet(
            Path(folder), "mosquitto", rounds, 1, 'local_steps = 1\ncodec = "all/float32"', features=size // 8 - 1
        )
        with counting(fleet.port) as (port, counts):
            settings = fleet.folder / "device-00" / "agent.toml"
            settings.write_text(settings.read_text().replace(f":{fleet.port}", f":{port}"))
            try:
                fleet.start()
                fleet.finish()
                fleet.settle()
            finally:
                fleet.stop()
            return Run(counts.bytes_up, counts.bytes_down, _size(fleet, "updates"), _size(fleet, "models"))


def row_of(short: Run, long: Run, rounds: int) -> Row:
    """What one of the rounds between took, and its share beyond update and model."""
    up, down = (long.up - short.up) / rounds, (long.down - short.down) / rounds
    return {
        "update_bytes": long.update,
        "model_bytes": long.model,
        "tcp_up": round(up),
        "tcp_down": round(down),
        "overhead": round((up + down) / (long.update + long.model) - 1, 5),
    }


@contextmanager
def counting(broker: int) -> Iterator[tuple[int, Counts]]:
    """The port of a proxy before a broker on this machine, and what it counts."""
    proxy, ready, loop = Proxy(BrokerAddress(_HOST, broker)), threading.Event(), asyncio.new_event_loop()
    serving = loop.create_task(proxy.serve(BrokerAddress(_HOST, 0), ready.set))

    def serve() -> None:
        try:
            loop.run_until_complete(serving)
        except asyncio.CancelledError:
            pass
        finally:
            loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        ready.wait()
        yield proxy.port, proxy.counts
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join()


def _size(fleet: RealFleet, folder: str) -> int:
    """Of updates or models, which are all of one size; smaller ones beside them are the server's state."""
    return max(path.stat().st_size for path in (fleet.folder / "coordinator" / folder).iterdir())


if __name__ == "__main__":
    sys.exit(main())
