"""The models of single clients, as far as their updates say: what each started from, and what it sent of the way."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.history import History
from coordinator.intake import decode_payload
from coordinator.masking import deployed
from coordinator.rows import AcceptedUpdate
from coordinator.structure import Structure
from coordinator.views import late_view
from edge_agent.runtimes.engine import Vector
from protocol.errors import DamagedError
from protocol.layout import put, take
from protocol.manifest import Manifest
from protocol.messages import BlobRef

_NO_BLOB = BlobRef(bytes(32), 0)
# What devices hold of a version, float32[total], and its structure; None where the disk no longer has it.
Base = tuple[Vector, Structure]


@dataclass(frozen=True, slots=True)
class ClientModel:
    """A device's model of a variant: float32[total as the variant sees it]."""

    device: str
    variant: str
    model: Vector


def client_models(
    manifest: Manifest,
    accepted: Sequence[AcceptedUpdate],
    payload: Callable[[AcceptedUpdate], bytes | None],
    base_of: Callable[[int], Base | None],
) -> Iterator[ClientModel]:
    """One after the other, in the order of rounds, then devices; without those whose start, or payload, is not kept.

    What a codec left out of an update is not in it; what the device's mask left out stays 0.
    """
    for update in sorted(accepted, key=lambda u: (u.number, u.device)):
        base = base_of(update.task.version)
        sent = None if base is None else payload(update)
        if base is None or sent is None:
            continue
        held, structure = base
        view = late_view(manifest, structure, deployed(held, structure), _NO_BLOB, update.variant)
        parameters, buffers = decode_payload(sent, update.codec, view.layout, view.shared(update.task))
        if view.mask is not None:
            parameters = np.where(view.mask, parameters, np.float32(0))
        model = view.model.copy()
        # What is too large to be a number is looked for by who asks it.
        with np.errstate(over="ignore"):
            put(model, view.layout.parameters, take(model, view.layout.parameters) + parameters)
            put(model, view.layout.buffers, take(model, view.layout.buffers) + buffers)
        yield ClientModel(update.device, update.variant, model)


def newest_clients(history: History, manifest: Manifest) -> Iterator[ClientModel]:
    """Of another coordinator: those whose updates made its newest version, as far as their payloads are kept; it goes
    on meanwhile, and removes what is old. Raises SparsefleetError of what is damaged."""

    def base_of(version: int) -> Base | None:
        held, structure = history.public(version), history.structure(version)
        return None if held is None or structure is None else (held, structure)

    def payload(update: AcceptedUpdate) -> bytes | None:
        try:
            return history.payload(update)
        except DamagedError:
            # Gone between a look and the reading of it, it is gone as before; altered, it is said.
            if history.has_payload(update):
                raise
            return None

    return client_models(manifest, history.fold(history.newest).accepted, payload, base_of)
