"""Getting an identity in a fleet, with a token, and the next one, with the one before.

A program of its own: what it takes to make keys is ten MiB that an agent at work has no use for.
"""

import hashlib
import re
import socket
import ssl
import time
from pathlib import Path

from edge_agent.identity import Identity, credentials, pending_key, store_identity
from edge_agent.keyring import keep_trusted
from protocol.enrolment import (
    DEFAULT_PORT,
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
from protocol.errors import ConfigurationError, NotEnrolledError, Rejection, SparsefleetError, UnreachableError
from protocol.keys import new_key, signing_request
from protocol.tls import client_context, in_words, own_context, unverified_context
from protocol.token import Token


def parse_endpoint(url: str) -> tuple[str, int]:
    """Host and port of HOST, HOST:PORT or [IPV6]:PORT. Raises ConfigurationError."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:/@ ]+))(?::([0-9]{1,5}))?", url)
    port = int(found[3] or DEFAULT_PORT) if found else 0
    if not found or not 0 < port <= 65535:
        raise ConfigurationError(f"--url: {url!r} must be HOST:PORT, as fleet-coordinator token says it")
    return found[1] or found[2], port


def enrol(endpoint: str, token: Token, device: str, state: Path) -> tuple[Identity, Issued]:
    """Makes a key, has it certified, and stores both in the state folder.

    Nothing is said to a server whose CA has not the token's fingerprint. Raises SparsefleetError.
    """
    root = _root(endpoint, token)
    request = signing_request(pending_key(state, new_key), device)
    answer = _ask(endpoint, client_context(ssl.DER_cert_to_PEM_cert(root)), Enrol(device, token.secret, request))
    issued = _issued(answer, endpoint)
    # First: a device that has its certificate and no keys would believe whoever the broker lets speak.
    keep_trusted(state, issued.fleet, issued.ring, issued.rings, anew=True)
    return store_identity(state, device, endpoint, issued), issued


def renew(identity: Identity, state: Path) -> Identity:
    """The next certificate, for a new key, and all roots that are to be trusted from now on. Raises
    SparsefleetError."""
    context = own_context(credentials(state))
    request = signing_request(pending_key(state, new_key), identity.device)
    issued = _issued(_ask(identity.endpoint, context, Renew(request)), identity.endpoint)
    keep_trusted(state, issued.fleet, issued.ring, issued.rings, anew=False)
    return store_identity(state, identity.device, identity.endpoint, issued)


def _root(endpoint: str, token: Token) -> bytes:
    """The fleet's root (DER), which the token's fingerprint proves."""
    answer = _ask(endpoint, unverified_context(), AskRoots())
    if not isinstance(answer, Roots):
        raise SparsefleetError(f"{endpoint}: answered with a {type(answer).__name__}; is this the enrolment port?")
    for root in answer.roots:
        if hashlib.sha256(root).digest() == token.fingerprint:
            return root
    found = ", ".join(hashlib.sha256(root).hexdigest()[:16] for root in answer.roots) or "none"
    raise SparsefleetError(
        f"{endpoint}: is not the coordinator that this token is of: its CA has the fingerprint {found}, not "
        f"{token.fingerprint.hex()[:16]}. Nothing was said to it. Check the address; if it is right, somebody is "
        "between you and the coordinator, or its CA was made anew after the token"
    )


def _ask(endpoint: str, context: ssl.SSLContext, question: Question) -> Message:
    host, port = parse_endpoint(endpoint)
    deadline = time.monotonic() + EXCHANGE_S
    try:
        with (
            socket.create_connection((host, port), timeout=EXCHANGE_S) as connection,
            context.wrap_socket(connection, server_hostname=host) as secured,
        ):
            secured.settimeout(max(0.1, deadline - time.monotonic()))
            secured.sendall(encode(question))
            answer = decode(receive(secured, deadline))
    except ssl.SSLCertVerificationError as error:
        raise SparsefleetError(f"{endpoint}: {in_words(error)}") from None
    except (OSError, ValueError) as error:
        said = in_words(error) if isinstance(error, OSError) else str(error)
        raise UnreachableError(f"{endpoint}: {said}; is fleet-coordinator running there?") from None
    if isinstance(answer, Rejection):
        raise SparsefleetError(f"{endpoint}: answered what is no answer ({answer}); is this the enrolment port?")
    return answer


def _issued(answer: Message, endpoint: str) -> Issued:
    if isinstance(answer, Issued):
        return answer
    if isinstance(answer, Refused):
        raise NotEnrolledError(f"{endpoint}: refused: {answer.detail} ({answer.reason})")
    raise SparsefleetError(f"{endpoint}: answered with a {type(answer).__name__}; its version may not be ours")
