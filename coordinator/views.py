"""What devices see of a model version: the whole, or a tier's slice of it, each a blob to be fetched."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coordinator.structure import Structure
from edge_agent.runtimes.engine import Vector
from protocol.layout import Layout, layout_of
from protocol.manifest import Manifest
from protocol.messages import BlobRef
from protocol.width import Places, narrowed, places


@dataclass(frozen=True, slots=True)
class View:
    """A version as one variant sees it.

    layout: of updates, in the view's own vector. model: float32[total of the view]. places: where each value of it lies
    in the whole model, None for the whole model. channels: names the choice of channels it was cut by.
    """

    variant: str
    layout: Layout
    model: Vector
    blob: BlobRef
    places: Places | None = None
    channels: bytes | None = None


class Views:
    """The views of one version, each made when it is first asked for. put: stores bytes and names them."""

    def __init__(
        self, manifest: Manifest, dense: Vector, blob: BlobRef, structure: Structure, put: Callable[[bytes], BlobRef]
    ) -> None:
        self.dense, self.structure = dense, structure
        self._manifest, self._blob, self._put = manifest, blob, put
        self._made: dict[str, View] = {}

    def of(self, variant: str) -> View:
        """The view of a variant that the bundle holds."""
        if variant not in self._made:
            self._made[variant] = self._make(variant)
        return self._made[variant]

    def _make(self, variant: str) -> View:
        layout = layout_of(narrowed(self._manifest, variant), variant)
        if variant not in self.structure.channels:
            return View(variant, layout, self.dense, self._blob)
        where = places(self._manifest, self.structure.channels[variant])
        model = np.ascontiguousarray(self.dense[where])
        blob = self._put(model.astype("<f4").tobytes())
        return View(variant, layout, model, blob, where, self.structure.named(variant))
