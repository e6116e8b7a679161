"""What seals cost: time to make and to check one, bytes they add to a round, and memory of an agent that has keys."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.harness import Row, options, progress_console, publish
from protocol.envelope import Envelope, decode, encode
from protocol.keys import new_key
from protocol.messages import CHUNK_BYTES, Chunk, Later, Task
from protocol.sealed import SEALED_BYTES, holds, sealed
from protocol.signing import Verifier, load_signer, new_signing_key, verifier_of
from tests.trust.office import Office
from tests.trust.sealed_fleet import SealedFleet

TOPIC = "sf/1/home/kitchen-pi/up"
# An agent's modules, then the same with keys that have signed and checked.
_MEMORY = """
import os, sys
import edge_agent.daemon
from benchmarks.memory import pss_mib
before = pss_mib(os.getpid())
from protocol.signing import ed25519_verifier, load_signer, new_signing_key
key = open(sys.argv[1], "rb").read()
load_signer(key).seal("message", b"")
fleet = load_signer(new_signing_key())
assert ed25519_verifier(fleet.public).holds(fleet.seal("message", b""), "message", b"")
print(before, pss_mib(os.getpid()))
"""


def main() -> int:
    chosen = options("The cost of seals on messages.").parse_args()
    console, repeats = progress_console(), 50 if chosen.quick else 1000
    console.print("keys")
    rows = [*_times("the coordinator's, Ed25519", new_signing_key(), repeats)]
    rows += _times("a device's, P-256", new_key(), repeats)
    console.print("a round")
    rows += [_round(2 if chosen.quick else 10), _memory()]
    notes = [f"a seal is {SEALED_BYTES} bytes; times are medians of {repeats}, one thread"]
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="seals", notes=notes)
    return 0


def _times(whose: str, private: bytes, repeats: int) -> list[Row]:
    """Of a short message and a full chunk, both checked as a whole: found, hashed and held against the key."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    signer = load_signer(private)
    public = load_pem_private_key(private, None).public_key()
    verifier: Verifier = verifier_of(public, signer.key_id)  # type: ignore[arg-type]
    rows: list[Row] = []
    for what, body in (("short", Later(bytes(32), 1.0)), ("chunk", Chunk(bytes(32), 0, bytes(CHUNK_BYTES)))):
        said = encode(Envelope(1, 1, 0, body))
        whole = sealed(TOPIC, said, signer)
        made = _median_us(lambda said=said: sealed(TOPIC, said, signer), repeats)  # type: ignore[misc]
        checked = _median_us(lambda whole=whole: holds(TOPIC, whole, verifier), repeats)  # type: ignore[misc]
        rows.append(_row(f"seal of {whose}, {what}: make", us=made))
        rows.append(_row(f"seal of {whose}, {what}: check", us=checked))
    return rows


def _median_us(work: Callable[[], object], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1e6 * median(taken)


def _round(rounds: int) -> Row:
    """Of a device, with a model of one chunk: seals, and the release in its task."""
    with tempfile.TemporaryDirectory() as folder:
        office = Office(Path(folder) / "trust")
        fleet = SealedFleet(Path(folder), office, "pi-1", count=rounds + 2)
        # The first one fetches the bundle.
        fleet.until(lambda: len(fleet.committed) >= 1)
        before, said = len(fleet.committed), len(fleet.operator.said)
        fleet.until(lambda: len(fleet.committed) >= before + rounds)
        heard = [payload for topic, payload in fleet.operator.said[said:] if "/pi-1/" in topic]
        read = [envelope.body for envelope in map(decode, heard) if isinstance(envelope, Envelope)]
        released = sum(len(body.release or b"") + 9 for body in read if isinstance(body, Task))
        fleet.close()
        office.close()
    return _row(
        "a device and round, both ways, small model", size=round((SEALED_BYTES * len(heard) + released) / rounds)
    )


def _memory() -> Row:
    with tempfile.NamedTemporaryFile() as key:
        key.write(new_key())
        key.flush()
        command = (sys.executable, "-c", _MEMORY, key.name)
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    before, after = map(float, done.stdout.split())
    return _row(f"an agent's process (PSS), to {after:.1f} MiB", mib=after - before)


def _row(what: str, *, us: float | None = None, size: int | None = None, mib: float | None = None) -> Row:
    return {"what": what, "us": us, "bytes": size, "mib": mib}


if __name__ == "__main__":
    sys.exit(main())
