"""The offices and brokers of these tests, ended with them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from coordinator.authority import COORDINATOR, Authority
from coordinator.broker import Access, Broker, start_broker
from protocol.mqtt import BrokerAddress, free_port, parse_url
from protocol.topics import Topics
from tests.conftest import require_broker
from tests.trust.office import FLEET, Office


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    opened = Office(tmp_path / "trust")
    yield opened
    opened.close()


@dataclass(frozen=True)
class Guarded:
    """A mosquitto with TLS, and the CA that it goes by."""

    broker: Broker
    authority: Authority
    topics: Topics

    @property
    def address(self) -> BrokerAddress:
        return parse_url(self.broker.url)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    require_broker("mosquitto")
    authority = Authority(tmp_path / "trust", time.time())
    topics = Topics(FLEET)
    access = Access(authority.broker, topics.root, COORDINATOR)
    broker = start_broker("mosquitto", free_port(), tmp_path / "broker", access=access)
    yield Guarded(broker, authority, topics)
    broker.close()
