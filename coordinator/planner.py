"""The plan of a round: who is asked, in which order, and what the task says."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from coordinator.local_steps import steps_of
from coordinator.masking import report_size
from coordinator.settings import Settings, TrainingSettings
from coordinator.views import View
from protocol.manifest import FULL
from protocol.messages import BlobRef, SharedMask, Task
from sparse.codecs import BALLOT


def order_devices(invitations: Mapping[str, int], seed: int, round_number: int) -> tuple[str, ...]:
    """Devices in the order in which they are asked: fewest invitations so far first, ties at random.

    invitations: how many rounds each candidate was asked to join. The same candidates give the same order.
    """
    names = sorted(invitations)
    rng = np.random.default_rng([seed, round_number])
    lots = dict(zip(names, rng.permutation(len(names)).tolist(), strict=True))
    return tuple(sorted(names, key=lambda name: (invitations[name], lots[name])))


def learning_rate(training: TrainingSettings, round_number: int, count: int) -> float:
    """The devices' learning rate in a round, 1 to `count`.

    cosine: SGDR's half period (Loshchilov and Hutter 2017, equation 5) over all rounds, so that the last one still
    learns. step: times decay_factor every decay_every rounds.
    """
    done = round_number - 1
    if training.schedule == "cosine":
        return training.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, count - 1) / count))
    if training.schedule == "step":
        # Never to zero, which no task may carry, however long a run is.
        return max(training.learning_rate * training.decay_factor ** (done // training.decay_every), 1e-30)
    return training.learning_rate


def task_seed(seed: int, round_number: int, device: str) -> int:
    """A seed of 63 bits that follows from the run's seed, the round and the device, and from nothing else."""
    said = f"{seed}/{round_number}/{device}".encode()
    return int.from_bytes(hashlib.sha256(said).digest()[:8], "little") >> 1


def make_task(
    settings: Settings,
    run: str,
    round_number: int,
    device: str,
    manifest: BlobRef,
    version: int,
    view: View,
    variant: str | None,
    codec: str,
    spent: Sequence[int] = (),
) -> Task:
    """What one device is asked to do in a round. `time_left_s` is the whole deadline; a later sending says less.

    view: of the model's version, as the device is to work on it. variant: None where the device may choose. codec: of
    its update. spent: bytes of each round so far, as steps_of takes them.
    """
    training = settings.training
    return Task(
        run=run,
        round=round_number,
        manifest=manifest,
        model=view.blob,
        version=version,
        local_steps=0
        if training.local_epochs
        else steps_of(training.step_rule(settings.rounds.count), round_number, spent),
        local_epochs=training.local_epochs,
        batch_size=training.batch_size,
        learning_rate=learning_rate(training, round_number, settings.rounds.count),
        optimizer=training.optimizer,
        codec=codec if view.told is None else BALLOT,
        seed=task_seed(settings.seed, round_number, device),
        time_left_s=settings.rounds.deadline_s,
        # A mask is learnt over all weights that may be masked.
        variant=variant if view.told is None else FULL,
        channels=view.channels,
        mask=_mask(settings, round_number, view),
        differences=view.differences,
        until=settings.gossip.until(round_number),
        chances=view.told,
    )


def _mask(settings: Settings, round_number: int, view: View) -> SharedMask | None:
    if view.announced is None or view.mask is None:
        return None
    return replace(view.announced, report=report_size(settings, view.mask, round_number))
