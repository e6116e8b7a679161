"""Signed statements that stand by themselves: a seal, then the CBOR of one record. Checked before they are decoded."""

from collections.abc import Iterable
from typing import TypeVar

import cbor2

from protocol.cbor import flaw
from protocol.errors import Rejection
from protocol.records import RecordError, read_record, write_record
from protocol.signing import ID_BYTES, SEAL_BYTES, Purpose, Signer, ed25519_verifier

T = TypeVar("T")

MAX_STATEMENT = 4096
# A ring with as many keys as it may have has some sixty.
MAX_ITEMS = 128


def state(purpose: Purpose, record: object, signer: Signer) -> bytes:
    """The bytes of a statement."""
    body = cbor2.dumps(write_record(record))
    return signer.seal(purpose, body) + body


def check(purpose: Purpose, data: bytes, keys: Iterable[bytes]) -> Rejection | None:
    """Why a statement is not of one of these Ed25519 keys, None where it is."""
    if not SEAL_BYTES < len(data) <= MAX_STATEMENT:
        return Rejection("signature", f"a {purpose} of {len(data)} bytes is none")
    seal, body = data[:SEAL_BYTES], data[SEAL_BYTES:]
    for key in map(ed25519_verifier, keys):
        if key.key_id == seal[:ID_BYTES]:
            right = key.holds(seal, purpose, body)
            return None if right else Rejection("signature", f"the signature of this {purpose} is wrong")
    return Rejection("unknown-key", f"this {purpose} is signed with {seal[:ID_BYTES].hex()}, none of the keys in force")


def read_statement(cls: type[T], data: bytes) -> T | Rejection:
    """What a statement says; that it may be believed is for the caller to know."""
    body = data[SEAL_BYTES:]
    wrong = "it is too long" if len(data) > MAX_STATEMENT else flaw(body, MAX_ITEMS)
    if wrong is not None:
        return Rejection("malformed", f"no {cls.__name__.lower()}: {wrong}")
    try:
        return read_record(cls, cbor2.loads(body), ignore_unknown=True)
    except RecordError as error:
        return Rejection("malformed", f"no {cls.__name__.lower()}: {error}"[:500])
    except (cbor2.CBORDecodeError, ValueError) as error:
        return Rejection("malformed", f"no {cls.__name__.lower()} ({type(error).__name__})")
