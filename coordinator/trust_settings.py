"""Settings of what protects the model: how updates are folded, and what noise hides a single device in it."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Rule = Literal["mean", "median", "trimmed-mean", "krum", "multi-krum", "geometric-median"]
# Those that look at each coordinate by itself, and so have nothing to go by where most devices sent nothing of it.
COORDINATE_RULES: frozenset[Rule] = frozenset({"median", "trimmed-mean"})
KRUM_RULES: frozenset[Rule] = frozenset({"krum", "multi-krum"})


@dataclass(frozen=True, slots=True)
class FoldSettings:
    """How a round's updates become one (robust.py).

    trim: of trimmed-mean, the share of values left out at either end. byzantine: of Krum, how many devices may lie.
    bucket: so many updates, drawn anew for each fold, are averaged before the rule sees them. memory: of multi-krum,
    what a device's score of one fold still counts for in the next; 0: each fold stands by itself.
    clip: the norm that no update counts beyond: "median", clip_factor times the median of recent ones; a number; or
    "none".
    """

    rule: Rule = "mean"
    trim: float = 0.25
    byzantine: int = 1
    clip: str | float = "median"
    clip_factor: float = 2.0
    bucket: int = 1
    memory: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule: {self.rule!r} is unknown; use {', '.join(get_args(Rule))}")
        if not 0.0 < self.trim < 0.5:
            raise ValueError(
                f"trim: {self.trim} must be above 0 and below 0.5, or nothing is left; 0.25 bears a fourth of liars, "
                'rule = "median" is the most'
            )
        if self.byzantine < 0:
            raise ValueError(f"byzantine: {self.byzantine} must be at least 0")
        if isinstance(self.clip, str) and self.clip not in ("median", "none"):
            raise ValueError(f'clip: {self.clip!r} is unknown; use "median", "none", or a norm above 0')
        if isinstance(self.clip, float):
            positive("clip", self.clip)
        positive("clip_factor", self.clip_factor)
        self._check_buckets()

    def _check_buckets(self) -> None:
        if self.bucket < 1:
            raise ValueError(f"bucket: {self.bucket} must be at least 1; 1 is for none, 2 is usual")
        if self.bucket > 1 and self.rule == "mean":
            raise ValueError(f"bucket: {self.bucket} does nothing for the mean; set bucket = 1, or another rule")
        if not 0.0 <= self.memory < 1.0:
            raise ValueError(f"memory: {self.memory} must be at least 0 and below 1; 0 is for none, 0.9 is usual")
        if self.memory and self.rule != "multi-krum":
            raise ValueError(
                f"memory: {self.memory} is for the rule multi-krum, and the rule is {self.rule}; set memory = 0, or "
                'rule = "multi-krum"'
            )
        if self.memory and self.bucket > 1:
            raise ValueError(
                f"memory: {self.memory} needs scores of single devices, and a bucket of {self.bucket} hides them; set "
                "one of memory = 0 and bucket = 1"
            )

    @property
    def report_factor(self) -> float:
        """How many times the median report of gradients any other may move the model (feedback.py)."""
        return math.inf if self.clip == "none" else self.clip_factor

    def check(self, least: int, sparse_codecs: list[str]) -> None:
        """Raises ValueError where the rule cannot work on folds of `least` updates, or under codecs that leave out most
        coordinates, each device others."""
        if self.rule in COORDINATE_RULES and sparse_codecs:
            raise ValueError(
                f"fold.rule: {self.rule} goes by each coordinate, of which most devices say nothing under "
                f"training.codec {sparse_codecs[0]}, so that it would come to 0; use a codec that sends all, as "
                "all/int8, or fold.rule = geometric-median"
            )
        # As many buckets must be in the majority as devices without buckets, however the liars are spread.
        needed = (2 * self.byzantine + 2) * self.bucket + 1
        if self.rule in KRUM_RULES and least < needed:
            nearest = (-(-least // self.bucket) - 3) // 2
            formula = "2f + 3" if self.bucket == 1 else f"(2f + 2) x {self.bucket} + 1"
            works = f"the nearest that works is {nearest}, or" if nearest >= 0 else "use fold.rule = median, or"
            raise ValueError(
                f"fold.byzantine: {self.byzantine} of {least} updates (rounds.minimum, or rounds.devices without it) "
                f"is too many; {self.rule} needs at least {formula} = {needed} updates; {works} that many updates"
            )


@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """Central differential privacy at the level of devices (privacy.py): every update is clipped to the norm `clip`,
    and noise of noise_multiplier times that is added to their sum. 0: none. delta: at which epsilon is told."""

    noise_multiplier: float = 0.0
    clip: float = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0.0):
            raise ValueError(
                f"noise_multiplier: {self.noise_multiplier} must be a finite number of at least 0; 1.0 is usual, 0 is "
                "for no noise"
            )
        positive("clip", self.clip)
        if not 0.0 < self.delta < 1.0:
            raise ValueError(f"delta: {self.delta} must be above 0 and below 1; well below 1 / devices, as 1e-5")

    @property
    def on(self) -> bool:
        return self.noise_multiplier > 0.0

    def check(self, fold: FoldSettings, *, reports: bool) -> None:
        """Raises ValueError where something else would reach the model beside the noise."""
        if not self.on:
            return
        if fold.rule != "mean":
            raise ValueError(
                f"privacy.noise_multiplier: the noise is measured for a mean of clipped updates, and fold.rule is "
                f"{fold.rule}; set it to mean, or noise_multiplier to 0"
            )
        if reports:
            raise ValueError(
                "privacy.noise_multiplier: reports of gradients reach the model without noise; set "
                "sparsity.report_every = 0, or noise_multiplier to 0"
            )


def positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{name}: {value} must be a finite number above 0")
