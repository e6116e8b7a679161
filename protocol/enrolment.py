"""What is said at enrolment, and how: one question and one answer a connection, each a length and a little CBOR.

Both ends set limits before they read: bytes of a frame, and seconds for all of it.
"""

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cbor2

from protocol.cbor import flaw
from protocol.errors import Rejection
from protocol.records import RecordError, read_record, write_record
from protocol.token import SECRET_BYTES

DEFAULT_PORT = 8884
# A request for a P-256 certificate has about 250 bytes, a certificate 500; roots may be a few.
MAX_FRAME = 16 * 1024
MAX_REQUEST = 4096
# For the handshake, the question and the answer together; a board on a bad link needs a few.
EXCHANGE_S = 15.0


@dataclass(frozen=True, slots=True)
class AskRoots:
    """For the roots of the fleet, which are no secret. The one question for a server that nothing is known of yet."""


@dataclass(frozen=True, slots=True)
class Enrol:
    """A device's request (DER) for its first certificate, with the secret of a token."""

    device: str
    secret: bytes
    request: bytes

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES or not 0 < len(self.request) <= MAX_REQUEST or len(self.device) > 63:
            raise ValueError("request: the secret, the request or the name is of a wrong size")

    def __repr__(self) -> str:
        return f"Enrol({self.device!r}, ...)"


@dataclass(frozen=True, slots=True)
class Renew:
    """A request for the next certificate of whoever the connection's certificate names."""

    request: bytes

    def __post_init__(self) -> None:
        if not 0 < len(self.request) <= MAX_REQUEST:
            raise ValueError("request: is of a wrong size")


@dataclass(frozen=True, slots=True)
class Roots:
    """Certificates (DER) of the fleet's CA, the one that issues first."""

    roots: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Issued:
    """A device's certificate and all roots that it is to trust, DER; when it was issued and until when it holds, in
    Unix seconds.

    broker: the address of the fleet's broker; a host that is left out is the one that was asked. ring, rings: the
    fleet's keys (protocol/keyring.py), the last ones, and the version of the first of them; none from older
    coordinators.
    """

    certificate: bytes
    roots: tuple[bytes, ...]
    fleet: str
    broker: str
    issued_s: float
    ends_s: float
    ring: int = 0
    rings: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A request was refused, and why."""

    reason: str
    detail: str


Message = AskRoots | Enrol | Renew | Roots | Issued | Refused
Question = AskRoots | Enrol | Renew

_KINDS: Mapping[str, type[Message]] = {
    "ask-roots": AskRoots,
    "enrol": Enrol,
    "renew": Renew,
    "roots": Roots,
    "issued": Issued,
    "refused": Refused,
}
_NAMES = {cls: name for name, cls in _KINDS.items()}


def encode(message: Message) -> bytes:
    """The message with its length before it."""
    body = cbor2.dumps({"kind": _NAMES[type(message)], **write_record(message)})
    assert len(body) <= MAX_FRAME, f"{len(body)} bytes are too many for a frame"
    return len(body).to_bytes(4) + body


def decode(body: bytes) -> Message | Rejection:
    """What a frame says."""
    if len(body) > MAX_FRAME:
        return Rejection("too-large", f"{len(body)} bytes are over the limit of {MAX_FRAME}")
    wrong = flaw(body)
    if wrong is not None:
        return Rejection("malformed", wrong)
    try:
        said = cbor2.loads(body)
        cls = _KINDS.get(said.pop("kind", "")) if isinstance(said, dict) else None
        if cls is None:
            return Rejection("malformed", "no kind of message that is known here")
        return read_record(cls, said, ignore_unknown=True)
    except RecordError:
        # Its text may quote a value, and a value may be a secret.
        return Rejection("malformed", "its fields are not those of its kind")
    except (cbor2.CBORDecodeError, ValueError, TypeError) as error:
        return Rejection("malformed", type(error).__name__)


def receive(connection: socket.socket, deadline: float, clock: Callable[[], float] = time.monotonic) -> bytes:
    """The next frame's body. deadline: by `clock`. Raises OSError (TimeoutError among them) and ValueError."""
    length = int.from_bytes(_exactly(connection, 4, deadline, clock))
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes is over the limit of {MAX_FRAME}")
    return _exactly(connection, length, deadline, clock)


def _exactly(connection: socket.socket, length: int, deadline: float, clock: Callable[[], float]) -> bytes:
    data = b""
    while len(data) < length:
        left = deadline - clock()
        if left <= 0:
            raise TimeoutError("it took too long")
        connection.settimeout(left)
        more = connection.recv(length - len(data))
        if not more:
            raise ConnectionError("the connection ended early")
        data += more
    return data
