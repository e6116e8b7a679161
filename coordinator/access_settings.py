"""Settings of how devices reach the coordinator, and who may: the broker, and the fleet's CA."""

from dataclasses import dataclass
from typing import Literal

from protocol.enrolment import DEFAULT_PORT
from protocol.mqtt import parse_url
from protocol.tls import is_loopback

PlainChoice = Literal["no", "loopback", "trusted-network"]


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Where the messages go: a URL, or a private broker on this machine at host and port (see broker.py).

    plain: where connections may go without TLS: "no" for nowhere but to an embedded broker, or one that is named, on
    this machine; "loopback" has a private mosquitto do without too, here; "trusted-network" anywhere.
    """

    url: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8883
    plain: PlainChoice = "no"

    def __post_init__(self) -> None:
        if self.private:
            if self.plain == "loopback" and not is_loopback(self.host):
                raise ValueError(
                    f'host: {self.host} is open to other machines, and plain = "loopback" is for this one; set host '
                    "to 127.0.0.1, or leave plain out, so that devices need certificates (docs/enrolment.md)"
                )
        else:
            try:
                address = parse_url(self.url)
            except ValueError as error:
                raise ValueError(f"url: {error}; or auto, mosquitto or embedded for a private broker") from None
            if address.exposed and self.plain != "trusted-network":
                raise ValueError(
                    f"url: {self.url} is not encrypted and leaves this machine; use mqtts:// (docs/enrolment.md), or "
                    'set plain = "trusted-network" if you trust everybody on the way'
                )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} must be from 1 to 65535, or 0 for any free port")

    @property
    def private(self) -> bool:
        """Whether the broker is ours to start."""
        return self.url in ("auto", "mosquitto", "embedded")

    @property
    def wants_tls(self) -> bool:
        """Whether devices are known by their certificates, if the broker can do so."""
        return self.plain == "no" and self.url != "embedded" if self.private else parse_url(self.url).tls


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """Who may join: where the fleet's CA is, where devices enrol (host: the broker's if empty), and for how long.

    require_seals: whether a device's messages must be sealed with its key, which agents before 0.2 cannot.
    """

    folder: str = "trust"
    host: str = ""
    port: int = DEFAULT_PORT
    certificate_days: float = 30.0
    require_seals: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} must be from 1 to 65535, or 0 for any free port")
        if not 1e-4 <= self.certificate_days <= 3650:
            raise ValueError(f"certificate_days: {self.certificate_days} must be from 0.0001 (nine seconds) to 3650")
