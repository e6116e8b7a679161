"""The fleet's own certificate authority: a root, what it issues, and its list of what is revoked. All in one folder.

The root's key signs devices, the broker and the coordinator, and nothing else; it never leaves this folder.
"""

import fcntl
import hashlib
import ipaddress
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import ConfigurationError, Rejection
from protocol.keys import load_key, new_key
from protocol.private_files import check_private, make_private_folder, write_private
from protocol.signing import ID_BYTES, Verifier, verifier_of
from protocol.tls import SERVER_NAME, Credentials

# The coordinator's name as a client of the broker: none that a device can have (protocol/topics.py).
COORDINATOR = "Coordinator"
# Clocks differ, and a board's may be late by more than minutes after a cold start.
BACKDATED = timedelta(hours=24)
ROOT_DAYS = 20 * 365
# Of broker and coordinator, whose keys stay on the server; renewed at any start in the second half.
SERVER_DAYS = 730
# An expired list would lock everybody out, and this one is written anew by whoever revokes.
LIST_DAYS = ROOT_DAYS

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Certificate:
    """An issued certificate. key: SHA-256 of the public key that it is for. It holds from before it was issued on."""

    name: str
    serial: int
    key: bytes
    der: bytes
    issued_s: float
    ends_s: float


@dataclass(frozen=True, slots=True)
class BrokerFiles:
    """What a broker needs of us."""

    roots: Path
    certificate: Path
    key: Path
    revoked: Path


class Authority:
    """The CA in a folder, made if there is none. Any number of processes may have it open.

    Raises ConfigurationError for a folder that is damaged, or open to others.
    """

    def __init__(self, folder: Path, now_s: float) -> None:
        self.folder = folder
        make_private_folder(folder)
        with locked(folder):
            if not (folder / "root.pem").exists():
                _make_root(folder, now_s)
            self._key, self._root = _load_root(folder)
            self.broker = BrokerFiles(*(folder / n for n in ("root.pem", "broker.pem", "broker.key", "revoked.pem")))
            self.coordinator = Credentials(*(folder / n for n in ("root.pem", "coordinator.pem", "coordinator.key")))
            self._renew_own(self.broker.certificate, self.broker.key, SERVER_NAME, now_s)
            self._renew_own(self.coordinator.certificate, self.coordinator.key, COORDINATOR, now_s)
            if not self.broker.revoked.exists():
                self.write_revoked((), now_s)

    @property
    def roots(self) -> tuple[bytes, ...]:
        """DER of all roots that devices trust; the one that issues first."""
        return (self._root.public_bytes(serialization.Encoding.DER),)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the root that issues."""
        return hashlib.sha256(self.roots[0]).digest()

    def issue(self, name: str, request: bytes, now_s: float, days: float) -> Certificate | Rejection:
        """A device's certificate. Of the request (DER) counts the key alone, and the proof that it is the sender's."""
        key = requested_key(request)
        if isinstance(key, Rejection):
            return key
        ends = datetime.fromtimestamp(now_s, UTC) + timedelta(days=days)
        return self._issue(name, key, now_s, min(ends, self._root.not_valid_after_utc), ExtendedKeyUsageOID.CLIENT_AUTH)

    def write_revoked(self, serials: Iterable[tuple[int, float]], now_s: float) -> None:
        """The list of revoked serial numbers, each with when it was, in place of the one before."""
        now = datetime.fromtimestamp(now_s, UTC)
        built = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._root.subject)
            .last_update(now - BACKDATED)
            .next_update(now + timedelta(days=LIST_DAYS))
        )
        for serial, at_s in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            built = built.add_revoked_certificate(entry.revocation_date(datetime.fromtimestamp(at_s, UTC)).build())
        signed = built.sign(self._key, hashes.SHA256())
        write_private(self.broker.revoked, signed.public_bytes(serialization.Encoding.PEM))

    def stand_in(self, name: str, folder: Path, now_s: float) -> Credentials:
        """A certificate of a device's name for some minutes, ours to use: whoever connects under a name ends the
        session that had it. Its files are in `folder`, which the caller removes."""
        own = Credentials(self.broker.roots, folder / "stand-in.pem", folder / "stand-in.key")
        ends = datetime.fromtimestamp(now_s, UTC) + timedelta(minutes=5)
        key = new_key()
        public = load_key(key).public_key()
        issued = self._issue(name, public, now_s, ends, ExtendedKeyUsageOID.CLIENT_AUTH)
        write_private(own.key, key)
        write_private(own.certificate, to_pem(issued.der))
        return own

    def _renew_own(self, path: Path, key_path: Path, name: str, now_s: float) -> None:
        """Makes the broker's or the coordinator's certificate and key, or makes them anew in time."""
        if path.exists() and key_path.exists():
            check_private(key_path)
            ends_s = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc.timestamp()
            if ends_s - now_s > SERVER_DAYS * 86400 / 2:
                return
        key = new_key()
        usage = ExtendedKeyUsageOID.SERVER_AUTH if name == SERVER_NAME else ExtendedKeyUsageOID.CLIENT_AUTH
        ends = datetime.fromtimestamp(now_s, UTC) + timedelta(days=SERVER_DAYS)
        issued = self._issue(name, load_key(key).public_key(), now_s, ends, usage)
        write_private(key_path, key)
        write_private(path, to_pem(issued.der))

    def _issue(
        self, name: str, key: PublicKey, now_s: float, ends: datetime, usage: x509.ObjectIdentifier
    ) -> Certificate:
        begins = datetime.fromtimestamp(now_s, UTC) - BACKDATED
        built = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self._root.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if usage == ExtendedKeyUsageOID.SERVER_AUTH:
            loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            names = x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName("localhost"), loopback])
            built = built.add_extension(names, critical=False)
        signed = built.sign(self._key, hashes.SHA256())
        public = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        der = signed.public_bytes(serialization.Encoding.DER)
        digest = hashlib.sha256(public).digest()
        return Certificate(name, signed.serial_number, digest, der, now_s, ends.timestamp())


def to_pem(der: bytes) -> bytes:
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)


def serial_of(der: bytes) -> int:
    return x509.load_der_x509_certificate(der).serial_number


def public_key_in(der: bytes) -> bytes:
    """The key that an issued certificate is for: SubjectPublicKeyInfo, DER."""
    public = x509.load_der_x509_certificate(der).public_key()
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def verifier_in(der: bytes) -> Verifier:
    """Of the key that an issued certificate is for."""
    public = x509.load_der_x509_certificate(der).public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise ValueError("the certificate's key is neither of an elliptic curve nor Ed25519")
    spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return verifier_of(public, hashlib.sha256(spki).digest()[:ID_BYTES])


def requested_key(request: bytes) -> PublicKey | Rejection:
    """The key that a request (DER) is for and proves to be the sender's, of the kinds that devices have."""
    try:
        read = x509.load_der_x509_csr(request)
        if not read.is_signature_valid:
            return Rejection("request", "it is not signed with the key that it is for")
        key = read.public_key()
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion):
        return Rejection("request", "it is no request for a certificate")
    # Anything larger or rarer only costs everybody time at each handshake.
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    return Rejection("request", "its key is neither P-256 nor Ed25519")


def _make_root(folder: Path, now_s: float) -> None:
    key = new_key()
    private = load_key(key)
    begins = datetime.fromtimestamp(now_s, UTC) - BACKDATED
    # Two roots of one fleet must not be mistaken for each other.
    name = _name(f"sparsefleet root {os.urandom(4).hex()}")
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=ROOT_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    write_private(folder / "root.key", key)
    write_private(folder / "root.pem", root.public_bytes(serialization.Encoding.PEM))


def _load_root(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        check_private(folder / "root.key")
        key = load_key((folder / "root.key").read_bytes())
        root = x509.load_pem_x509_certificate((folder / "root.pem").read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"trust.folder: {folder} is not whole ({error}); restore it from a backup, or name a new folder and enrol "
            "every device again"
        ) from None
    if root.public_key() != key.public_key():
        raise ConfigurationError(f"trust.folder: root.key and root.pem in {folder} are not of each other; restore both")
    return key, root


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The trust folder for one process: of two commands that find it empty one makes what belongs in it."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
