"""Trying a broker once: how far a client comes, what is wrong there, and that the broker says what it does not take."""

from pathlib import Path

import pytest

from coordinator.broker import Broker
from protocol.broker_check import Tried, try_broker
from protocol.errors import NotEnrolledError, UnreachableError
from protocol.mqtt import MqttSettings, free_port, parse_url
from protocol.tls import Credentials
from protocol.topics import Topics
from tests.trust.conftest import Guarded, guarded  # noqa: F401  a fixture
from tests.trust.office import issue

pytestmark = pytest.mark.real

TOPICS = Topics("tried")
OWN = TOPICS.of_agent("pi-1")


def test_a_broker_that_takes_everything_is_done_with(broker: Broker) -> None:
    settings = MqttSettings(parse_url(broker.url), "tried-pi-1")
    tried = try_broker(settings, OWN, TOPICS.device("pi-1", "state"), b"gone")
    # amqtt knows 3.1.1 alone, which has no words for a message that is not taken.
    assert tried == Tried("done", told="embedded" not in str(type(broker)).lower() and tried.told)


def test_nothing_there_is_unreachable() -> None:
    settings = MqttSettings(parse_url(f"mqtt://127.0.0.1:{free_port()}"), "tried-pi-1")
    with pytest.raises(UnreachableError, match="Connection refused"):
        try_broker(settings, OWN, TOPICS.device("pi-1", "state"), b"gone")


def test_over_mtls_own_topics_are_ones_own_and_others_are_refused_in_words(
    guarded: Guarded,  # noqa: F811
    tmp_path: Path,
) -> None:
    topics = guarded.topics
    settings = MqttSettings(guarded.address, "x", credentials=issue(guarded.authority, "pi-1", tmp_path))
    own = topics.device("pi-1", "state")
    assert try_broker(settings, topics.of_agent("pi-1"), own, b"gone") == Tried("done")
    other = try_broker(settings, topics.of_agent("pi-1"), topics.device("pi-2", "state"), b"gone")
    assert other.stage == "publish"
    assert f"does not let this device publish on {topics.device('pi-2', 'state')} (Not authorized)" in other.problem
    strange = (
        Credentials(settings.credentials.roots, tmp_path / "none", tmp_path / "none") if settings.credentials else None
    )
    with pytest.raises(NotEnrolledError):
        try_broker(MqttSettings(guarded.address, "x", credentials=strange), OWN, own, b"gone")
