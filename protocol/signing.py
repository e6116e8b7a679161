"""Signatures: Ed25519 by the fleet's keys, ECDSA on P-256 by a device's own, each under the name of what is signed.

A seal is 72 bytes: the key's id, then 64 bytes of signature. What is signed is the purpose, a zero byte, and the data,
so that what was signed as one thing is never taken for another. The library is loaded where there is something to sign
or to check, and nowhere else: it is ten MiB.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

ID_BYTES = 8
SIGNATURE_BYTES = 64
SEAL_BYTES = ID_BYTES + SIGNATURE_BYTES
PUBLIC_BYTES = 32
Purpose = Literal["message", "release", "keyring"]
# What stands before an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410, section 4).
_ED25519 = bytes.fromhex("302a300506032b6570032100")


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key at work. public: 32 bytes of an Ed25519 key, b"" of any other."""

    key_id: bytes
    public: bytes
    _sign: Callable[[bytes], bytes]

    def seal(self, purpose: Purpose, data: bytes) -> bytes:
        return self.key_id + self._sign(_bound(purpose, data))


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key at work."""

    key_id: bytes
    _verify: Callable[[bytes, bytes], bool]

    def holds(self, seal: bytes, purpose: Purpose, data: bytes) -> bool:
        """Whether a seal is this key's, of this data."""
        if len(seal) != SEAL_BYTES or seal[:ID_BYTES] != self.key_id:
            return False
        return self._verify(seal[ID_BYTES:], _bound(purpose, data))


def key_id(public: bytes) -> bytes:
    """Of an Ed25519 key (32 bytes): the first 8 bytes of the SHA-256 of its SubjectPublicKeyInfo, DER."""
    return hashlib.sha256(_ED25519 + public).digest()[:ID_BYTES]


def new_signing_key() -> bytes:
    """A new Ed25519 private key, PKCS 8 PEM without a passphrase."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_signer(private: bytes) -> Signer:
    """The key in a PEM file: Ed25519 or P-256, whatever stands behind it. Raises ValueError for any other."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    key = serialization.load_pem_private_key(private, None)
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    found = hashlib.sha256(spki).digest()[:ID_BYTES]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return Signer(found, key.public_key().public_bytes_raw(), key.sign)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        own = key
        return Signer(found, b"", lambda data: _sign_p256(own, data))
    raise ValueError("the key is neither Ed25519 nor P-256")


def ed25519_verifier(public: bytes) -> Verifier:
    """public: 32 bytes. Raises ValueError for what is no key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return verifier_of(Ed25519PublicKey.from_public_bytes(public), key_id(public))


def verifier_of_spki(der: bytes) -> Verifier:
    """Of a SubjectPublicKeyInfo, DER, of an Ed25519 or P-256 key. Raises ValueError for what is none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    try:
        public = serialization.load_der_public_key(der)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    if not isinstance(public, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise ValueError("the key is neither Ed25519 nor of an elliptic curve")
    return verifier_of(public, hashlib.sha256(der).digest()[:ID_BYTES])


def verifier_of(public: "Ed25519PublicKey | EllipticCurvePublicKey", id_: bytes) -> Verifier:
    """Of a key of the library's."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    def verify(signature: bytes, data: bytes) -> bool:
        try:
            if isinstance(public, ec.EllipticCurvePublicKey):
                r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
                public.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
            else:
                public.verify(signature, data)
        except InvalidSignature:
            return False
        return True

    return Verifier(id_, verify)


def _sign_p256(key: object, data: bytes) -> bytes:
    """r and s, 32 bytes each, big-endian: of one length, where DER is not."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    assert isinstance(key, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32) + s.to_bytes(32)


def _bound(purpose: Purpose, data: bytes) -> bytes:
    return b"sparsefleet-" + purpose.encode("ascii") + b"-1\0" + data
