"""A sealed message: the envelope's map with one entry more, its last, whose place and length never change.

    a7                       a map of seven, where the envelope alone has six
    ...                      the six entries
    06 58 48                 key 6: 72 bytes, the seal

Sealed are the topic, a zero byte, and all that comes before the last entry. So a seal is checked before anything is
decoded, a message that was said on one topic is none on another, and a reader that knows nothing of seals passes over a
key that is unknown to it.
"""

from protocol.messages import MAX_MESSAGE_BYTES
from protocol.signing import SEAL_BYTES, Signer, Verifier

_SIX, _SEVEN = b"\xa6", b"\xa7"
_ENTRY = b"\x06\x58" + bytes([SEAL_BYTES])
# What a seal adds to a message.
SEALED_BYTES = len(_ENTRY) + SEAL_BYTES


def sealed(topic: str, payload: bytes, signer: Signer) -> bytes:
    """The payload of an envelope, with the seal."""
    assert payload[:1] == _SIX
    said = _SEVEN + payload[1:]
    return said + _ENTRY + signer.seal("message", _bound(topic, said))


def seal_in(payload: bytes) -> bytes | None:
    """The seal of a message, right or not; None where it has none, or where the message is longer than any may be."""
    at = len(payload) - SEALED_BYTES
    fits = 1 <= at <= MAX_MESSAGE_BYTES - SEALED_BYTES
    if not fits or payload[:1] != _SEVEN or payload[at : at + len(_ENTRY)] != _ENTRY:
        return None
    return payload[-SEAL_BYTES:]


def holds(topic: str, payload: bytes, verifier: Verifier) -> bool:
    """Whether a message that has a seal was sealed with this key, for this topic."""
    return verifier.holds(payload[-SEAL_BYTES:], "message", _bound(topic, payload[:-SEALED_BYTES]))


def _bound(topic: str, said: bytes) -> bytes:
    return topic.encode("utf-8") + b"\0" + said
