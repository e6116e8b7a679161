"""What every transport promises, held by the in-memory one and by MQTT over each broker we start."""

import itertools
import os
from collections.abc import Iterator

import pytest

from protocol.messages import CHUNK_BYTES
from protocol.transport import Connected, Disconnected, Incoming, Will
from tests.protocol.nets import MemoryNet, MqttNet, Net, next_event, payloads

_NUMBERS = itertools.count()


@pytest.fixture(params=["memory", "mosquitto", "embedded"])
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    built: Net = MemoryNet() if request.param == "memory" else MqttNet(request.getfixturevalue(request.param).url)
    yield built
    built.close()


@pytest.fixture
def root() -> str:
    """Topics of this test alone: the brokers are shared, and keep what is retained."""
    return f"test-{os.getpid()}-{next(_NUMBERS)}"


def test_a_message_reaches_those_whose_filter_matches_and_nobody_else(net: Net, root: str) -> None:
    everything, one, sender = (
        net.join("everything", (f"{root}/+/up/#",)),
        net.join("one", (f"{root}/a/down/#", f"{root}/all/+")),
        net.join("sender", ()),
    )
    for transport in (everything, one, sender):
        next_event(transport, Connected)
    for topic in ("a/up", "a/up/blob", "a/down", "a/down/blob", "all/notice", "all/notice/x", "b/down", "ab/up"):
        assert sender.publish(f"{root}/{topic}", topic.encode())
    assert payloads(everything, 3) == [b"a/up", b"a/up/blob", b"ab/up"]
    assert payloads(one, 3) == [b"a/down", b"a/down/blob", b"all/notice"]


def test_a_client_hears_itself_and_the_topic_comes_with_the_payload(net: Net, root: str) -> None:
    client = net.join("client", (f"{root}/#",))
    next_event(client, Connected)
    assert client.publish(f"{root}/a/up", b"\x00\xff")
    assert next_event(client, Incoming) == Incoming(f"{root}/a/up", b"\x00\xff")


def test_two_hundred_messages_at_once_all_arrive_in_order(net: Net, root: str) -> None:
    receiver, sender = net.join("receiver", (f"{root}/#",)), net.join("sender", ())
    next_event(receiver, Connected)
    next_event(sender, Connected)
    said = [f"message {i}".encode() for i in range(200)]
    assert all(sender.publish(f"{root}/a", payload) for payload in said)
    assert payloads(receiver, 200) == said


def test_a_window_of_full_chunks_arrives_unchanged(net: Net, root: str) -> None:
    receiver, sender = net.join("receiver", (f"{root}/#",)), net.join("sender", ())
    next_event(receiver, Connected)
    next_event(sender, Connected)
    chunks = [os.urandom(CHUNK_BYTES) for _ in range(8)]
    assert all(sender.publish(f"{root}/a", chunk) for chunk in chunks)
    assert payloads(receiver, 8) == chunks


def test_a_late_comer_hears_what_was_retained_and_only_after_it_is_connected(net: Net, root: str) -> None:
    sender = net.join("sender", ())
    next_event(sender, Connected)
    assert sender.publish(f"{root}/state", b"old", retain=True)
    assert sender.publish(f"{root}/state", b"new", retain=True)
    assert sender.publish(f"{root}/passing", b"not kept")
    echo = net.join("echo", (f"{root}/echo",))
    next_event(echo, Connected)
    assert sender.publish(f"{root}/echo", b"the broker has seen all before this")
    next_event(echo, Incoming)
    late = net.join("late", (f"{root}/#",))
    next_event(late, Connected)
    assert next_event(late, Incoming) == Incoming(f"{root}/state", b"new")
    assert late.publish(f"{root}/last", b"x")
    assert next_event(late, Incoming).topic == f"{root}/last"


def test_a_lost_client_leaves_its_will_also_for_late_comers(net: Net, root: str) -> None:
    watcher = net.join("watcher", (f"{root}/state",))
    lost = net.join("lost", (), Will(f"{root}/state", b"lost"))
    next_event(watcher, Connected)
    next_event(lost, Connected)
    net.cut("lost")
    assert next_event(watcher, Incoming) == Incoming(f"{root}/state", b"lost")
    late = net.join("late", (f"{root}/state",))
    next_event(late, Connected)
    assert next_event(late, Incoming).payload == b"lost"


def test_a_client_that_closes_leaves_its_last_message_and_no_will(
    net: Net, root: str, request: pytest.FixtureRequest
) -> None:
    watcher = net.join("watcher", (f"{root}/#",))
    leaving = net.join("leaving", (), Will(f"{root}/state", b"lost"))
    next_event(watcher, Connected)
    next_event(leaving, Connected)
    assert leaving.publish(f"{root}/state", b"gone", retain=True)
    leaving.close()
    leaving.close()
    assert not leaving.publish(f"{root}/state", b"after the end")
    assert leaving.poll(0.0) is None
    # amqtt looks at a closed connection before it looks at what came last on it, a goodbye included. Nothing of ours
    # depends on which of the two words the others hear.
    words = {b"gone", b"lost"} if "embedded" in request.node.callspec.id else {b"gone"}
    assert next_event(watcher, Incoming).payload in words
    assert watcher.publish(f"{root}/mark", b"mark")
    while (payload := next_event(watcher, Incoming).payload) != b"mark":
        assert len(words) > 1
        assert payload in words


def test_a_broken_link_is_told_nothing_is_sent_meanwhile_and_all_works_when_it_is_mended(net: Net, root: str) -> None:
    client, other = net.join("client", (f"{root}/#",)), net.join("other", ())
    next_event(client, Connected)
    next_event(other, Connected)
    net.cut("client")
    next_event(client, Disconnected)
    assert not client.publish(f"{root}/a", b"said to nobody")
    net.restore("client")
    next_event(client, Connected, skip=True)
    assert other.publish(f"{root}/b", b"from another")
    assert next_event(client, Incoming).payload == b"from another"
    assert client.publish(f"{root}/a", b"back")
    assert next_event(client, Incoming).payload == b"back"
