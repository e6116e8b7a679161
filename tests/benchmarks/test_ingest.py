"""The load that benchmarks.ingest makes: devices on real sockets, whose updates a real coordinator accepts."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from benchmarks import noise_bundle
from benchmarks.ingest import _deliver, _site
from benchmarks.wire_devices import _packet, _split
from protocol.layout import layout_of
from sparse.codecs import decode_update, parse_codec


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 65_536])
def test_a_packet_is_found_in_what_arrives_piece_by_piece(length: int) -> None:
    packet = _packet(0x30, bytes(length))
    assert _split(bytearray(packet[:-1])) is None if length else True
    found = _split(bytearray(packet + b"\x30"))
    assert found is not None
    kind, start, end = found
    assert (kind, end - start, end) == (0x30, length, len(packet))


def test_devices_deliver_to_a_real_coordinator_round_after_round(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bundle = noise_bundle.write(tmp_path / "bundle", 1000)

    async def two_rounds() -> list[float]:
        async with _site(tmp_path / "site", bundle, 5, rng) as (home, fleet):
            seconds = [await _deliver(fleet, bundle) for _ in range(2)]
            payload = fleet[0]._payload
            assert home.child is not None
        layout = layout_of(bundle.manifest, "full")
        decoded, _ = decode_update(payload, 1000, 0, layout.digest, parse_codec("all/float32"), None, layout.shapes)
        assert 0 < float(np.abs(decoded).max()) < 0.01
        return seconds

    assert all(0 < seconds < 60 for seconds in asyncio.run(two_rounds()))
