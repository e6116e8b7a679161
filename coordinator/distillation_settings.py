"""Settings of ensemble distillation: from [distillation] of coordinator.toml."""

import math
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Another coordinator of this machine whose devices train another architecture: its state folder and its bundle."""

    state: str
    bundle: str

    def __post_init__(self) -> None:
        for key in ("state", "bundle"):
            if not getattr(self, key):
                raise ValueError(f"{key}: is empty; name the folder of the other coordinator")


@dataclass(frozen=True, slots=True)
class DistillationSettings:
    """After every `every`-th fold the model learns, for up to `steps` steps, what the clients' models say together of
    unlabelled inputs; off while there is no `bundle`.

    bundle: of fleet-export --distillation. data: the inputs, .npz. validation: labelled examples, .npz, by which the
    best model is kept every `check_every` steps; `patience` steps without a better one end it. drop_worst: clients that
    are no better than chance do not teach. peers: other architectures, whose clients teach too.
    """

    bundle: str | None = None
    data: str | None = None
    validation: str | None = None
    every: int = 1
    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 1e-3
    check_every: int = 100
    patience: int = 500
    drop_worst: bool = False
    peers: tuple[PeerSettings, ...] = ()

    def __post_init__(self) -> None:
        for key in ("every", "batch_size", "check_every", "patience"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 1")
        if self.steps < 0:
            raise ValueError(f"steps: {self.steps} must be at least 0, which is the average alone")
        if self.steps and self.patience < min(self.check_every, self.steps):
            raise ValueError(
                f"patience: {self.patience} steps end before the first trial, after check_every = {self.check_every}, "
                "and nothing is ever learned; set it to check_every or more"
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0.0):
            raise ValueError(f"learning_rate: {self.learning_rate} must be a finite number above 0; 1e-3 is usual")
        if self.bundle is None:
            if self.data is not None or self.validation is not None or self.peers:
                raise ValueError("bundle: is missing; name what `fleet-export --distillation` wrote")
            return
        for key in ("data", "validation"):
            if getattr(self, key) is None:
                raise ValueError(f"{key}: is missing; distillation needs inputs (data) and labelled ones (validation)")
        if len({peer.state for peer in self.peers}) != len(self.peers):
            raise ValueError("peers: one state folder is named twice, and its clients would count twice")

    @property
    def on(self) -> bool:
        return self.bundle is not None

    def check(self, *, noise: bool, quasi_global: bool, state: str, evaluation: str | None, rounds: int) -> None:
        """Raises ValueError where it does not go with the fleet's other settings. state: the fleet's own folder.
        evaluation: the data whose accuracy is reported, if any."""
        if not self.on:
            return
        if noise:
            raise ValueError(
                "distillation.bundle: learns from single clients' models, which the noise of [privacy] is to hide; "
                "leave out one of the two"
            )
        if quasi_global:
            raise ValueError(
                "distillation.bundle: moves the model where no device moved it, and quasi-global momentum takes that "
                'for their movement; leave out one of the two, or set training.optimizer.name = "sgd"'
            )
        if self.every > rounds:
            raise ValueError(f"distillation.every: {self.every} is more than rounds.count = {rounds}: it never comes")
        if evaluation is not None and self.validation is not None and _same(self.validation, evaluation):
            raise ValueError(
                "distillation.validation: is evaluation.data; a model that is chosen by it looks better on it than it "
                "is. Name other labelled examples"
            )
        if any(_same(peer.state, state) for peer in self.peers):
            raise ValueError("distillation.peers: one is this fleet's own state folder; its clients teach anyway")

    def within(self, folder: Path) -> "DistillationSettings":
        """The same, with paths relative to a folder made absolute."""

        def at(path: str | None) -> str | None:
            return None if path is None else str(folder / path)

        peers = tuple(PeerSettings(str(folder / p.state), str(folder / p.bundle)) for p in self.peers)
        return replace(self, bundle=at(self.bundle), data=at(self.data), validation=at(self.validation), peers=peers)


def _same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()
