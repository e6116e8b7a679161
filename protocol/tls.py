"""TLS between the devices, the broker and the coordinator of a fleet: contexts, and failures in plain words.

A server is known by the fleet's own root and by SERVER_NAME in its certificate, under whatever address it was reached:
boards find servers by addresses that change, and nobody but the fleet's CA issues under that root.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import NotEnrolledError

# No name of the public DNS; .internal is reserved for such.
SERVER_NAME = "coordinator.sparsefleet.internal"

# OpenSSL's numbers of what may be wrong with a server's certificate.
_NOT_YET, _EXPIRED = 9, 10
_FOREIGN = frozenset({18, 19, 20, 21, 24, 26, 62})
# What the other side may find wrong with ours, by the end of OpenSSL's name for the alert.
_ALERTS: Mapping[str, str] = {
    "ALERT_CERTIFICATE_REVOKED": "the broker says that this device's certificate was revoked; ask for a new token",
    "ALERT_CERTIFICATE_EXPIRED": "the broker says that this device's certificate has expired; enrol it again",
    "ALERT_UNKNOWN_CA": "the broker does not know who issued this certificate: it is of another fleet, or an older CA",
    "ALERT_CERTIFICATE_REQUIRED": "the broker takes nobody without a certificate; enrol first",
    "ALERT_HANDSHAKE_FAILURE": "the broker refused the handshake; it takes nobody without a certificate of its fleet",
    "ALERT_BAD_CERTIFICATE": "the broker does not take this certificate; enrol again",
    "WRONG_VERSION_NUMBER": "no TLS is spoken there; is it a plain MQTT port?",
    "UNEXPECTED_EOF_WHILE_READING": "the other side ended the connection in the middle of the handshake",
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the files of one identity are: the roots that it trusts, its certificate, and its key."""

    roots: Path
    certificate: Path
    key: Path


class FleetContext(ssl.SSLContext):
    """A client's context. `alert` is what the other side said last of our certificate: with TLS 1.3 that comes after
    the handshake, to whoever reads first."""

    alert: str = ""
    _made: ssl.SSLSocket | None = None

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: Any = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """As ever, but with SERVER_NAME for a name."""
        self._made = super().wrap_socket(
            sock, server_side, do_handshake_on_connect, suppress_ragged_eofs, SERVER_NAME, session
        )
        return self._made

    def close(self) -> None:
        """Closes the last socket that was made, which paho leaves open when the handshake fails."""
        if self._made is not None:
            self._made.close()
            self._made = None


class _Listening(ssl.SSLSocket):
    """A socket that notes alerts in its FleetContext; who reads from it may turn them into a lost connection."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if isinstance(self.context, FleetContext):
                self.context.alert = in_words(error)
            raise


FleetContext.sslsocket_class = _Listening


def client_context(roots: str, own: Credentials | None = None) -> FleetContext:
    """For connections to a server of the fleet whose roots (PEM) are given, with our own certificate if we have one.

    Raises NotEnrolledError where that cannot be used.
    """
    context = FleetContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=roots)
        if own is not None:
            context.load_cert_chain(own.certificate, own.key)
    except (OSError, ValueError) as error:
        where = own.certificate.parent if own is not None else "the roots"
        raise NotEnrolledError(f"{where}: cannot be used ({error}); enrol again with a new token") from None
    return context


def own_context(own: Credentials) -> FleetContext:
    """For connections to a server of the fleet, by the files of one identity. Raises NotEnrolledError."""
    try:
        roots = own.roots.read_text(encoding="ascii")
    except (OSError, ValueError):
        raise NotEnrolledError(f"{own.roots}: cannot be read; enrol with a token") from None
    return client_context(roots, own)


def unverified_context() -> ssl.SSLContext:
    """For the one question that needs no trust: the roots, which are compared with a fingerprint. Never say a secret
    over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def in_words(error: OSError) -> str:
    """What went wrong with a connection, and what to do about it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        if error.verify_code == _NOT_YET:
            return f"the server's certificate is not valid yet by this machine's clock, {now}; set the clock (NTP)"
        if error.verify_code == _EXPIRED:
            return f"the server's certificate has expired by this machine's clock, {now}; is the clock right?"
        if error.verify_code in _FOREIGN:
            return "the server is not of this fleet: its certificate is not its CA's; nothing was said to it"
    if isinstance(error, ssl.SSLError):
        for end, words in _ALERTS.items():
            if (error.reason or "").endswith(end):
                return words
        return f"TLS failed ({error.reason or error})"
    return str(getattr(error, "strerror", None) or error)


def is_loopback(host: str) -> bool:
    """Whether connections to a host stay on this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
