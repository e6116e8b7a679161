"""A fleet that joins a coordinator which runs already: where its devices enrol, and with which tokens."""

from devices.fleet.plan import Joined
from protocol.errors import ConfigurationError
from protocol.mqtt import BrokerAddress


def enrolment(joined: Joined) -> BrokerAddress:
    """Raises ConfigurationError for what is no HOST:PORT."""
    host, _, port = joined.enrolment.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ConfigurationError(
            f"coordinator.enrolment: {joined.enrolment!r} must be HOST:PORT, as [trust] of the coordinator has them"
        )
    return BrokerAddress(host.strip("[]"), int(port), True)


def tokens(joined: Joined, count: int) -> tuple[str, ...]:
    """One for each device, of the lines of the file. Raises ConfigurationError where there are too few."""
    try:
        lines = tuple(line.strip() for line in joined.tokens.read_text(encoding="ascii").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"coordinator.tokens: {joined.tokens} cannot be read ({error})") from None
    if len(lines) < count:
        raise ConfigurationError(
            f"coordinator.tokens: {joined.tokens} has {len(lines)} for {count} devices; "
            f"fleet-coordinator token --count {count} prints as many as are needed"
        )
    return lines[:count]
