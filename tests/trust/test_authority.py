"""The fleet's CA on disk: made once, private, whole or refused, and what it issues in time and scope."""

import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.authority import COORDINATOR, SERVER_DAYS, Authority, Certificate
from coordinator.trust import Trust
from protocol.errors import ConfigurationError, Rejection
from protocol.keys import new_key, signing_request
from protocol.tls import SERVER_NAME
from protocol.topics import NAME

DAY_S = 86400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "trust", time.time())


def test_of_several_that_find_an_empty_folder_one_makes_the_ca(tmp_path: Path) -> None:
    def make(_: int) -> bytes:
        authority = Authority(tmp_path / "trust", time.time())
        Trust(tmp_path / "trust").make_tokens(authority.fingerprint, 1, 60.0, time.time())
        return authority.fingerprint

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(make, range(4)))) == 1
    with Trust(tmp_path / "trust").connect() as sql:
        assert sql.execute("SELECT count(*) FROM tokens").fetchone() == (4,)
    sql.close()


def test_everything_in_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "trust").mkdir(mode=0o755)
    Authority(tmp_path / "trust", time.time())
    Trust(tmp_path / "trust")
    assert stat.S_IMODE((tmp_path / "trust").stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "trust").iterdir()}
    assert {"root.key", "broker.key", "coordinator.key", "trust.sqlite"} <= set(modes)
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("name", ["root.key", "broker.key", "coordinator.key"])
def test_a_key_that_others_may_read_is_refused(name: str, authority: Authority) -> None:
    (authority.folder / name).chmod(0o644)
    with pytest.raises(ConfigurationError, match=rf"{name}: has mode 0644, .* chmod 600 it"):
        Authority(authority.folder, time.time())


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_ca_without_its_key_is_refused_with_a_remedy(damage: bytes | None, authority: Authority) -> None:
    key = authority.folder / "root.key"
    if damage is None:
        key.unlink()
    else:
        key.write_bytes(damage)
    with pytest.raises(ConfigurationError, match=r"trust.folder: .* is not whole .* restore it from a backup"):
        Authority(authority.folder, time.time())


def test_the_key_of_another_ca_is_refused(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", time.time())
    (authority.folder / "root.key").write_bytes((other.folder / "root.key").read_bytes())
    with pytest.raises(ConfigurationError, match="are not of each other"):
        Authority(authority.folder, time.time())


def test_servers_get_the_next_certificate_at_a_start_in_the_second_half(authority: Authority) -> None:
    first = authority.broker.certificate.read_bytes()
    Authority(authority.folder, time.time() + 0.49 * SERVER_DAYS * DAY_S)
    assert authority.broker.certificate.read_bytes() == first
    again = Authority(authority.folder, time.time() + 0.51 * SERVER_DAYS * DAY_S)
    assert authority.broker.certificate.read_bytes() != first
    assert again.fingerprint == authority.fingerprint


def test_each_certificate_is_for_one_purpose_and_none_issues_others(authority: Authority) -> None:
    device = authority.issue("pi-1", signing_request(new_key(), "pi-1"), time.time(), 30.0)
    assert isinstance(device, Certificate)
    client, server = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
    for der, name, usage in (
        (device.der, "pi-1", client),
        (pem(authority.coordinator.certificate), COORDINATOR, client),
        (pem(authority.broker.certificate), SERVER_NAME, server),
    ):
        read = x509.load_der_x509_certificate(der)
        assert [a.value for a in read.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [name]
        assert list(read.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        assert read.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert not NAME.fullmatch(COORDINATOR), "no device can have the coordinator's name"


def test_a_certificate_does_not_outlive_the_root(authority: Authority) -> None:
    issued = authority.issue("pi-1", signing_request(new_key(), "pi-1"), time.time() + 19.99 * 365 * DAY_S, 30.0)
    assert isinstance(issued, Certificate)
    root = x509.load_der_x509_certificate(authority.roots[0])
    assert x509.load_der_x509_certificate(issued.der).not_valid_after_utc == root.not_valid_after_utc


def test_a_request_with_a_key_that_is_too_large_or_not_the_senders_is_refused(authority: Authority) -> None:
    rare = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pi-1")])
    large = x509.CertificateSigningRequestBuilder().subject_name(name).sign(rare, hashes.SHA256())
    asked = large.public_bytes(serialization.Encoding.DER)
    assert authority.issue("pi-1", asked, time.time(), 1.0) == Rejection(
        "request", "its key is neither P-256 nor Ed25519"
    )
    forged = bytearray(signing_request(new_key(), "pi-1"))
    forged[-1] ^= 1
    refused = authority.issue("pi-1", bytes(forged), time.time(), 1.0)
    assert isinstance(refused, Rejection)
    assert refused.reason == "request"


def pem(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(serialization.Encoding.DER)
