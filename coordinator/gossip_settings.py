"""Settings of a fleet without a hub: from [gossip] of coordinator.toml, and what does not go with them."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from protocol.errors import ConfigurationError
from protocol.gossip import MAX_NEIGHBOURS, MAX_NUMBER, MAX_WANTED, Algorithm
from sparse.codecs import parse_codec
from sparse.gossip import Control, parse_edges, parse_topology
from sparse.gossip.relay import check_codec

if TYPE_CHECKING:
    from coordinator.settings import Settings

AUTO = "auto"
# Of consensus control, which doubles the exchanges after a training up to here.
MOST_ROUNDS = Control(1.0, 0).most_gossip_rounds


@dataclass(frozen=True, slots=True)
class GossipSettings:
    """Devices learn from their neighbours, and the coordinator says who these are; off while there is neither a
    `topology` (a name of sparse.gossip) nor `links` (a file: a link a line, as two devices' names).

    algorithm: "choco", or "relay": RelaySum on a spanning tree, where an exchange waits at most patience_s for who is
    late. codec: of what neighbours say to each other, of relay all/float32, all/float16 or all/bfloat16. gamma: of
    choco; "auto": by the authors' tuner, for each graph. exchanges: between two rounds of collection. gossip_rounds:
    exchanges after each training. minimum: an epoch has so many members; the first has rounds.devices. dead_after_s: of
    silence, after which a device is left out. target: of consensus control, a share of the largest distance, in the
    first `first_phase` exchanges; 1 is for none. seed: of drawn graphs.
    """

    topology: str | None = None
    links: str | None = None
    codec: str = "all/sign"
    gamma: float | str = AUTO
    exchanges: int = 10
    gossip_rounds: int = 1
    minimum: int = 2
    dead_after_s: float = 300.0
    target: float = 1.0
    first_phase: int = 0
    seed: int = 0
    algorithm: Algorithm = "choco"
    patience_s: float = 60.0

    def __post_init__(self) -> None:
        if self.topology is not None and self.links is not None:
            raise ValueError("links: there is a topology beside it; leave one of the two out")
        if self.links == "":
            raise ValueError("links: is empty; name a file with a link a line, as the names of two devices")
        self._check_is_meant()
        if parse_codec(self.codec).selection == "mask":
            raise ValueError(f"codec: {self.codec} needs a mask, and devices without a hub have none; use all/sign")
        if self.algorithm == "relay":
            check_codec(parse_codec(self.codec))
        if isinstance(self.gamma, str) and self.gamma != AUTO:
            raise ValueError(f'gamma: {self.gamma!r} is unknown; use "auto", or a number above 0 and at most 1')
        if isinstance(self.gamma, float) and not 0.0 < self.gamma <= 1.0:
            raise ValueError(f'gamma: {self.gamma} must be above 0 and at most 1, or "auto"')
        for key, least, most in (
            ("exchanges", 1, MAX_NUMBER - 1),
            ("gossip_rounds", 1, MAX_WANTED),
            ("minimum", 2, MAX_NUMBER),
            ("first_phase", 0, MAX_NUMBER),
            ("seed", 0, MAX_NUMBER),
        ):
            if not least <= getattr(self, key) <= most:
                raise ValueError(f"{key}: {getattr(self, key)} must be from {least} to {most}")
        if not (math.isfinite(self.dead_after_s) and self.dead_after_s >= 1.0):
            raise ValueError(
                f"dead_after_s: {self.dead_after_s} must be a finite number of at least 1, and longer than a device "
                "trains between two exchanges"
            )
        if not (math.isfinite(self.patience_s) and self.patience_s > 0.0):
            raise ValueError(f"patience_s: {self.patience_s} must be a finite number above 0")
        self._check_control()

    def _check_is_meant(self) -> None:
        """Whoever sets anything here wants a fleet without a hub, and would get one with it."""
        changed = [f"{f.name} = {getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        if changed and not self.on:
            raise ValueError(
                f'topology: is missing beside {changed[0]}, and so are links; name who is whose neighbour, as "ring", '
                "or leave [gossip] out for a fleet with a hub"
            )

    def _check_control(self) -> None:
        if not 0.0 < self.target <= 1.0:
            raise ValueError(f"target: {self.target} must be above 0 and at most 1; 0.25 is usual, 1 is for no control")
        if self.target < 1.0 and not self.first_phase:
            raise ValueError(f"first_phase: 0 exchanges are controlled, with a target of {self.target}; set it above 0")
        if self.target == 1.0 and self.first_phase:
            raise ValueError(f"target: 1 controls nothing, with a first_phase of {self.first_phase}; 0.25 is usual")
        if self.target < 1.0 and self.gossip_rounds > MOST_ROUNDS:
            raise ValueError(
                f"gossip_rounds: {self.gossip_rounds} are more than the {MOST_ROUNDS} that control goes up to; use "
                "fewer, or target = 1"
            )

    @property
    def on(self) -> bool:
        return self.topology is not None or self.links is not None

    def until(self, number: int) -> int | None:
        """The exchange of the run after which devices send their models for a round; None in fleets with a hub."""
        return number * self.exchanges if self.on else None

    def within(self, folder: Path) -> "GossipSettings":
        """The same, with paths relative to a folder made absolute."""
        return self if self.links is None else replace(self, links=str(folder / self.links))

    def links_text(self) -> str:
        """What the file of links holds, "" where there is none. Raises ConfigurationError."""
        if self.links is None:
            return ""
        try:
            text = Path(self.links).read_text()
            named = sorted({word for line in text.splitlines() for word in line.partition("#")[0].split()})
            parse_edges(text, named)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"gossip.links: {self.links} cannot be read ({error})") from None
        except ValueError as error:
            raise ConfigurationError(f"gossip.links: {self.links}: {error}") from None
        return text


def check_gossip(settings: "Settings") -> None:
    """Raises ValueError where gossip does not go with the fleet's other settings."""
    gossip, rounds = settings.gossip, settings.rounds
    if not gossip.on:
        return
    if gossip.minimum > rounds.devices:
        raise ValueError(
            f"gossip.minimum: {gossip.minimum} is more than rounds.devices ({rounds.devices}), with which the first "
            "epoch begins"
        )
    if rounds.count * gossip.exchanges >= MAX_NUMBER:
        raise ValueError(f"gossip.exchanges: {gossip.exchanges} in each of {rounds.count} rounds are too many to count")
    if gossip.topology is not None:
        try:
            graph = parse_topology(gossip.topology, rounds.devices, np.random.default_rng([gossip.seed, 1]))
        except ValueError as error:
            raise ValueError(f"gossip.{error} (rounds.devices = {rounds.devices})") from None
        most = max(len(near) for near in graph.neighbours)
        if most > MAX_NEIGHBOURS:
            raise ValueError(
                f"gossip.topology: {gossip.topology} gives a device {most} neighbours, and {MAX_NEIGHBOURS} are the "
                "most; use ring, torus or exponential"
            )
    for wrong, why in _conflicts(settings):
        if wrong:
            raise ValueError(f"{why}, or leave [gossip] out")


def _conflicts(settings: "Settings") -> tuple[tuple[bool, str], ...]:
    """What could not be kept without a hub, each with what to set."""
    rounds, training = settings.rounds, settings.training
    return (
        *_other_means(settings),
        (
            rounds.buffered,
            'rounds.mode: in "buffered" a version is of a few devices, and without a hub it is the mean of all; set '
            '"sync"',
        ),
        (
            rounds.over_select != 1.0,
            f"rounds.over_select: {rounds.over_select} leaves the slowest out, and without a hub all devices are "
            "asked; set it to 1.0",
        ),
        (
            not training.local_steps,
            "training.local_epochs: devices take a number of steps between two exchanges; set local_steps",
        ),
        (
            training.post_local > 0,
            "training.post_local: the steps between two exchanges are the same in all rounds, but for consensus "
            "control (gossip.target); set it to 0",
        ),
        (
            training.budget.steps > 0,
            "training.budget.steps: counts bytes that pass the coordinator, and neighbours' do not; set it to 0",
        ),
        (
            training.codec == AUTO or bool(training.codecs),
            "training.codec: a ladder goes by bytes that pass the coordinator, and neighbours' do not; name one "
            "codec, as all/float32, of the models that are collected",
        ),
        (
            settings.limits.device_bytes_per_day > 0,
            "limits.device_bytes_per_day: counts bytes that pass the coordinator, and neighbours' do not; set it to 0",
        ),
    )


def _other_means(settings: "Settings") -> tuple[tuple[bool, str], ...]:
    """What makes a version another thing than the mean of the devices' own models."""
    server = settings.server
    return (
        (
            server.step != "add" or server.learning_rate != 1.0,
            f"server.step: {server.step} times {server.learning_rate:g} makes no mean of what devices send, and they "
            'go on from their own models; set "add" and learning_rate = 1.0',
        ),
        (
            settings.fold.rule != "mean",
            f"fold.rule: {settings.fold.rule} would protect the versions here alone, while devices mix with what "
            'their neighbours send; set "mean"',
        ),
        (
            settings.privacy.on,
            "privacy.noise_multiplier: neighbours see each other's models without noise; set it to 0",
        ),
        (
            settings.sparsity.final > 0.0,
            "sparsity.final: the fleet's mask changes the version that devices go on from, and here they go on from "
            "their own models; set it to 0",
        ),
        (
            bool(settings.tiers.assign),
            "tiers.assign: neighbours average whole models, and those of narrower tiers have other values; leave it "
            "empty",
        ),
        (
            settings.downlink.compressed,
            "downlink.codec: what devices send is the difference to the version that they fetch, which must be the "
            "coordinator's own; set all/float32",
        ),
        (
            settings.distillation.on,
            "distillation.bundle: moves the version, and devices go on from their own models; leave it out",
        ),
    )
