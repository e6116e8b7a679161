"""Tries a broker once: connects, subscribes to a client's own topics, publishes on one, and leaves.

In MQTT 5, where a broker says whether it takes a message; brokers that know 3.1.1 alone are asked in that, and say so
only of subscriptions.
"""

import ssl
import time
from dataclasses import dataclass
from typing import Any, Literal

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from protocol.errors import NotEnrolledError, UnreachableError
from protocol.mqtt import MqttSettings
from protocol.tls import in_words, own_context

# One try of one version, from the first packet to the last answer.
LIMIT_S = 10.0
_TICK_S = 0.05

Stage = Literal["connect", "subscribe", "publish", "done"]


@dataclass(frozen=True, slots=True)
class Tried:
    """How far a client came, and what went wrong there. told: whether the broker says what it takes."""

    stage: Stage
    problem: str = ""
    told: bool = True


def try_broker(settings: MqttSettings, filters: tuple[str, ...], topic: str, payload: bytes) -> Tried:
    """Connects as this client, subscribes, publishes one retained message, and leaves. Whoever is connected under the
    same name is thrown out by that. Raises UnreachableError and NotEnrolledError."""
    tried = _Try(settings, filters, topic, payload, MQTTProtocolVersion.MQTTv5).run()
    if tried.stage == "connect":
        older = _Try(settings, filters, topic, payload, MQTTProtocolVersion.MQTTv311).run()
        return Tried(older.stage, older.problem, told=False)
    return tried


class _Try:
    """One connection in one version of the protocol."""

    def __init__(
        self,
        settings: MqttSettings,
        filters: tuple[str, ...],
        topic: str,
        payload: bytes,
        version: MQTTProtocolVersion,
    ) -> None:
        self._settings, self._filters, self._topic, self._payload = settings, filters, topic, payload
        self._stage: Stage = "connect"
        self._problem = ""
        self._ended = False
        self._client = paho.Client(CallbackAPIVersion.VERSION2, settings.client_id, protocol=version)
        self._client.connect_timeout = LIMIT_S
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_publish = self._on_publish

    def run(self) -> Tried:
        address, client = self._settings.address, self._client
        context = None if self._settings.credentials is None else own_context(self._settings.credentials)
        try:
            if context is not None:
                client.tls_set_context(context)
            client.connect(address.host, address.port, self._settings.keepalive_s)
            deadline = time.monotonic() + LIMIT_S
            while not self._ended and time.monotonic() < deadline:
                code = client.loop(_TICK_S)
                if code != paho.MQTT_ERR_SUCCESS:
                    self._problem = self._problem or (context.alert if context else "") or paho.error_string(code)
                    break
        except ssl.SSLError as error:
            raise (NotEnrolledError if "CERT" in (error.reason or "") else UnreachableError)(
                f"{address.url}: {in_words(error)}"
            ) from None
        except (OSError, UnicodeError) as error:
            said = in_words(error) if isinstance(error, OSError) else str(error)
            raise UnreachableError(f"{address.url}: {said}") from None
        finally:
            client.on_connect = client.on_subscribe = client.on_publish = None
            client.disconnect()
            if context is not None:
                context.close()
        if self._stage != "done" and not self._problem:
            self._problem = f"no answer within {LIMIT_S:.0f} s"
        return Tried(self._stage, self._problem)

    def _on_connect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._end(f"the broker refused the connection ({reason})")
            return
        self._stage = "subscribe"
        client.subscribe([(one, 1) for one in self._filters])

    def _on_subscribe(self, client: paho.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        refused = [one for one, reason in zip(self._filters, reasons, strict=False) if reason.is_failure]
        if refused or len(reasons) != len(self._filters):
            self._end(f"the broker refused the subscription to {', '.join(refused or self._filters)}")
            return
        self._stage = "publish"
        client.publish(self._topic, self._payload, qos=1, retain=True)

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._end(f"the broker does not let this device publish on {self._topic} ({reason})")
            return
        self._stage = "done"
        self._end("")

    def _end(self, problem: str) -> None:
        self._problem, self._ended = problem, True
