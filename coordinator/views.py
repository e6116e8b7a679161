"""What devices see of a model version: the whole, a tier's slice of it, or what the fleet's mask keeps of it, each a
blob to be fetched."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coordinator.masking import deployed
from coordinator.structure import Structure
from coordinator.vote import over_weights
from edge_agent.runtimes.engine import Vector
from protocol.layout import Layout, layout_of, maskable_layout, take
from protocol.manifest import Manifest
from protocol.messages import BlobRef, Difference, SharedMask, Task
from protocol.width import Places, narrowed, places
from sparse.codecs import Shared, encode_mask
from sparse.masks import Mask, mask_digest
from sparse.votes import pack_chances


@dataclass(frozen=True, slots=True)
class View:
    """A version as one variant sees it.

    layout: of updates, in the view's own vector. model: float32[total of the view]. places: where each value of it lies
    in the whole model, None for the whole model. channels: names the choice of channels it was cut by. mask: over the
    layout's parameters, under which the model is 0 and the blob has no values where it leaves out. announced: how a
    device comes by that mask, over all parameters. differences: steps that lead to a whole model from older ones.
    chances: float32[n of the layout], where a mask is learnt over the model's frozen weights; told: the blob by which a
    device comes by them.
    """

    variant: str
    layout: Layout
    model: Vector
    blob: BlobRef
    places: Places | None = None
    channels: bytes | None = None
    mask: Mask | None = None
    announced: SharedMask | None = None
    differences: tuple[Difference, ...] = ()
    chances: Vector | None = None
    told: BlobRef | None = None

    def shared(self, task: Task) -> Shared | None:
        """What both sides know of an update for this task."""
        return Shared(self.mask, task.mask.report) if self.mask is not None and task.mask is not None else None


def late_view(manifest: Manifest, structure: Structure, dense: Vector, blob: BlobRef, variant: str) -> View:
    """How an update for an older version is to be read: where its values lie by that version's structure, beside the
    model of today, float32[total], which it is to be added to. Nothing of it is to be fetched."""
    if structure.chances is not None:
        chances = over_weights(manifest, structure.chances)
        return View(variant, maskable_layout(manifest), dense, blob, chances=chances)
    layout = layout_of(narrowed(manifest, variant), variant)
    if structure.mask is not None:
        return View(variant, layout, dense, blob, mask=take(structure.mask, layout.parameters))
    if variant not in structure.channels:
        return View(variant, layout, dense, blob)
    where = places(manifest, structure.channels[variant])
    return View(variant, layout, dense[where], blob, where, structure.named(variant))


class Views:
    """The views of one version, each made when it is first asked for.

    dense: float32[total], what the coordinator goes on from. public, blob: the same, or what devices hold in its place
    (downlink.py), and differences the steps to it. put: stores bytes and names them. held: the mask of the version
    before, which devices have.
    """

    def __init__(
        self,
        manifest: Manifest,
        dense: Vector,
        blob: BlobRef,
        structure: Structure,
        put: Callable[[bytes], BlobRef],
        held: Mask | None = None,
        public: Vector | None = None,
        differences: tuple[Difference, ...] = (),
    ) -> None:
        self.dense, self.structure, self._held = dense, structure, held
        self.public, self._differences = dense if public is None else public, differences
        self._manifest, self._blob, self._put = manifest, blob, put
        self._made: dict[str, View] = {}

    def of(self, variant: str) -> View:
        """The view of a variant that the bundle holds."""
        if variant not in self._made:
            self._made[variant] = self._make(variant)
        return self._made[variant]

    def _make(self, variant: str) -> View:
        if self.structure.chances is not None:
            chances = over_weights(self._manifest, self.structure.chances)
            told, layout = self._put(pack_chances(chances)), maskable_layout(self._manifest)
            return View(variant, layout, self.public, self._blob, chances=chances, told=told)
        layout = layout_of(narrowed(self._manifest, variant), variant)
        if self.structure.mask is not None:
            return self._under_mask(variant, layout, self.structure.mask)
        if variant not in self.structure.channels:
            return View(variant, layout, self.public, self._blob, differences=self._differences)
        where = places(self._manifest, self.structure.channels[variant])
        model = np.ascontiguousarray(self.public[where])
        blob = self._put(model.astype("<f4").tobytes())
        return View(variant, layout, model, blob, where, self.structure.named(variant))

    def _under_mask(self, variant: str, layout: Layout, mask: Mask) -> View:
        model = deployed(self.public, self.structure)
        kept = np.concatenate([mask, np.ones(len(model) - len(mask), np.bool_)])
        blob = self._put(model[kept].astype("<f4").tobytes())
        own = take(mask, layout.parameters)
        return View(variant, layout, model, blob, mask=own, announced=self.announced(whole=False))

    def announced(self, *, whole: bool) -> SharedMask:
        """How a device comes by the mask: as the difference to the one before if there was another, or whole."""
        mask, held = self.structure.mask, self._held
        assert mask is not None, "there is no mask"
        if whole or held is None or np.array_equal(mask, held):
            return SharedMask(mask_digest(mask), self._put(encode_mask(mask)))
        return SharedMask(mask_digest(mask), self._put(encode_mask(mask, held)), mask_digest(held))
