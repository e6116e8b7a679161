"""Brokers for tests: real ones on free loopback ports, ended with the tests. And in CI, no skip goes unseen."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

from coordinator.broker import Broker, BrokerKind, find_mosquitto, start_broker
from protocol.mqtt import free_port

R = TypeVar("R", pytest.TestReport, pytest.CollectReport)

# Machines that run tests are shared and slow at times: how long an example takes proves nothing.
settings.register_profile("sparsefleet", deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
settings.load_profile("sparsefleet")


# What a test may lack even in CI, by the beginning of its reason: data sets that others publish, and the history of a
# clone that was made without it.
ALLOWED_SKIPS = ("data not at hand: ", "history not at hand: ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    return _without_silence(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    return _without_silence(report)


def _without_silence(report: R) -> R:
    """With CI=true a skip is a failure: what is skipped everywhere is tested nowhere."""
    # An expected failure is reported as skipped too, and is none.
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped, and CI=true: {reason}; install what it needs (see .ci/run)"
    return report


def require_broker(kind: BrokerKind) -> None:
    """Skips a test that needs a mosquitto where there is none."""
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto 2.0 or later is not installed")


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
