"""`edge-agent enroll` and `renew`: an identity for this device, and a configuration to go on with where there is none.

They need of the configuration only the names, the state folder and the broker: the rest may still be wrong.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from edge_agent.enrolment import enrol, parse_endpoint, renew
from edge_agent.identity import Identity, load_identity
from edge_agent.sample import SAMPLE
from edge_agent.settings import layers
from protocol.enrolment import Issued
from protocol.errors import ConfigurationError
from protocol.ownership import as_owner
from protocol.token import Token, parse_token
from protocol.topics import check_name

# A token has a hundred characters; this is for files that are something else.
MAX_TOKEN_FILE = 4096
# What a coordinator says of a broker that is where it is itself.
_SAME_HOST = "mqtts://:"


@dataclass(frozen=True, slots=True)
class _Device:
    """What enrolment needs of a configuration. broker: None where there is none yet."""

    name: str
    state: Path
    broker: str | None


def run(options: argparse.Namespace) -> int:
    """Enrols and prints what was got; returns the exit code."""
    parse_endpoint(options.url)
    token = _token(options)
    device = _configured(options.config) if options.config.exists() else _new_device(options)
    if options.device not in (None, device.name):
        raise ConfigurationError(
            f"--device: {options.device!r} is not the device of {options.config}, which is {device.name!r}"
        )
    with as_owner(device.state):
        identity, issued = enrol(options.url, token, device.name, device.state)
    broker = _broker_url(issued, options.url)
    if device.broker is None:
        _write_config(options, identity, broker)
    _print(options, identity, device, broker)
    return 0


def renew_now(config: Path) -> int:
    """Gets the next certificate, whether it is time to or not; returns the exit code."""
    state = _configured(config).state
    with as_owner(state):
        identity = renew(load_identity(state), state)
    print(f"renewed {identity.device} until {_day(identity.ends_s)}")
    return 0


def _token(options: argparse.Namespace) -> Token:
    try:
        if options.token is not None:
            return parse_token(options.token)
        if str(options.token_file) == "-":
            return parse_token(sys.stdin.read(MAX_TOKEN_FILE))
        with options.token_file.open(encoding="utf-8") as file:
            return parse_token(file.read(MAX_TOKEN_FILE))
    except OSError as error:
        raise ConfigurationError(f"--token-file: {options.token_file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"--token-file: {options.token_file} is not text") from None
    except ValueError as error:
        raise ConfigurationError(f"--{error}") from None


def _configured(config: Path) -> _Device:
    try:
        # All layers: an identity must lie in the state folder that the agent will look in.
        table = layers(config).merged()
        name, state, broker = table["device"], table["state"], table["broker"]["url"]
        check_name("device", name)
        return _Device(name, (config.parent / state).resolve(), str(broker))
    except KeyError as error:
        raise ConfigurationError(f"{config}: {error.args[0]}: missing; see edge-agent config sample") from None
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{config}: {error}") from None


def _new_device(options: argparse.Namespace) -> _Device:
    if options.device is None:
        raise ConfigurationError(f"--device: name this device; there is no {options.config} that does")
    try:
        check_name("device", options.device)
    except ValueError as error:
        raise ConfigurationError(f"--{error}") from None
    return _Device(options.device, (options.config.parent / options.state).resolve(), None)


def _broker_url(issued: Issued, endpoint: str) -> str:
    """What the coordinator said, with the host that it was reached under where it named none."""
    if not issued.broker.startswith(_SAME_HOST):
        return issued.broker
    host, _ = parse_endpoint(endpoint)
    return f"mqtts://{f'[{host}]' if ':' in host else host}:{issued.broker.removeprefix(_SAME_HOST)}"


def _write_config(options: argparse.Namespace, identity: Identity, broker: str) -> None:
    """The sample, with the names, the address and the places in it."""
    config = options.config
    values = {"device": identity.device, "fleet": identity.fleet, "url": broker, "state": options.state}
    if options.data is not None:
        values["path"] = options.data
    lines = []
    for line in SAMPLE.splitlines():
        key = line.partition(" = ")[0]
        lines.append(f"{key} = {json.dumps(values[key])}" if key in values else line)
    try:
        with config.open("x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            # It holds no secret, and the service's user must read it, whatever umask root has.
            os.fchmod(file.fileno(), 0o644)
    except OSError as error:
        raise ConfigurationError(
            f"--config: {config} cannot be written ({error.strerror}); the identity is kept in its state folder"
        ) from None


def _print(options: argparse.Namespace, identity: Identity, device: _Device, broker: str) -> None:
    made = device.broker is None
    if options.json:
        said = {"device": identity.device, "fleet": identity.fleet, "broker": broker, "ends_s": identity.ends_s}
        print(json.dumps(said | {"config": str(options.config), "config_made": made}))
        return
    print(f"enrolled {identity.device} in fleet {identity.fleet} until {_day(identity.ends_s)}, renewed before")
    if made:
        then = "then" if options.data is not None else "set [data] in it, then"
        print(f"wrote {options.config}; {then}: edge-agent run --config {options.config}")
    elif device.broker != broker:
        print(f'{options.config}: the broker is at {broker} from here; set url = "{broker}" under [broker]')


def _day(at_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at_s))
