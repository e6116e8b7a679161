"""The coordinator's end of the wire: envelopes out and messages in, both counted, for the whole fleet."""

from collections.abc import Mapping

from coordinator.seals import Seals
from coordinator.traffic import MAX_CLAIM_BYTES, Direction, Sender, Traffic
from protocol.envelope import Envelope, decode, encode
from protocol.errors import Rejection
from protocol.keyring import Keyring
from protocol.messages import Body, Chunk, CoordinatorState, DeviceState
from protocol.topics import Channel, DeviceTopic, FleetChannel, Topics
from protocol.transport import Incoming, Transport, Will

# The bytes said to everyone are counted under this name, which no device may have.
EVERYONE = "all"


def last_will(topics: Topics, run: str, epoch: int, instance: int | None = None, seals: Seals | None = None) -> Will:
    """What the broker says when the coordinator is lost."""
    lost = CoordinatorState(epoch, accepting=False, run=run, instance=instance)
    topic, payload = topics.everyone("coordinator"), encode(Envelope(epoch, 0, 0, lost))
    return Will(topic, payload if seals is None else seals.seal(topic, payload))


class Link:
    """Sends bodies under this epoch's counters. `traffic` counts by (device, "up" or "down"), and for `begin_day`.

    seals: None where nobody has an identity.
    """

    def __init__(
        self,
        transport: Transport,
        topics: Topics,
        epoch: int,
        traffic: Mapping[Sender, Traffic],
        seals: Seals | None = None,
    ) -> None:
        self._transport, self._topics, self._epoch, self._seals = transport, topics, epoch, seals
        self._sequence = self._day = 0
        self.traffic = dict(traffic)

    def send(self, device: str, body: Body) -> bool:
        """False when there is no connection; nothing is kept, the tables say it again."""
        channel: Channel = "down/blob" if isinstance(body, Chunk) else "down"
        if isinstance(body, Keyring):
            channel = "down/keys"
        return self._publish(device, self._topics.device(device, channel), body, retain=False)

    def tell_everyone(self, channel: FleetChannel, body: Body, *, retain: bool = False) -> bool:
        return self._publish(EVERYONE, self._topics.everyone(channel), body, retain=retain)

    def speaker(self, message: Incoming) -> str | None:
        """Whose message this is, before any of it is read; None for topics that are not a device's to speak on."""
        topic = self._spoken_on(message)
        return None if topic is None else topic.device

    def read(self, message: Incoming) -> Envelope | Rejection | None:
        """What a device says, checked in this order: seal, form, place, freshness. None for topics that are not a
        device's to speak on."""
        topic = self._spoken_on(message)
        if topic is None:
            return None
        wrong = self._seals and self._seals.check(topic.device, message, will=topic.channel == "state")
        said = wrong or decode(message.payload)
        if isinstance(said, Rejection):
            return said
        misplaced = (topic.channel == "state") != isinstance(said.body, DeviceState)
        if misplaced or (topic.channel == "up/blob") != isinstance(said.body, Chunk):
            return Rejection("misplaced", f"{type(said.body).__name__} on channel {topic.channel}")
        return (self._seals and self._seals.fresh(topic.device, said)) or said

    def _spoken_on(self, message: Incoming) -> DeviceTopic | None:
        topic = self._topics.parse(message.topic)
        return None if topic is None or topic.channel not in ("state", "up", "up/blob") else topic

    def read_coordinator(self, message: Incoming) -> CoordinatorState | None:
        """What a coordinator of this fleet, this one or another, says of itself; None for any other message."""
        if message.topic != self._topics.everyone("coordinator"):
            return None
        if self._seals is not None and not self._seals.is_ours(message):
            return None
        said = decode(message.payload)
        return said.body if isinstance(said, Envelope) and isinstance(said.body, CoordinatorState) else None

    def count_up(self, device: str, message: Incoming, envelope: Envelope) -> None:
        """Takes the sender's own count, which includes what never arrived."""
        claim = min(envelope.sent_before + len(message.topic) + len(message.payload), MAX_CLAIM_BYTES)
        key: Sender = (device, "up")
        self.traffic[key] = self._of(key).counted(envelope.boot, claim)

    def begin_day(self, day: int) -> None:
        """From here on bytes are of that day, if they were not already."""
        if day != self._day:
            self._day = day
            self.traffic = {key: traffic.on(day) for key, traffic in self.traffic.items()}

    def today_bytes(self, device: str) -> int:
        """Bytes from and to a device since the day began."""
        return self._of((device, "up")).today_bytes + self._of((device, "down")).today_bytes

    def total_bytes(self, direction: Direction) -> int:
        """Bytes of everyone together in one direction since the run began."""
        return sum(t.total_bytes for (_, way), t in self.traffic.items() if way == direction)

    def _publish(self, receiver: str, topic: str, body: Body, *, retain: bool) -> bool:
        self._sequence += 1
        key: Sender = (receiver, "down")
        traffic = self._of(key).counted(self._epoch, 0)
        if self._seals is not None:
            body = self._seals.signed(body)
        payload = encode(Envelope(self._epoch, self._sequence, traffic.sent_bytes, body))
        if self._seals is not None:
            payload = self._seals.seal(topic, payload)
        sent = self._transport.publish(topic, payload, retain=retain)
        if sent:
            traffic = traffic.counted(self._epoch, traffic.sent_bytes + len(topic) + len(payload))
        self.traffic[key] = traffic
        return sent

    def _of(self, key: Sender) -> Traffic:
        return self.traffic.get(key) or Traffic(day=self._day)
