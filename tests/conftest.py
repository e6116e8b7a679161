"""Brokers for tests: real ones on free loopback ports, ended with the tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from coordinator.broker import Broker, BrokerKind, find_mosquitto, start_broker
from protocol.mqtt import free_port

# Machines that run tests are shared and slow at times: how long an example takes proves nothing.
settings.register_profile("sparsefleet", deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
settings.load_profile("sparsefleet")


def require_broker(kind: BrokerKind) -> None:
    """Skips a test that needs a mosquitto where there is none; fails it in CI, where nothing may go untested."""
    if kind == "mosquitto" and find_mosquitto() is None:
        reason = "mosquitto 2.0 or later is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}, and CI=true")
        pytest.skip(reason)


def run_broker(kind: BrokerKind, state: Path) -> Iterator[Broker]:
    require_broker(kind)
    broker = start_broker(kind, free_port(), state)
    yield broker
    broker.close()


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A mosquitto for all tests; nobody stops it, and nobody leaves retained messages on another's topics."""
    yield from run_broker("mosquitto", tmp_path_factory.mktemp("mosquitto"))


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """An embedded broker for all tests, as `mosquitto`."""
    yield from run_broker("embedded", tmp_path_factory.mktemp("embedded"))


@pytest.fixture(params=["mosquitto", "embedded"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each real broker in turn."""
    found: Broker = request.getfixturevalue(request.param)
    return found
