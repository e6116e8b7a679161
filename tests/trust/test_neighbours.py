"""A real mosquitto lets a device hear its neighbours of this epoch, and nobody else."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from protocol.envelope import Envelope, decode, encode
from protocol.gossip import Part, Want, parts
from tests.trust.conftest import Guarded
from tests.trust.office import Client, issue

pytestmark = pytest.mark.real
NAMES = ("aa", "bb", "cc")


@pytest.fixture
def devices(guarded: Guarded, tmp_path: Path) -> Iterator[dict[str, Client]]:
    """Three of them, each of which subscribes to whatever it may hear, and to all gossip besides."""
    topics, made = guarded.topics, dict[str, Client]()
    others = (f"{topics.root}/+/want/+", f"{topics.root}/+/gossip/+")
    for name in NAMES:
        filters = (*topics.of_agent(name), *topics.of_gossip(name), *others)
        made[name] = Client(guarded.address, issue(guarded.authority, name, tmp_path), *filters)
        made[name].connect()
    yield made
    for client in made.values():
        client.close()


def said(client: Client) -> set[str]:
    return {topic for topic, _ in client.heard}


def _told(client: Client, topic: str) -> bool:
    return topic in said(client)


def everyone_speaks(guarded: Guarded, devices: dict[str, Client], number: int) -> None:
    """A part of each to all, and one and a question of each to each; then the coordinator's word, which comes last."""
    topics = guarded.topics
    for name, client in devices.items():
        part = next(parts(1, number, name.encode()))
        assert client.transport.publish(topics.gossip(name), encode(Envelope(1, number, 0, part)))
        for other in NAMES:
            if other != name:
                own = encode(Envelope(1, number, 0, part))
                assert client.transport.publish(topics.gossip_to(name, other), own)
                wanted = encode(Envelope(1, number, 0, Want(1, number)))
                assert client.transport.publish(topics.want(name, other), wanted)


def heard_after(guarded: Guarded, devices: dict[str, Client], coordinator: Client) -> None:
    """Waits for every device's echo by way of the coordinator: the broker keeps the order of one sender's messages."""
    topics = guarded.topics
    coordinator.heard.clear()
    for name, client in devices.items():
        assert client.transport.publish(topics.device(name, "up"), b"done")
    coordinator.until(lambda: len([t for t, _ in coordinator.heard if t.endswith("/up")]) >= len(NAMES))
    assert coordinator.transport.publish(topics.everyone("notice"), b"done")
    for client in devices.values():
        client.until(partial(_told, client, topics.everyone("notice")))


def test_devices_hear_their_neighbours_of_this_epoch_alone_whatever_they_subscribe_to(
    guarded: Guarded, devices: dict[str, Client], tmp_path: Path
) -> None:
    topics = guarded.topics
    coordinator = Client(guarded.address, guarded.authority.coordinator, *topics.of_coordinator()).connect()
    guarded.broker.allow({"aa": ("bb",), "bb": ("aa",), "cc": ()})
    # The broker reads its list when it comes round to it: until a neighbour is heard.
    number = 0

    def bb_hears_aa() -> bool:
        nonlocal number
        number += 1
        everyone_speaks(guarded, devices, number)
        devices["bb"].step(0.1)
        return topics.gossip("aa") in said(devices["bb"])

    devices["bb"].until(bb_hears_aa)
    # The list may have been read in the middle of that: now all of it is said under it.
    everyone_speaks(guarded, devices, number + 1)
    heard_after(guarded, devices, coordinator)
    gossip = {name: {t for t in said(devices[name]) if "/gossip" in t or "/want/" in t} for name in NAMES}
    assert gossip == {
        "aa": {topics.gossip("bb"), topics.gossip_to("bb", "aa"), topics.want("bb", "aa")},
        "bb": {topics.gossip("aa"), topics.gossip_to("aa", "bb"), topics.want("aa", "bb")},
        "cc": set(),
    }
    found = decode(next(payload for topic, payload in devices["bb"].heard if topic == topics.gossip("aa")))
    assert isinstance(found, Envelope)
    assert isinstance(found.body, Part)
    assert found.body.data == b"aa"
    coordinator.close()


def test_an_epoch_with_other_neighbours_takes_force_while_all_stay_connected(
    guarded: Guarded, devices: dict[str, Client]
) -> None:
    topics = guarded.topics
    coordinator = Client(guarded.address, guarded.authority.coordinator, *topics.of_coordinator()).connect()
    guarded.broker.allow({"aa": ("bb",), "bb": ("aa",), "cc": ()})
    guarded.broker.allow({"aa": ("cc",), "bb": (), "cc": ("aa",)})

    def cc_hears_aa() -> bool:
        everyone_speaks(guarded, devices, 1)
        devices["cc"].step(0.1)
        return topics.gossip("aa") in said(devices["cc"])

    devices["cc"].until(cc_hears_aa)
    heard_after(guarded, devices, coordinator)
    for client in devices.values():
        client.heard.clear()
    everyone_speaks(guarded, devices, 2)
    heard_after(guarded, devices, coordinator)
    gossip = {name: {t for t in said(devices[name]) if "/gossip" in t or "/want/" in t} for name in NAMES}
    assert gossip == {
        "aa": {topics.gossip("cc"), topics.gossip_to("cc", "aa"), topics.want("cc", "aa")},
        "bb": set(),
        "cc": {topics.gossip("aa"), topics.gossip_to("aa", "cc"), topics.want("aa", "cc")},
    }
    assert not devices["aa"].lost
    coordinator.close()
