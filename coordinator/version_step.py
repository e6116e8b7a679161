"""One version further: a fold's set, read as it was trained, its mean and the server step. Pure, given the payloads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coordinator.feedback import motion, with_feedback
from coordinator.fold import Decoded, Weighted
from coordinator.folding import Caution, bound_weights, fold_bounded
from coordinator.intake import decode_payload
from coordinator.privacy import fold_label
from coordinator.rows import AcceptedUpdate
from coordinator.server_step import ServerState, server_step
from coordinator.settings import ServerSettings
from coordinator.statistics import kept_above_zero
from coordinator.structure import Structure
from coordinator.views import View
from coordinator.vote import vote
from edge_agent.runtimes.engine import Vector
from protocol.failpoints import reached
from protocol.layout import put
from protocol.manifest import Manifest
from sparse.codecs import decode_report


@dataclass(frozen=True, slots=True)
class Stepped:
    """A version's server state and dense model, float32[total]. clipped, clamped: updates cut in norm or in weight.
    elected: the next structure, where the fleet votes on it; the dense model is then the one before."""

    state: ServerState
    dense: Vector
    clipped: int
    clamped: int
    elected: Structure | None = None


def version_step(
    manifest: Manifest,
    server: ServerSettings,
    base: int,
    dense: Vector,
    structure: Structure,
    state: ServerState,
    accepted: Sequence[AcceptedUpdate],
    payload: Callable[[AcceptedUpdate], bytes],
    view_for: Callable[[int, str], View],
    discounted: Callable[[AcceptedUpdate], float],
    caution: Caution,
) -> Stepped:
    """Version base + 1.

    dense, structure, state: of version `base`. payload: is asked for each update when it is its turn, so that one is in
    memory at a time. view_for: the view of a version and variant, by which an update of that version is read.
    """
    bounded = bound_weights(accepted, caution.weight)
    updates = {(update.number, update.device): update for update in bounded}
    seen = {(u.task.version, u.variant): view_for(u.task.version, u.variant) for u in updates.values()}

    def view_of(update: AcceptedUpdate) -> View:
        return seen[update.task.version, update.variant]

    def decode(weighted: Weighted) -> Decoded:
        update = updates[weighted.number, weighted.device]
        view = view_of(update)
        parameters, buffers = decode_payload(
            payload(update), update.codec, view.layout, view.shared(update.task), view.chances
        )
        # What its mask left out it did not train, whatever its codec says of it.
        return parameters if view.mask is None else np.where(view.mask, parameters, np.float32(0)), buffers

    def report(update: AcceptedUpdate) -> Vector:
        view, told = view_of(update), np.zeros(manifest.parameters, dtype=np.float32)
        shared = view.shared(update.task)
        assert shared is not None, "only who has a mask is asked for a report"
        put(told, view.layout.parameters, decode_report(payload(update), view.layout.digest, shared))
        return told

    weighted = [_weighed(u, view_of(u), base, discounted(u)) for u in updates.values()]
    norms = {name: update.norms for name, update in updates.items() if update.norms is not None}
    label = fold_label(caution.run, base + 1, ((u.number, u.device, u.digest) for u in bounded))
    caution = replace(caution, standing=state.standing)
    found = fold_bounded(caution, weighted, norms, decode, manifest.parameters, manifest.buffers, label)
    reached("coordinator.round-folded")
    folded, mask = found.folded, structure.mask
    clamped = sum(before.weight != after.weight for before, after in zip(accepted, bounded, strict=True))
    if structure.chances is not None:
        voted, chosen = vote(server, state, manifest, structure.chances, folded)
        return Stepped(replace(voted, standing=folded.standing), dense, found.clipped, clamped, chosen)
    if mask is not None:
        moved = motion(bounded, report, manifest.parameters, discounted, caution.fold.report_factor)
        folded = with_feedback(folded, mask, moved)
    stepped, after = server_step(server, state, dense, folded)
    after = kept_above_zero(manifest, dense, after)
    return Stepped(replace(stepped, standing=found.folded.standing), after, found.clipped, clamped)


def _weighed(update: AcceptedUpdate, view: View, base: int, discount: float) -> Weighted:
    # Nobody else trained under an older mask; under the present one all did, and off it all count as 0.
    own = view.mask if update.task.version < base else None
    return Weighted(update.device, update.weight, view.layout, view.places, update.number, discount, own)
