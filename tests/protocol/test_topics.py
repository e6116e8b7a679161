"""The topic grammar, and that filters fetch exactly what each side must hear."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.topics import NAME, Channel, DeviceTopic, FleetChannel, Topics, check_name
from protocol.transport import matches

CHANNELS: tuple[Channel, ...] = ("state", "up", "up/blob", "down", "down/blob")
FLEET_CHANNELS: tuple[FleetChannel, ...] = ("notice", "coordinator")
names = st.from_regex(NAME, fullmatch=True).filter(lambda name: name not in ("all", "enroll"))
TOPICS = Topics("home")


@given(names, names, st.sampled_from(CHANNELS))
def test_a_device_topic_is_read_as_it_was_written(fleet: str, device: str, channel: Channel) -> None:
    topic = Topics(fleet).device(device, channel)
    assert topic == f"sf/1/{fleet}/{device}/{channel}"
    assert Topics(fleet).parse(topic) == DeviceTopic(device, channel)


@given(names, names)
def test_an_agent_hears_what_is_for_it_and_for_all_and_nothing_else(device: str, other: str) -> None:
    filters = TOPICS.of_agent(device)
    heard = [c for c in CHANNELS if any(matches(f, TOPICS.device(device, c)) for f in filters)]
    assert heard == ["down", "down/blob"]
    assert all(any(matches(f, TOPICS.everyone(c)) for f in filters) for c in FLEET_CHANNELS)
    if other != device:
        assert not any(matches(f, TOPICS.device(other, c)) for f in filters for c in CHANNELS)
    assert not any(matches(f, Topics("away").device(device, c)) for f in filters for c in CHANNELS)


@given(names)
def test_the_coordinator_hears_what_devices_say_and_not_itself(device: str) -> None:
    filters = TOPICS.of_coordinator()
    heard = [c for c in CHANNELS if any(matches(f, TOPICS.device(device, c)) for f in filters)]
    assert heard == ["state", "up", "up/blob"]
    assert [c for c in FLEET_CHANNELS if any(matches(f, TOPICS.everyone(c)) for f in filters)] == ["coordinator"]


@pytest.mark.parametrize(
    "topic",
    ["", "sf", "sf/1/home", "sf/1/home/dev", "sf/1/home/dev/", "sf/1/home/dev/up/blob/x", "sf/1/home/dev/upx"]
    + ["sf/2/home/dev/up", "sf/1/away/dev/up", "sf/1/home//up", "sf/1/home/Dev/up", "sf/1/home/all/notice"]
    + ["sf/1/home/all/up", "sf/1/home/enroll/up", "x/sf/1/home/dev/up", "sf/1/home/de v/up", "sf/1/home/d/up"],
)
def test_any_other_topic_is_nobodys(topic: str) -> None:
    assert TOPICS.parse(topic) is None


@given(st.text())
def test_no_text_upsets_the_parser(text: str) -> None:
    TOPICS.parse(text)
    TOPICS.parse(f"sf/1/home/{text}/up")
    TOPICS.parse(f"sf/1/home/dev/{text}")


@pytest.mark.parametrize("name", ["", "a", "A1", "-a", "a.b", "a b", "a/b", "a+", "a#", "ä1", "a" * 64, "ab\n"])
def test_a_wrong_name_is_refused_with_the_grammar(name: str) -> None:
    with pytest.raises(ValueError, match=r"device: .* must be 2 to 63 characters of a-z, 0-9"):
        check_name("device", name)
    with pytest.raises(ValueError, match=r"fleet: .* must be"):
        Topics(name)


@pytest.mark.parametrize("name", ["all", "enroll"])
def test_reserved_names_are_refused_for_devices_and_free_for_fleets(name: str) -> None:
    with pytest.raises(ValueError, match="reserved"):
        check_name("device", name)
    assert check_name("fleet", name) == name


@pytest.mark.parametrize(
    ("pattern", "topic", "same"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("+/+", "/x", True),
        ("a/#", "a/b/c", True),
        ("a/#", "a", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("a/+/c", "a/b/c", True),
        ("a/+/c", "a//c", True),
    ],
)
def test_filters_match_as_the_standard_says(pattern: str, topic: str, same: bool) -> None:
    assert matches(pattern, topic) == same
