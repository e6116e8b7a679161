"""How a device without a hub is heard and hears: parts and questions in envelopes, on topics of its own."""

from dataclasses import dataclass, field

from edge_agent.gossip.ear import Ear
from edge_agent.link import Link
from protocol.envelope import decode
from protocol.errors import Rejection
from protocol.gossip import Part, Standing, Want
from protocol.topics import Topics
from protocol.transport import Incoming


@dataclass
class Wire:
    """The voice of one device (talk.Voice), and its ear for neighbours. link: seals and counts all that this boot
    says. ear: who is believed. sent_bytes: of parts and questions; both counts are topics and payloads."""

    link: Link
    topics: Topics
    device: str
    ear: Ear = field(default_factory=Ear)
    sent_bytes: int = 0
    received_bytes: int = 0

    def publish(self, part: Part) -> bool:
        return self._say(self.topics.gossip(self.device), part)

    def tell(self, neighbour: str, part: Part) -> bool:
        return self._say(self.topics.gossip_to(self.device, neighbour), part)

    def ask(self, neighbour: str, want: Want) -> bool:
        return self._say(self.topics.want(self.device, neighbour), want)

    def report(self, standing: Standing) -> bool:
        return self.link.send("up", standing)

    def read(self, message: Incoming) -> tuple[str, Part | Want] | Rejection | None:
        """Who says what; None for what is not of a neighbour's to say, and for what this device said itself."""
        sender = self.topics.parse_gossip(message.topic, self.device)
        if sender is None or sender == self.device:
            return None
        size = len(message.topic) + len(message.payload)
        self.received_bytes += size
        self.link.received_bytes += size
        said = self.ear.check(sender, message) or decode(message.payload)
        if isinstance(said, Rejection):
            return said
        wrong = self.ear.fresh(sender, said)
        if wrong is not None:
            return wrong
        asked = message.topic == self.topics.want(sender, self.device)
        if isinstance(said.body, Want) and asked:
            return sender, said.body
        if isinstance(said.body, Part) and not asked:
            return sender, said.body
        return Rejection("misplaced", f"{type(said.body).__name__} on {message.topic}")

    def _say(self, topic: str, body: Part | Want) -> bool:
        before = self.link.sent_bytes
        sent = self.link.say(topic, body)
        self.sent_bytes += self.link.sent_bytes - before
        return sent
