"""How a device without a hub is heard and hears: parts and questions in envelopes, on topics of its own."""

from collections.abc import Callable
from dataclasses import dataclass

from protocol.envelope import Envelope, decode, encode
from protocol.errors import Rejection
from protocol.gossip import Part, Standing, Want
from protocol.messages import Body
from protocol.topics import Topics
from protocol.transport import Incoming, Transport

# Puts a seal on what is said on a topic, or leaves it.
Seal = Callable[[str, bytes], bytes]
# Why what a neighbour said is not to be decoded.
Check = Callable[[str, Incoming], Rejection | None]


@dataclass
class Wire:
    """The voice of one device (talk.Voice), and its ear for neighbours. seal, check: of identities, where there are.

    Every message is counted as all of this boot's are: by boot and a sequence of its own.
    """

    transport: Transport
    topics: Topics
    device: str
    boot: int
    seal: Seal = lambda _, payload: payload
    check: Check = lambda _, __: None
    sent_bytes: int = 0
    received_bytes: int = 0
    sequence: int = 0

    def publish(self, part: Part) -> bool:
        return self._send(self.topics.gossip(self.device), part)

    def tell(self, neighbour: str, part: Part) -> bool:
        return self._send(self.topics.gossip_to(self.device, neighbour), part)

    def ask(self, neighbour: str, want: Want) -> bool:
        return self._send(self.topics.want(self.device, neighbour), want)

    def report(self, standing: Standing) -> bool:
        return self._send(self.topics.device(self.device, "up"), standing)

    def read(self, message: Incoming) -> tuple[str, Part | Want] | Rejection | None:
        """Who says what; None for what is not of a neighbour's to say, and for what this device said itself."""
        sender = self.topics.parse_gossip(message.topic, self.device)
        if sender is None or sender == self.device:
            return None
        self.received_bytes += len(message.topic) + len(message.payload)
        said = self.check(sender, message) or decode(message.payload)
        if isinstance(said, Rejection):
            return said
        asked = message.topic == self.topics.want(sender, self.device)
        if isinstance(said.body, Want) and asked:
            return sender, said.body
        if isinstance(said.body, Part) and not asked:
            return sender, said.body
        return Rejection("misplaced", f"{type(said.body).__name__} on {message.topic}")

    def _send(self, topic: str, body: Body) -> bool:
        self.sequence += 1
        payload = self.seal(topic, encode(Envelope(self.boot, self.sequence, self.sent_bytes, body)))
        sent = self.transport.publish(topic, payload)
        if sent:
            self.sent_bytes += len(topic) + len(payload)
        return sent
