"""The agent's end of the wire: envelopes out, counted where they are sent, and messages in, checked."""

from edge_agent.trusted import Trusted
from protocol.envelope import Envelope, decode, encode
from protocol.errors import Rejection
from protocol.keyring import Keyring
from protocol.messages import Body, CoordinatorState, DeviceState, Hello
from protocol.topics import Channel, Topics
from protocol.transport import Incoming, Transport, Will


def last_will(topics: Topics, device: str, boot: int, trusted: Trusted | None = None) -> Will:
    """What the broker says for this device when it is lost."""
    topic, lost = topics.device(device, "state"), encode(Envelope(boot, 0, 0, DeviceState("lost")))
    return Will(topic, lost if trusted is None else trusted.seal(topic, lost))


class Link:
    """Sends bodies under this boot's counters. `sent_bytes` counts topics and payloads, retries included, and so does
    `received_bytes`. trusted: who seals and is believed, None where nobody has an identity."""

    def __init__(
        self, transport: Transport, topics: Topics, device: str, boot: int, trusted: Trusted | None = None
    ) -> None:
        self._transport, self._topics, self._device, self._boot = transport, topics, device, boot
        self._trusted = trusted
        self._sequence = 0
        self.sent_bytes = self.received_bytes = 0

    @property
    def bytes_both_ways(self) -> int:
        return self.sent_bytes + self.received_bytes

    def send(self, channel: Channel, body: Body, *, retain: bool = False) -> bool:
        """False when there is no connection; nothing is kept, whoever cares says it again."""
        return self.say(self._topics.device(self._device, channel), body, retain=retain)

    def say(self, topic: str, body: Body, *, retain: bool = False) -> bool:
        """The same, on any topic that is this device's to speak on."""
        self._sequence += 1
        payload = encode(Envelope(self._boot, self._sequence, self.sent_bytes, body))
        if self._trusted is not None:
            payload = self._trusted.seal(topic, payload)
            if isinstance(body, Hello):
                self._trusted.greeted(self._sequence)
        sent = self._transport.publish(topic, payload, retain=retain)
        if sent:
            self.sent_bytes += len(topic) + len(payload)
        return sent

    def read(self, message: Incoming) -> Envelope | Rejection | None:
        """What a message says; None for topics that are not this agent's."""
        self.received_bytes += len(message.topic) + len(message.payload)
        parsed = self._topics.parse(message.topic)
        fleet_wide = message.topic == self._topics.everyone("coordinator")
        if not fleet_wide and not (parsed and parsed.device == self._device and parsed.channel.startswith("down")):
            return None
        keys = parsed is not None and parsed.channel == "down/keys"
        wrong = None if keys or self._trusted is None else self._trusted.check(message)
        envelope = wrong or decode(message.payload)
        if isinstance(envelope, Rejection):
            return envelope
        misplaced = fleet_wide and not isinstance(envelope.body, CoordinatorState)
        if misplaced or keys != isinstance(envelope.body, Keyring):
            return Rejection("misplaced", f"{type(envelope.body).__name__} on {message.topic}")
        wrong = None if keys or self._trusted is None else self._trusted.fresh(envelope)
        return wrong or envelope
