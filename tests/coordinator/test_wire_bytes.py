"""What a round is predicted to cost, against the transfer table and what a coordinator and its agents counted."""

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.codecs import cost_of
from coordinator.wire_bytes import SOMEONE, _needs
from protocol.envelope import Envelope, encode
from protocol.messages import CHUNK_BYTES, BlobRef, Chunk
from protocol.transfer import Receiving, ask, chunk_length, receive
from tests.coordinator.simulation import TOPICS, Simulation, make_settings, write_bundle


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 8 * CHUNK_BYTES, 8 * CHUNK_BYTES + 1, 21 * CHUNK_BYTES + 5])
def test_chunks_are_asked_for_as_the_transfer_table_asks_when_they_come_in_order(size: int) -> None:
    state, asked, waiting = Receiving(BlobRef(bytes(32), size)), 0, list[int]()
    while not state.complete:
        state, need = ask(state, 0.0)
        if need is not None:
            asked += len(TOPICS.device(SOMEONE, "up")) + len(encode(Envelope(1, 1 << 12, 1 << 24, need)))
            waiting += need.indices
        index = waiting.pop(0)
        taken = receive(state, Chunk(state.blob.digest, index, bytes(chunk_length(state.blob, index))), 0.0)
        assert isinstance(taken, tuple)
        state = taken[0]
    assert _needs(TOPICS, SOMEONE, "up", size) == asked


@pytest.mark.parametrize("parameters", [500, 60_000])
def test_messages_around_model_and_update_are_what_both_sides_counted(parameters: int, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, devices=1)
    training = replace(settings.training, codec="all/float16")
    fleet = Simulation(tmp_path, replace(settings, training=training), write_bundle(tmp_path / "bundle", parameters))
    fleet.start()
    fleet.add(SOMEONE)
    fleet.until(lambda: len(fleet.committed) == 1)
    before = {key: traffic.total_bytes for key, traffic in fleet.coordinator._link.traffic.items()}
    fleet.until(lambda: len(fleet.committed) == 2)
    predicted = cost_of(fleet.settings, fleet.coordinator._course.versions.view("full"), "all/float16")
    payload = fleet.store.accepted(2)[0]
    sizes = {"up": len(fleet.store.updates.read(payload.digest)), "down": 4 * (parameters + 5)}
    for way, due in (("up", predicted.up), ("down", predicted.down)):
        counted = fleet.coordinator._link.traffic[SOMEONE, way].total_bytes - before[SOMEONE, way]  # type: ignore[index]
        # Numbers of a young run are shorter; nothing else may differ.
        assert counted - sizes[way] == pytest.approx(due - sizes[way], rel=0.1)
        assert counted <= due
