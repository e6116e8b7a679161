"""Keys of devices and coordinators, and their requests for a certificate. P-256: every TLS library has it, and a board
makes one in a millisecond."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def new_key() -> bytes:
    """A new private key, PKCS 8 PEM without a passphrase: it is for daemons that start by themselves."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(key: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises ValueError for anything but a P-256 key in PEM."""
    found = serialization.load_pem_private_key(key, None)
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise ValueError("the key is not of an elliptic curve")
    return found


def signing_request(key: bytes, name: str) -> bytes:
    """A request for a certificate of this name, DER, which proves that we have the key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(load_key(key), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)
