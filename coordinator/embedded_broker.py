"""The broker for trying out when no mosquitto is at hand: amqtt in a process of its own.

It keeps nothing, is slow, and drops what is not acknowledged in five seconds. Our receipts make that harmless, but
a fleet deserves a real broker.
"""

import argparse
import asyncio
import logging
import signal

from amqtt.broker import Broker
from amqtt.contexts import BrokerConfig, ListenerConfig

# amqtt closes a connection after one keep-alive without traffic, where the standard grants one and a half and clients
# ping after one. These seconds are added to each client's keep-alive.
GRACE_S = 60


def configuration(host: str, port: int) -> BrokerConfig:
    """MQTT 3.1.1 on one port, anonymous, without the default plug-ins that log every packet and publish statistics."""
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return BrokerConfig(
        listeners={"default": ListenerConfig(bind=bind)},
        timeout_disconnect_delay=GRACE_S,
        plugins={"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    )


async def serve(host: str, port: int) -> None:
    """Runs the broker until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    broker = Broker(configuration(host, port), loop=loop)
    await broker.start()
    await stopped.wait()
    await broker.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m coordinator.embedded_broker",
        description="MQTT broker for trying out (amqtt). The coordinator starts it when there is no mosquitto.",
        epilog="example: python -m coordinator.embedded_broker --host 127.0.0.1 --port 1883",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=1883, help="port to listen on (default %(default)s)")
    arguments = parser.parse_args()
    # amqtt logs each lost client as a warning or with a traceback; what matters is seen by the clients.
    logging.disable(logging.CRITICAL)
    asyncio.run(serve(arguments.host, arguments.port))


if __name__ == "__main__":
    main()
