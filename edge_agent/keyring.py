"""The fleet's keys on this device: the newest ring that it was given, in the folder of its identity."""

from pathlib import Path

from edge_agent.identity import identity_folder
from protocol.errors import ConfigurationError, Rejection
from protocol.keyring import Keyring, Ring, follow, trusted_ring
from protocol.private_files import write_private

FILE = "keyring.cbor"
# The newest time that the fleet's keys have signed: now is later, whatever this device's clock says.
NEWEST = "newest.txt"
_ENROL = "Enrol it again with a token that is for it: edge-agent enroll --url HOST:PORT --token TOKEN"


def load_ring(state: Path, fleet: str) -> Ring | None:
    """The ring in a state folder, None where there is none, as of a device that an older coordinator enrolled. Raises
    ConfigurationError where it is not a ring of this fleet, or is gone: without it anything would be believed."""
    path = identity_folder(state) / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if (identity_folder(state) / NEWEST).exists():
            raise ConfigurationError(
                f"{path}: is gone, and this device had the keys of its fleet; without them it would believe whoever "
                f"runs the broker. {_ENROL}"
            ) from None
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    ring = trusted_ring(data, fleet)
    if isinstance(ring, Rejection):
        raise ConfigurationError(f"{path}: {ring.detail}; this device knows its fleet by it. {_ENROL}")
    return ring


def keep_trusted(state: Path, fleet: str, first: int, rings: tuple[bytes, ...], *, anew: bool) -> None:
    """Keeps the newest ring that came over a connection to the fleet's own CA. anew: in place of whatever there is, for
    a device that enrols; else only if it follows from the one there is."""
    if anew:
        # Signed, maybe, by a clock that was ahead, or by a fleet that is no more.
        (identity_folder(state) / NEWEST).unlink(missing_ok=True)
    if not rings:
        # Of an older coordinator.
        return
    held = None if anew else load_ring(state, fleet)
    if held is not None:
        adopt(state, held, Keyring(first, rings))
        return
    newest = trusted_ring(rings[-1], fleet)
    if isinstance(newest, Ring):
        write_private(identity_folder(state) / FILE, rings[-1])


def adopt(state: Path, held: Ring, said: Keyring) -> Ring | Rejection | None:
    """Takes up the newest ring that follows from the one held, durably; None where none does."""
    found = follow(held, said.first, said.rings)
    if found is None or isinstance(found, Rejection):
        return found
    ring, data = found
    write_private(identity_folder(state) / FILE, data)
    return ring


def load_newest(state: Path) -> int:
    """The newest time that was signed, Unix seconds; 0 where none is kept."""
    try:
        return int((identity_folder(state) / NEWEST).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def keep_newest(state: Path, made: int) -> None:
    write_private(identity_folder(state) / NEWEST, str(made).encode("ascii"))
