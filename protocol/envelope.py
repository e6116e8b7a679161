"""One message of the wire as CBOR: the envelope, how it is written, and how it is read with every bound checked.

An envelope is a CBOR map with integer keys, 0 version, 1 type, 2 boot, 3 sequence, 4 bytes sent before, 5 body. (boot,
sequence) with the topic's device names a message for ever: the sender keeps its boot counter on disk. "Bytes sent
before" is the sender's own running count of topic and payload bytes in this boot, so that what a round cost is known to
the receiver as the sender counted it, retries and lost messages included. Seals are the business of protocol/sealed.py.
"""

from dataclasses import dataclass
from typing import Any

import cbor2

from protocol.cbor import flaw
from protocol.errors import Rejection
from protocol.gossip import Effort, Membership, Part, Standing, Want
from protocol.keyring import Keyring
from protocol.messages import (
    MAX_MESSAGE_BYTES,
    MAX_NAME,
    MAX_TEXT,
    Announcement,
    Body,
    Chunk,
    CoordinatorState,
    DeviceState,
    Hello,
    Later,
    Need,
    Offer,
    Receipt,
    Task,
    TaskReport,
    Unavailable,
    Welcome,
    Withdraw,
)
from protocol.records import RecordError, read_record, write_record
from protocol.topics import PROTOCOL_VERSION

# Names are repeated in answers, logs and tables, so they end sooner.
_NAMES = frozenset({"run", "task", "agent", "backend", "codec", "variant", "warning"})

# The numbers are the wire format: never renumbered, only added to.
TYPES: dict[int, type[Any]] = {
    1: Hello,
    2: Welcome,
    3: Task,
    4: TaskReport,
    5: Offer,
    6: Need,
    7: Chunk,
    8: Receipt,
    9: Withdraw,
    10: Unavailable,
    11: CoordinatorState,
    12: DeviceState,
    13: Announcement,
    14: Later,
    15: Keyring,
    16: Membership,
    17: Effort,
    18: Part,
    19: Want,
    20: Standing,
}
_NUMBERS = {cls: number for number, cls in TYPES.items()}


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message as it came: who counted it as what, and what it says."""

    boot: int
    sequence: int
    sent_before: int
    body: Body


def encode(envelope: Envelope) -> bytes:
    """The bytes of a message. Of a `detail`, which is for people, what is over the limit is cut off."""
    body = envelope.body
    fields = write_record(body)
    if "detail" in fields:
        fields["detail"] = fields["detail"][:MAX_TEXT]
    return cbor2.dumps(
        {
            0: PROTOCOL_VERSION,
            1: _NUMBERS[type(body)],
            2: envelope.boot,
            3: envelope.sequence,
            4: envelope.sent_before,
            5: fields,
        }
    )


def decode(data: bytes) -> Envelope | Rejection:
    """A message from its bytes, or why it is none."""
    if len(data) > MAX_MESSAGE_BYTES:
        return Rejection("frame-too-large", f"{len(data)} bytes are over the limit of {MAX_MESSAGE_BYTES}")
    wrong = flaw(data)
    if wrong is not None:
        return Rejection("malformed", f"not a CBOR message: {wrong}")
    try:
        fields = cbor2.loads(data)
    # What is left to be wrong is text that is not UTF-8; the name of cbor2's error for it depends on its version.
    except (cbor2.CBORDecodeError, ValueError) as error:
        return Rejection("malformed", f"not a CBOR message ({type(error).__name__})")
    version = fields.get(0) if isinstance(fields, dict) else None
    if type(version) is not int or version != PROTOCOL_VERSION:
        return Rejection("protocol", f"not a version {PROTOCOL_VERSION} message")
    kind = fields.get(1)
    cls = TYPES.get(kind) if type(kind) is int else None
    if cls is None:
        # Of what is no number only the kind is said: to print a chunk takes four times its size.
        said = kind if type(kind) is int else f"that is {type(kind).__name__}"
        return Rejection("unknown-type", f"message type {said} is not known to this version")
    boot, sequence, sent_before = _counter(fields.get(2)), _counter(fields.get(3)), _counter(fields.get(4))
    if boot is None or sequence is None or sent_before is None:
        return Rejection("malformed", "boot, sequence and byte count must be unsigned integers")
    try:
        body = read_record(cls, fields.get(5), ignore_unknown=True)
        _check_bounds(body)
    except RecordError as error:
        return Rejection("malformed", f"{cls.__name__}: {error}"[:MAX_TEXT])
    return Envelope(boot, sequence, sent_before, body)


def _counter(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _check_bounds(body: object) -> None:
    for name in getattr(type(body), "__slots__", ()):
        value = getattr(body, name)
        limit = MAX_NAME if name in _NAMES else MAX_TEXT
        if isinstance(value, str) and len(value) > limit:
            raise RecordError(f"{name}: {len(value)} characters are over the limit of {limit}")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise RecordError(f"{name}: does not fit 64 bits")
        if name in ("digest", "base") and isinstance(value, bytes) and len(value) != 32:
            raise RecordError(f"{name}: {len(value)} bytes where SHA-256 has 32")
