"""Every setting of an agent, with its bounds; read once, from agent.toml, agent.d/*.toml and EDGE_AGENT_* variables."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edge_agent.data import DataSettings
from edge_agent.eligibility import EligibilitySettings
from edge_agent.options import CONFIG
from edge_agent.personal.settings import OFF, PersonalSettings
from edge_agent.runtimes.backends import AUTO, BACKENDS
from protocol.errors import ConfigurationError
from protocol.layers import Layers, read_layers, read_settings
from protocol.manifest import FULL, is_variant_name
from protocol.mqtt import parse_url
from protocol.topics import check_name

PREFIX = "EDGE_AGENT_"
# Variables that the service's unit reads; a command that is given by hand takes them too, so that it sees what the
# service sees.
SERVICE_VARIABLES = Path("/etc/default/edge-agent")
_ASSIGNED = re.compile(rf"""(?m)^[ \t]*({PREFIX}[A-Z0-9_]+)=(["']?)(.*?)\2[ \t]*$""")


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """Where the broker is. plain: whether to go there without TLS over a network."""

    url: str
    longest_retry_s: float = 60.0
    keepalive_s: int = 60
    plain: Literal["no", "trusted-network"] = "no"

    def __post_init__(self) -> None:
        if parse_url(self.url).exposed and self.plain != "trusted-network":
            raise ValueError(
                f"url: {self.url} is not encrypted and leaves this machine: whoever is on the way could read and "
                "change everything. Enrol this device (edge-agent enroll) and use mqtts://, or set plain = "
                '"trusted-network" if you trust everybody there'
            )
        if not 5 <= self.keepalive_s <= 3600:
            raise ValueError(f"keepalive_s: {self.keepalive_s} is outside 5..3600 seconds")
        if not 1 <= self.longest_retry_s <= 3600:
            raise ValueError(f"longest_retry_s: {self.longest_retry_s} is outside 1..3600 seconds")


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How this device trains. variant: with "auto" the task says which, and `full` where it does not. residual_rounds:
    after more missed ones an update begins without what earlier ones left unsent. checkpoint_s: seconds of training
    after which a task's state is kept, so that a restart goes on from it; 0 keeps none. process: a child of lower
    priority, which may be killed, or the agent's own. nice: how much lower the child's priority is. trial_steps: that a
    new bundle must take without a value that is not finite before this device commits to it.
    """

    backend: str = "auto"
    variant: str = AUTO
    threads: int = 1
    idle_unload_s: float = 60.0
    residual_rounds: int = 50
    checkpoint_s: float = 60.0
    trial_steps: int = 3
    process: Literal["child", "same"] = "child"
    nice: int = 10

    def __post_init__(self) -> None:
        if self.backend not in (AUTO, *BACKENDS):
            raise ValueError(f"backend: {self.backend!r} is unknown; use {AUTO!r} or one of {', '.join(BACKENDS)}")
        if not is_variant_name(self.variant):
            raise ValueError(
                f"variant: {self.variant!r} is no name of a variant; {AUTO!r} leaves it to the coordinator, {FULL!r} "
                "trains everything, fleet-export show lists a bundle's others"
            )
        if not 1 <= self.threads <= 64:
            raise ValueError(f"threads: {self.threads} is outside 1..64")
        if not 0 <= self.idle_unload_s <= 86400:
            raise ValueError(f"idle_unload_s: {self.idle_unload_s} is outside 0..86400 seconds")
        if not 0 <= self.residual_rounds <= 1_000_000:
            raise ValueError(
                f"residual_rounds: {self.residual_rounds} is outside 0..1000000; 0 forgives no missed round"
            )
        if not 0 <= self.checkpoint_s <= 86400:
            raise ValueError(f"checkpoint_s: {self.checkpoint_s} is outside 0..86400 seconds; 0 keeps no checkpoint")
        if not 1 <= self.trial_steps <= 10_000:
            raise ValueError(f"trial_steps: {self.trial_steps} is outside 1..10000")
        if not 0 <= self.nice <= 19:
            raise ValueError(f"nice: {self.nice} is outside 0..19; 19 is the lowest priority")


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What the agent may take of this device. cpu_percent: of one core, of the service as systemd runs it
    (service_limits.py); 0: no limit."""

    disk_mib: int = 512
    memory_mib: int = 0
    cpu_percent: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.disk_mib <= 1 << 20:
            raise ValueError(f"disk_mib: {self.disk_mib} is outside 1..1048576")
        if not 0 <= self.memory_mib <= 1 << 24:
            raise ValueError(f"memory_mib: {self.memory_mib} is outside 0..16777216")
        if not 0 <= self.cpu_percent <= 100_000:
            raise ValueError(f"cpu_percent: {self.cpu_percent} is outside 0..100000; 200 is two cores")


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """All settings. Paths in them are relative to the folder of agent.toml, wherever they are said."""

    device: str
    fleet: str
    state: str
    broker: BrokerSettings
    data: DataSettings
    training: TrainingSettings = field(default_factory=TrainingSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    eligibility: EligibilitySettings = field(default_factory=EligibilitySettings)
    personal: PersonalSettings = OFF

    def __post_init__(self) -> None:
        check_name("device", self.device)
        check_name("fleet", self.fleet)


def layers(path: Path, environ: Mapping[str, str] = os.environ) -> Layers:
    """All sources of an agent's settings, the strongest last. CONFIG may be absent where variables say what is needed,
    of the environment or of the service. Raises ConfigurationError naming source and key."""
    service = service_variables(SERVICE_VARIABLES) if path == CONFIG else {}
    return read_layers(AgentSettings, path, {**service, **environ}, PREFIX, optional=path == CONFIG)


def service_variables(path: Path) -> Mapping[str, str]:
    """Our variables in a file of the form that systemd reads; none where it is not there, or not for this user, whom
    the service manager gives them."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: value for name, _, value in _ASSIGNED.findall(text)}


def load(path: Path, backend: str | None = None) -> AgentSettings:
    """The settings, with another backend if the command line names one. Raises ConfigurationError naming the key."""
    return with_backend(read_settings(AgentSettings, layers(path)), backend)


def with_backend(settings: AgentSettings, backend: str | None) -> AgentSettings:
    """The settings with another backend, if one is named on the command line."""
    return settings if backend is None else replace(settings, training=training(backend, settings.training))


def training(backend: str | None, given: TrainingSettings | None = None) -> TrainingSettings:
    """How to train, by the defaults unless given, with another backend if one is named on the command line."""
    given = given or TrainingSettings()
    try:
        return given if backend is None else replace(given, backend=backend)
    except ValueError as error:
        raise ConfigurationError(f"--{error}") from None


def state_folder(settings: AgentSettings, config: Path) -> Path:
    """The state folder; refused when it is a file."""
    folder = (config.parent / settings.state).resolve()
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"state: {folder} is a file; set a folder")
    return folder
