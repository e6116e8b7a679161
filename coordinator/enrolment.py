"""The endpoint that enrols devices: a TLS listener of its own, one question and one answer a connection.

It is the only port that takes strangers, so all of it is bounded: connections at once, bytes, and seconds. Where all
places are taken, whoever has most of them loses one to the newcomer (places.py).
"""

import logging
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from coordinator.authority import Authority, Certificate, serial_of
from coordinator.places import Place, Places
from coordinator.trust import Trust
from protocol.enrolment import (
    EXCHANGE_S,
    AskRoots,
    Enrol,
    Issued,
    Message,
    Question,
    Refused,
    Renew,
    Roots,
    decode,
    encode,
    receive,
)
from protocol.errors import ConfigurationError, Rejection
from protocol.restraint import Restraint

log = logging.getLogger("coordinator")

# Each has a thread while it lasts.
MAX_CONNECTIONS = 32
# How often connections that have been there too long are looked for.
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Desk:
    """Answers questions. Calls come from any thread. broker: see `Issued`; wall: Unix seconds. rings: the fleet's keys,
    as `Issued` says them."""

    authority: Authority
    trust: Trust
    fleet: str
    broker: str
    days: float
    wall: Callable[[], float]
    rings: Callable[[], tuple[int, tuple[bytes, ...]]] = lambda: (0, ())

    def answer(self, question: Question, certificate: bytes | None) -> Message:
        """certificate: the caller's own, DER, which the handshake has checked."""
        match question:
            case AskRoots():
                return Roots(self.authority.roots)
            case Enrol(device, secret, request):
                now_s = self.wall()
                issued = self.trust.redeem(secret, device, now_s, lambda name: self._issue(name, request, now_s))
                return self._issued(issued, "enrolled")
            case Renew(request):
                return self._renew(request, certificate)

    def _renew(self, request: bytes, certificate: bytes | None) -> Message:
        if certificate is None:
            return Refused("no-certificate", "renewal is for who has a certificate; enrol with a token")
        now_s = self.wall()
        issued = self.trust.renew(serial_of(certificate), now_s, lambda name: self._issue(name, request, now_s))
        return self._issued(issued, "renewed")

    def _issue(self, name: str, request: bytes, now_s: float) -> Certificate | Rejection:
        return self.authority.issue(name, request, now_s, self.days)

    def _issued(self, issued: Certificate | Rejection, what: str) -> Message:
        if isinstance(issued, Rejection):
            return Refused(issued.reason, issued.detail)
        ends = time.strftime("%Y-%m-%d", time.gmtime(issued.ends_s))
        log.info("%s device=%s until=%s serial=%x", what, issued.name, ends, issued.serial)
        roots = self.authority.roots
        return Issued(issued.der, roots, self.fleet, self.broker, issued.issued_s, issued.ends_s, *self.rings())


class Endpoint:
    """Listens from its construction until `close`. Raises ConfigurationError for a port that cannot be had."""

    def __init__(self, desk: Desk, host: str, port: int) -> None:
        self._desk, self._context = desk, _server_context(desk.authority)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._server = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise ConfigurationError(
                f"trust.port: cannot listen on {host}:{port} ({error.strerror}); choose another port, 0 for any"
            ) from None
        self.port: int = self._server.getsockname()[1]
        self._places = Places(MAX_CONNECTIONS, EXCHANGE_S)
        self._restraint = Restraint()
        self._closed = False
        self._thread = threading.Thread(target=self._listen, name="enrolment", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes nobody any more. Connections in hand end by themselves."""
        self._closed = True
        # A thread in `accept` is woken by nothing else.
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(2.0)

    def _listen(self) -> None:
        while not self._closed:
            try:
                # Nobody has to be looked after while nobody is there.
                self._server.settimeout(_LOOK_S if len(self._places) else None)
                connection, peer = self._server.accept()
            except TimeoutError:
                self._places.end_late(time.monotonic())
                continue
            except OSError as error:
                if not self._closed:
                    self._tell("accept", "enrolment: cannot accept a connection: %s", error)
                    time.sleep(0.1)
                continue
            self._places.end_late(time.monotonic())
            place = self._places.take(connection, peer[0], time.monotonic())
            if place is None:
                connection.close()
                self._tell("full", "enrolment: more than %d connections at once; one was closed", MAX_CONNECTIONS)
                continue
            threading.Thread(target=self._serve, args=(connection, peer[0], place), name="enrol", daemon=True).start()

    def _serve(self, connection: socket.socket, peer: str, place: Place) -> None:
        deadline = time.monotonic() + EXCHANGE_S
        try:
            with connection:
                connection.settimeout(EXCHANGE_S)
                with self._context.wrap_socket(connection, server_side=True) as secured:
                    self._exchange(secured, deadline, peer)
        except (OSError, ValueError, sqlite3.Error) as error:
            # Scanners, cut links and clients of other fleets; none of them is news, all of them together are one line.
            self._tell("failed", "enrolment: a connection from %s failed: %s", peer, _kind(error))
        finally:
            self._places.leave(place)

    def _exchange(self, secured: ssl.SSLSocket, deadline: float, peer: str) -> None:
        question = decode(receive(secured, deadline))
        if isinstance(question, AskRoots | Enrol | Renew):
            answer = self._desk.answer(question, secured.getpeercert(binary_form=True))
        else:
            why = question if isinstance(question, Rejection) else Rejection("malformed", "that is no question")
            answer = Refused(why.reason, why.detail)
        if isinstance(answer, Refused):
            self._tell(answer.reason, "enrolment: refused %s from %s: %s", type(question).__name__, peer, answer.reason)
        secured.settimeout(max(0.1, deadline - time.monotonic()))
        secured.sendall(encode(answer))

    def _tell(self, kind: str, text: str, *values: object) -> None:
        if self._restraint.unsaid(("enrolment", kind), time.monotonic()) is not None:
            log.warning(text, *values)


def _server_context(authority: Authority) -> ssl.SSLContext:
    """Who has a certificate may show it; whoever shows one that is not of this fleet, or has
    expired, ends here; what was revoked is the desk's to say."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(authority.broker.certificate, authority.broker.key)
    context.load_verify_locations(authority.broker.roots)
    context.verify_mode = ssl.CERT_OPTIONAL
    # A session that is taken up again would skip the check of the certificate.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


def _kind(error: Exception) -> str:
    """What went wrong, without anything that the other side sent."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return f"{type(error).__name__}: {str(reason)[:200]}"
