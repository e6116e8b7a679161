"""The topic grammar: sf/1/<fleet>/<device>/...; the device is one whole level, so one ACL pattern covers a fleet."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

PROTOCOL_VERSION = 1

# Neither dots (RabbitMQ maps them to slashes), nor spaces (NATS refuses them), nor MQTT's own + # / ; and short enough
# for every cloud broker's level limit.
NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")

Channel = Literal["state", "up", "up/blob", "down", "down/blob", "down/keys"]
FleetChannel = Literal["notice", "coordinator"]

# "all" names the channels that everyone reads, so no device may have it.
RESERVED_DEVICES = frozenset({"all", "enroll"})


def check_name(kind: str, name: str) -> str:
    """Returns `name` if it may stand in a topic. Raises ValueError with the grammar otherwise."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{kind}: {name!r} must be 2 to 63 characters of a-z, 0-9 and '-', and start with a letter or digit"
        )
    if kind == "device" and name in RESERVED_DEVICES:
        raise ValueError(f"{kind}: {name!r} is reserved; choose another name")
    return name


@dataclass(frozen=True, slots=True)
class DeviceTopic:
    """A parsed topic of one device."""

    device: str
    channel: Channel


@dataclass(frozen=True, slots=True)
class Topics:
    """Every topic of one fleet."""

    fleet: str

    def __post_init__(self) -> None:
        check_name("fleet", self.fleet)

    @property
    def root(self) -> str:
        """What every topic of the fleet begins with."""
        return f"sf/{PROTOCOL_VERSION}/{self.fleet}"

    def device(self, device: str, channel: Channel) -> str:
        return f"{self.root}/{device}/{channel}"

    def everyone(self, channel: FleetChannel) -> str:
        return f"{self.root}/all/{channel}"

    def of_agent(self, device: str) -> tuple[str, ...]:
        """The filters one agent subscribes to."""
        return (f"{self.root}/{device}/down/#", f"{self.root}/all/+")

    def of_coordinator(self) -> tuple[str, ...]:
        """The filters the coordinator subscribes to: every device, and whoever else says to be the coordinator."""
        return (f"{self.root}/+/state", f"{self.root}/+/up/#", self.everyone("coordinator"))

    def gossip(self, device: str) -> str:
        """Where a device says its payloads, for all its neighbours."""
        return f"{self.root}/{device}/gossip"

    def gossip_to(self, device: str, neighbour: str) -> str:
        """Where a device says what is for one neighbour alone."""
        return f"{self.root}/{device}/gossip/{neighbour}"

    def want(self, device: str, neighbour: str) -> str:
        """Where a device says to one neighbour what it misses."""
        return f"{self.root}/{device}/want/{neighbour}"

    def of_gossip(self, device: str) -> tuple[str, ...]:
        """The filters by which a device hears its neighbours, the same in every epoch: who they are, and that nobody
        else is heard, is the broker's access list."""
        return (f"{self.root}/+/gossip", f"{self.root}/+/gossip/{device}", f"{self.root}/+/want/{device}")

    def parse_gossip(self, topic: str, device: str) -> str | None:
        """Who speaks on a topic by which a neighbour is heard at `device`; None for anything else."""
        parts = topic.split("/", 4)
        channels = ("gossip", f"gossip/{device}", f"want/{device}")
        if len(parts) != 5 or "/".join(parts[:3]) != self.root or parts[4] not in channels:
            return None
        return parts[3] if NAME.fullmatch(parts[3]) and parts[3] not in RESERVED_DEVICES else None

    def parse(self, topic: str) -> DeviceTopic | None:
        """The device and channel of a topic of this fleet, or None for anything else."""
        parts = topic.split("/", 4)
        if len(parts) != 5 or "/".join(parts[:3]) != self.root:
            return None
        device, channel = parts[3], parts[4]
        if not NAME.fullmatch(device) or device in RESERVED_DEVICES:
            return None
        for known in get_args(Channel):
            if channel == known:
                return DeviceTopic(device, known)
        return None
