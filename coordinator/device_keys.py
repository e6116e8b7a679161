"""The public keys of devices, from the certificates that they were issued."""

from collections.abc import Callable
from contextlib import suppress

from coordinator.authority import public_key_in, verifier_in
from coordinator.trust import Trust
from protocol.signing import ID_BYTES, Verifier


class DeviceKeys:
    """For one thread. What was read is kept until another has written to the file. wall: Unix seconds."""

    def __init__(self, trust: Trust, wall: Callable[[], float]) -> None:
        self._sql, self._wall = trust.connect(), wall
        self._version = -1
        self._known: dict[str, dict[bytes, tuple[Verifier, float]]] = {}
        self._public: dict[str, bytes | None] = {}

    def close(self) -> None:
        self._sql.close()

    def verifier(self, device: str, seal: bytes, *, ended: bool) -> Verifier | None:
        """The device's key that a seal names, if it has such a one and its certificate holds. ended: or held once."""
        self._look()
        if device not in self._known:
            self._known[device] = self._read(device)
        found = self._known[device].get(seal[:ID_BYTES])
        return found[0] if found is not None and (ended or self._wall() < found[1]) else None

    def public(self, device: str) -> bytes | None:
        """The key of the certificate that the device was issued last (SubjectPublicKeyInfo, DER), None without one."""
        self._look()
        if device not in self._public:
            row = self._sql.execute(
                "SELECT certificate FROM certificates WHERE device = ? AND revoked_s IS NULL "
                "ORDER BY issued_s DESC, ends_s DESC LIMIT 1",
                (device,),
            ).fetchone()
            self._public[device] = None if row is None else public_key_in(row[0])
        return self._public[device]

    def _look(self) -> None:
        """Lets go of what was read before another wrote to the file."""
        version = self._sql.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._version, self._known, self._public = version, {}, {}

    def _read(self, device: str) -> dict[bytes, tuple[Verifier, float]]:
        rows = self._sql.execute(
            "SELECT key, certificate, ends_s FROM certificates WHERE device = ? AND revoked_s IS NULL", (device,)
        ).fetchall()
        found = {}
        for key, certificate, ends_s in rows:
            with suppress(ValueError):
                found[key[:ID_BYTES]] = verifier_in(certificate), float(ends_s)
        return found
