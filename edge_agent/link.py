"""The agent's end of the wire: envelopes out, counted where they are sent, and messages in, checked."""

from protocol.errors import Rejection
from protocol.messages import Body, CoordinatorState, DeviceState, Envelope, decode, encode
from protocol.topics import Channel, Topics
from protocol.transport import Incoming, Transport, Will


def last_will(topics: Topics, device: str, boot: int) -> Will:
    """What the broker says for this device when it is lost."""
    lost = Envelope(boot, 0, 0, DeviceState("lost"))
    return Will(topics.device(device, "state"), encode(lost))


class Link:
    """Sends bodies under this boot's counters. `sent_bytes` counts topics and payloads, retries included, and so does
    `received_bytes`."""

    def __init__(self, transport: Transport, topics: Topics, device: str, boot: int) -> None:
        self._transport, self._topics, self._device, self._boot = transport, topics, device, boot
        self._sequence = 0
        self.sent_bytes = self.received_bytes = 0

    @property
    def bytes_both_ways(self) -> int:
        return self.sent_bytes + self.received_bytes

    def send(self, channel: Channel, body: Body, *, retain: bool = False) -> bool:
        """False when there is no connection; nothing is kept, whoever cares says it again."""
        self._sequence += 1
        topic = self._topics.device(self._device, channel)
        payload = encode(Envelope(self._boot, self._sequence, self.sent_bytes, body))
        sent = self._transport.publish(topic, payload, retain=retain)
        if sent:
            self.sent_bytes += len(topic) + len(payload)
        return sent

    def read(self, message: Incoming) -> Envelope | Rejection | None:
        """What a message says; None for topics that are not this agent's."""
        self.received_bytes += len(message.topic) + len(message.payload)
        parsed = self._topics.parse(message.topic)
        fleet_wide = message.topic == self._topics.everyone("coordinator")
        if fleet_wide or (parsed and parsed.device == self._device and parsed.channel in ("down", "down/blob")):
            envelope = decode(message.payload)
            if fleet_wide and isinstance(envelope, Envelope) and not isinstance(envelope.body, CoordinatorState):
                return Rejection("misplaced", f"{type(envelope.body).__name__} on a topic for everyone")
            return envelope
        return None
