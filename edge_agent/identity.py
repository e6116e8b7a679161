"""A device's identity on disk: its key and certificate, the fleet's roots, and when it is time for the next one.

Key and certificate are one file, so that a power cut leaves the old pair or the new one.
"""

import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from protocol.enrolment import Issued
from protocol.errors import NotEnrolledError
from protocol.private_files import check_private, make_private_folder, write_private
from protocol.records import read_record, write_record
from protocol.tls import Credentials

# Renewed when this share of its life is over, so that a device may be away for the rest of it.
RENEW_AFTER = 2 / 3
_ENROL = "enrol it: edge-agent enroll --url HOST:PORT --token TOKEN"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a device is, in which fleet, and until when. endpoint: where it enrolled, HOST:PORT, and renews."""

    device: str
    fleet: str
    endpoint: str
    issued_s: float
    ends_s: float

    @property
    def renew_at_s(self) -> float:
        """When to ask for the next certificate, in Unix seconds."""
        return self.issued_s + RENEW_AFTER * (self.ends_s - self.issued_s)


def credentials(state: Path) -> Credentials:
    """The files of the identity in a state folder, there or not."""
    folder = identity_folder(state)
    return Credentials(folder / "roots.pem", folder / "identity.pem", folder / "identity.pem")


def load_identity(state: Path) -> Identity:
    """The identity in a state folder. Raises NotEnrolledError where there is none that is whole, and ConfigurationError
    where its key is open to others."""
    own = credentials(state)
    try:
        identity = read_record(Identity, json.loads((identity_folder(state) / "identity.json").read_bytes()))
        check_private(own.key)
        own.roots.stat()
    except (OSError, ValueError):
        raise NotEnrolledError(f"{identity_folder(state)}: this device has no identity in a fleet; {_ENROL}") from None
    return identity


def pending_key(state: Path, make: Callable[[], bytes]) -> bytes:
    """The key of a request that is under way. It is on disk before anything is asked, so that an answer that was lost
    can be asked for again with the same key."""
    make_private_folder(identity_folder(state))
    path = _pending(state)
    if path.exists():
        check_private(path)
    else:
        write_private(path, make())
    return path.read_bytes()


def store_identity(state: Path, device: str, endpoint: str, issued: Issued) -> Identity:
    """Puts the pending key in force, with what was issued for it."""
    identity = Identity(device, issued.fleet, endpoint, issued.issued_s, issued.ends_s)
    own = credentials(state)
    certificate = ssl.DER_cert_to_PEM_cert(issued.certificate).encode("ascii")
    write_private(own.roots, roots_pem(issued.roots).encode("ascii"))
    write_private(own.key, _pending(state).read_bytes() + certificate)
    write_private(
        identity_folder(state) / "identity.json", json.dumps(write_record(identity), indent=1).encode("ascii")
    )
    _pending(state).unlink()
    return identity


def roots_pem(roots: tuple[bytes, ...]) -> str:
    return "".join(map(ssl.DER_cert_to_PEM_cert, roots))


def identity_folder(state: Path) -> Path:
    return state / "identity"


def _pending(state: Path) -> Path:
    return identity_folder(state) / "pending.pem"
