"""Settings of learning a mask over frozen weights: from [masking] of coordinator.toml, and what does not go with it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator.settings import Settings

# What codec settings say where they say nothing: a mask travels as its bits.
_DENSE = "all/float32"


@dataclass(frozen=True, slots=True)
class MaskingSettings:
    """keep: of every weight that may be masked, the chance to be kept that the run begins with; 0 is for training the
    weights themselves."""

    keep: float = 0.0

    def __post_init__(self) -> None:
        if self.keep != 0.0 and not 0.5 < self.keep < 1.0:
            raise ValueError(
                f"keep: {self.keep} must be above 0.5 and below 1, so that the run begins with all weights; 0.9 is "
                "usual, 0 trains the weights themselves"
            )

    @property
    def on(self) -> bool:
        return self.keep > 0.0


def check_combined(settings: "Settings") -> None:
    """Raises ValueError by the key of what does not go with weights that stay as they are, with the remedy."""
    if not settings.masking.on:
        return
    said = f"(masking.keep is {settings.masking.keep:g})"
    _check_training(settings, said)
    if settings.gossip.on:
        raise ValueError(f"gossip: devices without a hub exchange weights, and a mask is voted on {said}; leave it out")
    if settings.sparsity.final:
        raise ValueError(
            f"sparsity.final: {settings.sparsity.final:g} is for a mask by magnitude, and this run learns one {said}; "
            "set it to 0"
        )
    if settings.downlink.codec != _DENSE:
        raise ValueError(
            f"downlink.codec: {settings.downlink.codec} is for models that change, and the weights stay {said}; leave "
            "it out"
        )
    if settings.privacy.on:
        raise ValueError(f"privacy.noise_multiplier: its noise is measured for updates of weights {said}; set it to 0")
    if settings.distillation.bundle is not None:
        raise ValueError(f"distillation.bundle: would train the weights, which stay {said}; leave it out")


def _check_training(settings: "Settings", said: str) -> None:
    training, optimizer = settings.training, settings.training.optimizer
    other = [codec for codec in (training.codec, *training.codecs) if codec != _DENSE]
    if other:
        raise ValueError(
            f"training.codec: {other[0]} is for weights, and a mask travels as its bits {said}; leave it out"
        )
    if optimizer.name == "qg" or optimizer.keep_momentum:
        key = "name" if optimizer.name == "qg" else "keep_momentum"
        raise ValueError(
            f"training.optimizer.{key}: momentum that goes on from round to round is of weights, and scores are made "
            f'anew in each {said}; use name = "adamw" or "sgd" without it'
        )
    if optimizer.weight_decay:
        raise ValueError(
            f"training.optimizer.weight_decay: {optimizer.weight_decay:g} would pull every chance to one half {said}; "
            "set it to 0"
        )
