"""A token to enrol with, as text: the fingerprint of the fleet's root, a secret for one use, and a check of typing."""

import base64
import secrets
import zlib
from dataclasses import dataclass

PREFIX = "sft1"
SECRET_BYTES = 16
_FINGERPRINT_BYTES = 32
_CHECK_BYTES = 3


@dataclass(frozen=True, slots=True)
class Token:
    """What a device needs for its first contact. fingerprint: SHA-256 of the root's DER. The secret stays out of
    `repr`, and so out of logs and tracebacks."""

    fingerprint: bytes
    secret: bytes

    def __post_init__(self) -> None:
        assert len(self.fingerprint) == _FINGERPRINT_BYTES
        assert len(self.secret) == SECRET_BYTES

    def __repr__(self) -> str:
        return f"Token({self.fingerprint.hex()[:12]}, ...)"

    @property
    def text(self) -> str:
        """Lower-case letters and digits, so that a double click selects it all."""
        body = self.fingerprint + self.secret
        return PREFIX + base64.b32encode(body + _check(body)).decode("ascii").rstrip("=").lower()


def new_token(fingerprint: bytes) -> Token:
    return Token(fingerprint, secrets.token_bytes(SECRET_BYTES))


def parse_token(text: str) -> Token:
    """Raises ValueError, without any of the token in its text."""
    text = text.strip()
    wanted = len(PREFIX) + -(-8 * (_FINGERPRINT_BYTES + SECRET_BYTES + _CHECK_BYTES) // 5)
    if not text.startswith(PREFIX) or len(text) != wanted:
        raise ValueError(
            f"token: is {len(text)} characters long and must be {wanted}, of which the first are {PREFIX!r}; copy the "
            "whole of what fleet-coordinator token printed"
        )
    try:
        data = base64.b32decode(text[len(PREFIX) :].upper() + "=" * (-(wanted - len(PREFIX)) % 8))
    except ValueError:
        data = bytes(_FINGERPRINT_BYTES + SECRET_BYTES + _CHECK_BYTES)
    token = Token(data[:_FINGERPRINT_BYTES], data[_FINGERPRINT_BYTES:-_CHECK_BYTES])
    # The last character has two bits to spare, which count too.
    if token.text != text.lower():
        raise ValueError("token: a character in it is wrong; copy it again")
    return token


def _check(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4)[:_CHECK_BYTES]
