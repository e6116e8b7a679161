"""What agent and training process say: every message comes through as it was, and nothing else is taken for one."""

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import child_wire as wire
from edge_agent.data import DataSettings
from edge_agent.personal.settings import PersonalSettings
from edge_agent.settings import TrainingSettings
from edge_agent.trainer import Broken, Ready
from protocol.messages import BlobRef, Difference, OptimizerSpec, Task

BLOB = BlobRef(bytes(32), 4)
TASK = Task(
    *("run", 3, BLOB, BLOB, 2, 10, 0, 8, 0.5),
    optimizer=OptimizerSpec("adamw", weight_decay=0.1),
    codec="all/float32",
    seed=1,
    time_left_s=60.0,
    differences=(Difference(bytes(32), BLOB),),
)
MESSAGES = (
    wire.Start("state", "base", 512, 0, TrainingSettings(), DataSettings(path="x", target=("a", "b"))),
    wire.Start("s", "b", 1, 0, TrainingSettings(), DataSettings(path="x"), PersonalSettings(enabled=True, rate=0.25)),
    *(wire.Begin(TASK, "portable", "the preferred one"), wire.Keep("stopping"), wire.Drop(), wire.End()),
    *(wire.Awake("onnxruntime 1", {"numpy": "no"}), Ready(40, "numpy", 0, 10), Broken("disk", "full")),
    *(wire.Stepped(5, 0.5, kept=True), wire.Trained(10, 0, 0.5, 10, 1.0, 60.0), wire.Dropped()),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_through_as_it_was(message: wire.Order | wire.Answer) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        ours.sendall(wire.pack_message(message))
        assert wire.read_message(theirs.recv(wire.MAX_BYTES)) == message


@pytest.mark.parametrize(
    "said",
    [
        *(None, [], ["Drop"], ["Nothing", {}], [1, {}], ["Drop", {"more": 1}], ["Trained", {"values": "many"}]),
        *([["Drop"], {}], {"Drop": {}}, ["Keep", {"because": "so"}]),
    ],
    ids=str,
)
def test_what_is_no_message_is_told_apart(said: object) -> None:
    with pytest.raises(wire.GarbledError):
        wire.read_message(cbor2.dumps(said))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_garbled(data: bytes) -> None:
    try:
        message = wire.read_message(data)
    except wire.GarbledError:
        return
    assert wire.read_message(wire.pack_message(message)) == message
