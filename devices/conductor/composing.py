"""`fleet-emulate up --compose FILE`: everything that a fleet starts from, on disk, and a compose file for its devices.

Nothing is started. What links, coordinator and devices are started with is in the file and at its head.
"""

import os
from dataclasses import replace
from pathlib import Path

from devices.conductor import folder, raising
from devices.conductor.fleet_settings import agent_toml, coordinator_toml
from devices.conductor.preparing import Fleet, prepare_files, prepare_images
from devices.engines.compose import HOST, Service, compose_text
from devices.fleet.clock import runs
from devices.fleet.commands import this_machine
from devices.fleet.forecast import forecast
from devices.fleet.plan import Device
from devices.images import needs
from devices.links import Profile
from devices.toml_text import toml_text
from devices.workspace import own_folder
from protocol.errors import ConfigurationError
from protocol.mqtt import free_port
from protocol.records import write_record

_LINK = "link.toml"
_NOBODY = (65534, 65534)


def write_compose(fleet: Fleet, path: Path) -> None:
    """Writes the fleet's folder, and the file. Shares of the processor are a forecast's, not calibrated.

    Raises ConfigurationError for a fleet that joins a coordinator, or has no device in a container.
    """
    plan = fleet.plan
    if plan.coordinator is not None or not fleet.contained:
        raise ConfigurationError(
            "--compose: is for a fleet in containers with a coordinator of its own; choose engine podman or docker"
        )
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigurationError(f"--compose: {path}: must be a file in a folder that is there")
    with own_folder(fleet.folder, folder.CLAIM):
        prepare_files(fleet)
        prepare_images(fleet)
        expected = forecast(plan, this_machine())
        broker = free_port()
        settings = coordinator_toml(plan, expected.clock, broker)
        (fleet.folder / folder.SETTINGS).write_text(settings, encoding="utf-8")
        services = []
        # Nobody special owns what devices write; without root they run as whoever calls.
        user = _NOBODY if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        for number, device in enumerate(one for one in plan.devices if not one.light):
            start = raising.start_of(
                plan, device, fleet.folder, fleet.engine, fleet.images[runs(device, needs.here())],
                expected.limits[device.name].cores,
            )  # fmt: skip
            # Its clock's file is ours to mount; compose has this machine's clock.
            start = replace(start, clock=None, environment={})
            port = free_port()
            for place in (start.etc, start.state, start.data):
                place.mkdir(parents=True, exist_ok=True)
            text = agent_toml(plan, device, fleet.engine.inside(start), f"mqtts://{HOST}:{port}", expected.clock)
            (start.etc / raising.CONFIG).write_text(text, encoding="utf-8")
            link = _link_words(device, expected.clock.link(device.board.link), start.etc.parent, port, broker, number)
            for place in (start.etc, start.state):
                os.chown(place, *user)
            services.append(Service(start, link, user))
        words = ("fleet-coordinator", "run", "--config", str(fleet.folder / folder.SETTINGS))
        text = compose_text(plan.name, words, services)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"--compose: {path}: {error.strerror}; name a file you can write to") from None


def _link_words(device: Device, profile: Profile, own: Path, port: int, broker: int, seed: int) -> tuple[str, ...]:
    """The command of a device's proxy, with its board's link at the emulated clock in a file."""
    tables = {"": {"repeat_s": profile.repeat_s}, "link": write_record(profile.link)}
    text = toml_text(f"{device.name}'s link", tables)
    for step in profile.steps:
        said = {key: value for key, value in write_record(step).items() if value is not None}
        text += "\n[[steps]]\n" + "\n".join(toml_text("", {"": said}).splitlines()[1:]) + "\n"
    (own / _LINK).write_text(text, encoding="utf-8")
    return (
        *("fleet-emulate", "proxy", "--listen", f"0.0.0.0:{port}", "--to", f"127.0.0.1:{broker}"),
        *("--profile", str(own / _LINK), "--seed", str(seed)),
    )
