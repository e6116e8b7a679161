"""A broker's address and how it is spoken to: what is read, and what is refused."""

import pytest

from protocol.mqtt import BrokerAddress, MqttSettings, parse_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker", BrokerAddress("broker", 1883)),
        ("mqtt://broker.example.org:8883/", BrokerAddress("broker.example.org", 8883)),
        ("mqtt://[::1]:1884", BrokerAddress("::1", 1884)),
        ("mqtts://broker", BrokerAddress("broker", 8883, tls=True)),
        ("mqtts://10.0.0.5:1", BrokerAddress("10.0.0.5", 1, tls=True)),
    ],
)
def test_an_address_is_read_and_written(url: str, address: BrokerAddress) -> None:
    assert parse_url(url) == address
    assert parse_url(address.url) == address


@pytest.mark.parametrize(
    "url",
    ["", "broker", "broker:1883", "http://b", "mqtt://", "mqtt://b:0", "mqtt://b:99999", "mqtt://b:x", "mqtt://b/x"]
    + ["mqtt://u:p@b", "mqtt://a..b", "mqtt://" + "a" * 64, "mqtt://[::1", "mqtt://b?x=1"],
)
def test_a_wrong_address_is_refused_with_what_is_accepted(url: str) -> None:
    with pytest.raises(ValueError, match="must be mqtts://host:port, or mqtt://host:port without encryption"):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "exposed"),
    [("mqtt://10.0.0.5", True), ("mqtt://broker", True), ("mqtts://broker", False), ("mqtt://127.0.0.1", False)]
    + [("mqtt://[::1]", False), ("mqtt://localhost", False), ("mqtt://localhost.evil.example", True)],
)
def test_a_plain_connection_that_leaves_this_machine_is_known_for_what_it_is(url: str, exposed: bool) -> None:
    assert parse_url(url).exposed == exposed


def test_a_connection_with_tls_needs_credentials_and_one_without_takes_none() -> None:
    with pytest.raises(ValueError, match=r"credentials: are for mqtts:// and needed there"):
        MqttSettings(parse_url("mqtts://broker"), "client")


@pytest.mark.parametrize(
    ("change", "word"),
    [({"client_id": ""}, "client_id"), ({"keepalive_s": 1}, "keepalive_s"), ({"first_retry_s": 0.0}, "first_retry_s")],
    ids=lambda v: str(v),
)
def test_settings_out_of_range_are_refused_by_name(change: dict[str, object], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        MqttSettings(**{"address": BrokerAddress("b", 1), "client_id": "c", **change})  # type: ignore[arg-type]
