"""When and how the structure is chosen anew: a pure function of settings, the structure before and the dense model."""

from coordinator.settings import Settings
from coordinator.structure import Structure
from edge_agent.runtimes.engine import Vector
from protocol.manifest import Manifest
from protocol.width import first_channels


def first_structure(settings: Settings, manifest: Manifest, dense: Vector) -> Structure:
    """The structure that version 0 is worked on under. dense: float32[total]."""
    del settings, dense
    return Structure({v.name: first_channels(manifest, v.name) for v in manifest.variants if v.keep})


def next_structure(settings: Settings, manifest: Manifest, before: Structure, dense: Vector, version: int) -> Structure:
    """The structure for `version`, whose dense model is float32[total]; most versions keep the one before."""
    del settings, manifest, dense, version
    return before
