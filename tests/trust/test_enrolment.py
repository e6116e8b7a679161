"""Enrolment over real TLS, and whoever would abuse it: strangers, men in the middle, thieves of tokens and lists."""

import logging
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.trust import MAX_RENEWALS_A_DAY
from edge_agent.enrolment import enrol, parse_endpoint, renew
from edge_agent.identity import credentials, load_identity, pending_key
from protocol.enrolment import MAX_FRAME, AskRoots, Enrol, Refused, Renew, Roots, decode, encode, receive
from protocol.errors import ConfigurationError, NotEnrolledError, SparsefleetError, UnreachableError
from protocol.keys import new_key, signing_request
from protocol.tls import client_context, own_context, unverified_context
from protocol.token import Token
from tests.trust.office import FLEET, Office, issue

DAY_S = 86400.0


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Office]:
    """Another fleet's, or an impostor's."""
    opened = Office(tmp_path / "other-trust")
    yield opened
    opened.close()


def ask(office: Office, question: AskRoots | Enrol | Renew, context: ssl.SSLContext | None = None) -> object:
    """One question by hand."""
    return decode(ask_bytes(office, encode(question), context))


def ask_bytes(office: Office, data: bytes, context: ssl.SSLContext | None = None) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", office.endpoint.port), timeout=10) as connection,
        (context or unverified_context()).wrap_socket(connection, server_hostname="any") as secured,
    ):
        secured.sendall(data)
        return receive(secured, time.monotonic() + 10)


def test_a_device_makes_its_key_has_it_certified_and_nobody_else_can_read_it(office: Office, tmp_path: Path) -> None:
    identity = office.enrol("kitchen-pi", tmp_path / "state")
    assert (identity.device, identity.fleet, identity.endpoint) == ("kitchen-pi", FLEET, office.url)
    assert identity.ends_s - identity.issued_s == pytest.approx(30 * DAY_S)
    assert load_identity(tmp_path / "state") == identity
    own_context(credentials(tmp_path / "state"))
    folder = tmp_path / "state" / "identity"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.iterdir()} == dict.fromkeys(
        ("identity.json", "identity.pem", "keyring.cbor", "roots.pem"), "0o600"
    )
    (row,) = office.trust.identities()
    assert (row.device, row.state(office.now_s)) == ("kitchen-pi", "valid")


def test_the_private_key_is_in_no_file_of_the_server(office: Office, tmp_path: Path) -> None:
    office.enrol("kitchen-pi", tmp_path / "state")
    pem = credentials(tmp_path / "state").key.read_text()
    secret = pem.split("-----")[2].strip().splitlines()[1].encode()
    assert not [path for path in office.folder.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_a_key_that_others_may_read_is_refused(office: Office, tmp_path: Path) -> None:
    office.enrol("kitchen-pi", tmp_path / "state")
    credentials(tmp_path / "state").key.chmod(0o640)
    with pytest.raises(ConfigurationError, match=r"identity.pem: has mode 0640, .* chmod 600 it"):
        load_identity(tmp_path / "state")


def test_a_token_that_was_used_lets_no_second_device_in(office: Office, tmp_path: Path) -> None:
    token = office.token()
    office.enrol("kitchen-pi", tmp_path / "one", token)
    for device, state in (("garden-pi", "two"), ("kitchen-pi", "three")):
        with pytest.raises(NotEnrolledError, match="this token was used before"):
            office.enrol(device, tmp_path / state, token)
    assert [row.device for row in office.trust.identities()] == ["kitchen-pi"]


def test_a_device_whose_answer_was_lost_asks_again_with_the_same_token_and_gets_the_same_certificate(
    office: Office, tmp_path: Path
) -> None:
    token, state = office.token(), tmp_path / "state"
    request = signing_request(pending_key(state, new_key), "kitchen-pi")
    first = ask(office, Enrol("kitchen-pi", token.secret, request))
    identity = office.enrol("kitchen-pi", state, token)
    assert ssl.DER_cert_to_PEM_cert(first.certificate) in credentials(state).certificate.read_text()  # type: ignore[attr-defined]
    assert identity == load_identity(state)
    assert len(office.trust.identities()) == 1


def test_a_token_that_has_expired_lets_nobody_in(office: Office, tmp_path: Path) -> None:
    token = office.token(ttl_s=60.0)
    office.now_s += 61.0
    with pytest.raises(NotEnrolledError, match="this token has expired"):
        office.enrol("kitchen-pi", tmp_path / "state", token)


def test_a_guessed_secret_lets_nobody_in_and_burns_nothing(office: Office, tmp_path: Path) -> None:
    token = office.token()
    guessed = Token(token.fingerprint, bytes(16))
    with pytest.raises(NotEnrolledError, match="there is no such token"):
        office.enrol("kitchen-pi", tmp_path / "state", guessed)
    office.enrol("kitchen-pi", tmp_path / "state", token)


def test_a_stolen_list_of_tokens_is_worth_nothing_before_their_use_and_after(office: Office, tmp_path: Path) -> None:
    token = office.token()
    stolen = b"".join(path.read_bytes() for path in office.folder.rglob("*") if path.is_file())
    assert token.secret not in stolen
    with office.trust.connect() as sql:
        (listed,) = sql.execute("SELECT hash FROM tokens").fetchone()
    sql.close()
    for secret in (listed[:16], listed[16:]):
        with pytest.raises(NotEnrolledError, match="there is no such token"):
            office.enrol("thief", tmp_path / "thief", Token(token.fingerprint, secret))
    office.enrol("kitchen-pi", tmp_path / "state", token)
    with pytest.raises(NotEnrolledError, match="was used before"):
        office.enrol("thief", tmp_path / "thief", token)


def test_nobody_takes_the_name_of_a_device_that_is_enrolled(office: Office, tmp_path: Path) -> None:
    office.enrol("kitchen-pi", tmp_path / "state")
    token = office.token()
    with pytest.raises(NotEnrolledError, match="a device of this name was enrolled before"):
        office.enrol("kitchen-pi", tmp_path / "thief", token)
    # Neither one that was revoked: that is for the operator to decide.
    office.trust.revoke("kitchen-pi", office.now_s)
    with pytest.raises(NotEnrolledError, match="fleet-coordinator token --device NAME"):
        office.enrol("kitchen-pi", tmp_path / "thief", token)
    office.enrol("garden-pi", tmp_path / "state-2", token)


def test_a_token_for_one_device_lets_it_in_again_and_nobody_else(office: Office, tmp_path: Path) -> None:
    first = office.enrol("kitchen-pi", tmp_path / "lost")
    token = office.token(device="kitchen-pi")
    with pytest.raises(NotEnrolledError, match="this token is for another device"):
        office.enrol("garden-pi", tmp_path / "thief", token)
    office.now_s += 10
    assert office.enrol("kitchen-pi", tmp_path / "new-disk", token) != first
    assert len(office.trust.revoked()) == 1, "what was on the lost disk is worth nothing any more"
    with pytest.raises(NotEnrolledError, match="was revoked"):
        renew(first, tmp_path / "lost")


@pytest.mark.parametrize("name", ["all", "enroll", "Coordinator", "a", "+", "a/b", "-pi", "pi 1"])
def test_no_device_gets_a_name_that_means_something_to_the_broker(name: str, office: Office, tmp_path: Path) -> None:
    with pytest.raises(NotEnrolledError, match="the name must be"):
        office.enrol(name, tmp_path / "state")


def test_a_name_in_the_request_itself_counts_for_nothing(office: Office, tmp_path: Path) -> None:
    request = signing_request(new_key(), "Coordinator")
    answer = ask(office, Enrol("kitchen-pi", office.token().secret, request))
    assert b"kitchen-pi" in answer.certificate  # type: ignore[attr-defined]
    assert b"Coordinator" not in answer.certificate  # type: ignore[attr-defined]


def test_a_man_in_the_middle_with_another_ca_is_found_out_before_the_secret_is_said(
    office: Office, other: Office, tmp_path: Path
) -> None:
    token = office.token()
    asked: list[object] = []
    desk = other.endpoint._desk

    class Spy:
        def answer(self, question: object, certificate: bytes | None) -> object:
            asked.append(question)
            return desk.answer(question, certificate)  # type: ignore[arg-type]

    other.endpoint._desk = Spy()  # type: ignore[assignment]
    with pytest.raises(SparsefleetError, match=r"is not the coordinator that this token is of: .* Nothing was said"):
        enrol(other.url, token, "kitchen-pi", tmp_path / "state")
    assert asked == [AskRoots()]
    assert not (tmp_path / "state").exists()


def test_a_man_in_the_middle_who_shows_the_right_root_has_not_its_key(
    office: Office, other: Office, tmp_path: Path
) -> None:
    desk = other.endpoint._desk

    class Liar:
        def answer(self, question: object, certificate: bytes | None) -> object:
            return Roots(office.authority.roots) if question == AskRoots() else desk.answer(question, certificate)  # type: ignore[arg-type]

    other.endpoint._desk = Liar()  # type: ignore[assignment]
    with pytest.raises(SparsefleetError, match=r"the server is not of this fleet: .*nothing was said to it"):
        enrol(other.url, office.token(), "kitchen-pi", tmp_path / "state")


def test_a_device_of_the_fleet_cannot_pose_as_its_coordinator(office: Office, tmp_path: Path) -> None:
    """Its certificate is of the right CA, and for clients only."""
    own = issue(office.authority, "kitchen-pi", tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pose() -> None:
            connection, _ = server.accept()
            with connection, suppress(OSError), context.wrap_socket(connection, server_side=True):
                pass

        thread = threading.Thread(target=pose)
        thread.start()
        try:
            with (
                socket.create_connection(server.getsockname(), timeout=10) as connection,
                pytest.raises(ssl.SSLCertVerificationError),
            ):
                client_context(own.roots.read_text()).wrap_socket(connection)
        finally:
            thread.join(10)


def test_a_certificate_is_followed_by_the_next_one_with_a_new_key(office: Office, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = office.enrol("kitchen-pi", state)
    key = credentials(state).key.read_bytes()
    assert first.renew_at_s - first.issued_s == pytest.approx(20 * DAY_S)
    office.now_s += 20 * DAY_S
    second = renew(first, state)
    assert second.ends_s - first.ends_s == pytest.approx(20 * DAY_S)
    assert credentials(state).key.read_bytes() != key
    assert load_identity(state) == second
    assert office.trust.revoked() == ()


@pytest.mark.parametrize("what", ["expired", "revoked", "stranger", "none"])
def test_who_has_nothing_that_stands_gets_nothing_new(what: str, office: Office, other: Office, tmp_path: Path) -> None:
    state = tmp_path / "state"
    identity = office.enrol("kitchen-pi", state)
    request = Renew(signing_request(new_key(), "kitchen-pi"))
    if what == "expired":
        office.now_s += 31 * DAY_S
        with pytest.raises(NotEnrolledError, match="this certificate has expired"):
            renew(identity, state)
    elif what == "revoked":
        assert office.trust.revoke("kitchen-pi", office.now_s) == 1
        with pytest.raises(NotEnrolledError, match="this certificate was revoked"):
            renew(identity, state)
    elif what == "stranger":
        other.enrol("kitchen-pi", tmp_path / "other-state")
        own = replace(credentials(tmp_path / "other-state"), roots=credentials(state).roots)
        with pytest.raises(OSError):  # noqa: PT011 - an alert, or a connection that is reset with it
            ask(office, request, own_context(own))
    else:
        assert ask(office, request) == Refused(
            "no-certificate", "renewal is for who has a certificate; enrol with a token"
        )


def test_a_device_that_renews_without_end_is_stopped(office: Office, tmp_path: Path) -> None:
    identity = office.enrol("kitchen-pi", tmp_path / "state")
    with office.trust.connect() as sql:
        # As after so many renewals, which would take seconds.
        for serial in range(MAX_RENEWALS_A_DAY):
            sql.execute(
                "INSERT INTO certificates SELECT ?, device, key, certificate, issued_s, ends_s, revoked_s "
                "FROM certificates WHERE length(serial) > 10",
                (str(serial),),
            )
    sql.close()
    with pytest.raises(NotEnrolledError, match="certificates in a day are enough"):
        renew(identity, tmp_path / "state")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x00\x00\x01\x00", "malformed"),
        (b"\x00\x00\x00\x02\xa0\xa0", "malformed"),
        (b"\x00\x00\x00\x01\xa0", "malformed"),
        (encode(Roots((b"x",))), "malformed"),
        (encode(Enrol("kitchen-pi", bytes(16), b"no request")), "token"),
    ],
)
def test_nonsense_is_answered_with_its_reason(data: bytes, reason: str, office: Office) -> None:
    answer = decode(ask_bytes(office, data))
    assert isinstance(answer, Refused)
    assert answer.reason == reason


def test_a_request_that_is_none_burns_no_token(office: Office, tmp_path: Path) -> None:
    token = office.token()
    answer = ask(office, Enrol("kitchen-pi", token.secret, b"no request"))
    assert answer == Refused("request", "it is no request for a certificate")
    office.enrol("kitchen-pi", tmp_path / "state", token)


def test_a_frame_over_the_limit_is_not_read(office: Office) -> None:
    with pytest.raises(OSError):  # noqa: PT011 - the connection ends, in one way or another
        ask_bytes(office, (MAX_FRAME + 1).to_bytes(4) + bytes(MAX_FRAME + 1))


def test_a_connection_that_says_nothing_holds_up_nobody_else(office: Office, tmp_path: Path) -> None:
    idle = [socket.create_connection(("127.0.0.1", office.endpoint.port)) for _ in range(20)]
    try:
        office.enrol("kitchen-pi", tmp_path / "state")
    finally:
        for connection in idle:
            connection.close()


def test_a_device_whose_clock_is_before_the_fleet_began_is_told_to_set_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a board's that wakes in 1970: here the fleet is of the future instead."""
    office = Office(tmp_path / "trust", now_s=time.time() + 100 * DAY_S)
    try:
        with pytest.raises(SparsefleetError, match=r"not valid yet by this machine's clock, .* set the clock \(NTP\)"):
            office.enrol("kitchen-pi", tmp_path / "state")
    finally:
        office.close()


def test_a_clock_that_is_some_hours_late_does_no_harm(tmp_path: Path) -> None:
    office = Office(tmp_path / "trust", now_s=time.time() + 20 * 3600)
    try:
        office.enrol("kitchen-pi", tmp_path / "state")
    finally:
        office.close()


def test_no_secret_is_in_any_log_line_or_error(
    office: Office, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    token, said = office.token(), []
    office.enrol("kitchen-pi", tmp_path / "state", token)
    for other_token in (token, Token(token.fingerprint, bytes(range(16)))):
        with pytest.raises(NotEnrolledError) as refused:
            office.enrol("garden-pi", tmp_path / "two", other_token)
        said += [str(refused.value), repr(other_token), repr(Enrol("x", other_token.secret, b"r"))]
    said += [*caplog.messages, *capsys.readouterr()]
    pem = credentials(tmp_path / "state").key.read_text().splitlines()[1]
    text = "\n".join(said)
    assert "enrolled device=kitchen-pi" in text
    for secret in (token.secret, bytes(range(16))):
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
    assert token.text[60:80] not in text
    assert pem not in text


def test_an_endpoint_that_is_not_there_is_unreachable(office: Office, tmp_path: Path) -> None:
    office.close()
    with pytest.raises(UnreachableError, match="Connection refused; is fleet-coordinator running there"):
        office.enrol("kitchen-pi", tmp_path / "state")


@pytest.mark.parametrize(
    ("url", "found"), [("server", ("server", 8884)), ("[::1]:1", ("::1", 1)), ("10.0.0.5:99", ("10.0.0.5", 99))]
)
def test_an_endpoint_is_read(url: str, found: tuple[str, int]) -> None:
    assert parse_endpoint(url) == found


@pytest.mark.parametrize("url", ["", ":1", "a:0", "a:99999", "https://a", "a:b", "::1", "a b:1", "u@h:1"])
def test_a_wrong_endpoint_is_refused_with_what_is_accepted(url: str) -> None:
    with pytest.raises(ConfigurationError, match="must be HOST:PORT"):
        parse_endpoint(url)
