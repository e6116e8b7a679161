"""The fleet's vote on a mask over frozen weights: where it begins, what an update says of it, and what comes of it.

A version is the exported weights, which no version changes, and a chance for each that may be masked (sparse/votes.py).
A device's update is a mask of bits; as a difference to the chances of the version that it was trained from it goes
through the fold as any other, weighed by examples, bounded, robust if that is asked for, and the server step moves the
chances by the mean of all. With `add` and a learning rate of 1 the chances are then the mean of the masks, as in FedPM
with its priors reset in every round (Isik et al. 2023, algorithm 1). A mean of n drawn bits is off by chance, and what
is drawn from it is off again: in a small fleet most weights would soon be in or out by lot. A smaller rate is a mean
over rounds too, the older ones counting less and less, as FedPM's priors are that are not reset.
"""

import numpy as np

from coordinator.fold import Decoded, Folded
from coordinator.server_step import ServerState, server_step
from coordinator.settings import ServerSettings, Settings
from coordinator.structure import Structure
from edge_agent.runtimes.engine import Vector
from protocol.bundle import Bundle
from protocol.errors import ConfigurationError
from protocol.layout import maskable_layout
from protocol.manifest import FULL, Manifest
from sparse.codecs import decode_ballot
from sparse.votes import kept_of


def check_masking(settings: Settings, manifest: Manifest) -> None:
    """Raises ConfigurationError where no mask can be learnt over a bundle's weights."""
    if not settings.masking.on:
        return
    said = f"masking.keep: {settings.masking.keep:g}"
    if not maskable_layout(manifest).n_parameters:
        raise ConfigurationError(
            f"{said}, and no tensor of the bundle may be masked; export it with TrainingSpec.prunable"
        )
    if manifest.mask is not None:
        raise ConfigurationError(f"{said}, and the bundle was pruned already; export it without --sparsity")
    moving = [
        t.name for t in manifest.tensors if t.kind == "buffer" and t.name not in manifest.variant(FULL).frozen_buffers
    ]
    if moving:
        raise ConfigurationError(
            f"{said}, and the model has running statistics ({moving[0]}), which would not be those of the masked "
            "model; export one whose norms have none, as GroupNorm or LayerNorm"
        )
    tiers = [v.name for v in manifest.variants if v.keep]
    if tiers and settings.tiers.select != "off":
        raise ConfigurationError(
            f"{said} is for a fleet of whole models, and this bundle has width tiers ({', '.join(tiers)}); set "
            'tiers.select = "off"'
        )


def check_begun(settings: Settings, structure: Structure) -> None:
    """Raises ConfigurationError where a run that began to train weights is to learn a mask, or the other way round."""
    if settings.masking.on != (structure.chances is not None):
        began = "learn a mask" if structure.chances is not None else "train weights"
        raise ConfigurationError(
            f"masking.keep: {settings.masking.keep:g}, and the run in this state folder began to {began}; name another "
            "folder (state), or set masking.keep as it was"
        )


def first_vote(settings: Settings, bundle: Bundle) -> Structure:
    """The structure of version 0: every weight in, by the same chance."""
    chances = np.ones(bundle.manifest.parameters, np.float32)
    parts = maskable_layout(bundle.manifest).parameters
    for part in parts:
        chances[part] = settings.masking.keep
    return elected(chances)


def elected(chances: Vector) -> Structure:
    """The structure whose mask keeps what at least half would keep. chances: float32[n_parameters], 1 where nothing may
    be masked."""
    return Structure(mask=kept_of(chances), chances=chances)


def ballot_delta(payload: bytes, layout: bytes, chances: Vector) -> Decoded:
    """What a mask says beyond the chances, float32[d], that it was learnt from; no buffers. Raises PayloadError."""
    mask = decode_ballot(payload, len(chances), layout)
    return mask.astype(np.float32) - chances, np.zeros(0, np.float32)


def vote(
    server: ServerSettings, state: ServerState, manifest: Manifest, chances: Vector, folded: Folded
) -> tuple[ServerState, Structure]:
    """The next server state, and the structure that the vote elects. chances: float32[n_parameters], before it."""
    model = np.zeros(manifest.total, np.float32)
    model[: manifest.parameters] = chances
    after, moved = server_step(server, state, model, folded)
    return after, elected(np.clip(moved[: manifest.parameters], 0.0, 1.0))


def over_weights(manifest: Manifest, chances: Vector) -> Vector:
    """The chances of the weights that may be masked: float32[d], of float32[n_parameters]."""
    found = [chances[part] for part in maskable_layout(manifest).parameters]
    return np.concatenate(found) if found else chances[:0]
